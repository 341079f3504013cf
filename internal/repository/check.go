package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/pack"
)

// CheckOptions say how deep a check goes.
type CheckOptions struct {
	// ReadData verifies every cell of every shard and opens every chunk of
	// every backup. Without it the shards only have to be there, with the right
	// size.
	ReadData bool
	// Share makes ReadData read only this percentage of the packs, one at least:
	// those behind the position After. Whoever passes on the Position of each
	// finished check to the next reads everything in turn. Zero and 100 mean all.
	Share int
	// After is the Position of an earlier check; empty = the beginning.
	After string
	// Pace, if not nil, is called before n bytes are read for ReadData, and may
	// wait; its error ends the check. Not concurrently.
	Pace func(ctx context.Context, n int64) error
	// Progress, if not nil, is called now and then, by one goroutine at a time.
	Progress func(CheckProgress)
}

// CheckProgress says how far a check is. Total grows while backups are read.
type CheckProgress struct {
	Phase       string // "backups", "packs", "data"
	Done, Total int64
}

// CheckReport is what a check found.
type CheckReport struct {
	Backups  []BackupReport
	Stores   []StoreReport
	Packs    int      // that the backups need
	Read     int      // of these, the packs whose data was read
	Position string   // where the next check with a Share goes on
	Problems []string // of the repository as a whole
}

// OK reports whether there is nothing to mend: every backup can be restored and
// every store has everything.
func (c CheckReport) OK() bool {
	return len(c.Problems) == 0 &&
		!slices.ContainsFunc(c.Backups, func(b BackupReport) bool { return !b.Restorable || len(b.Problems) > 0 }) &&
		!slices.ContainsFunc(c.Stores, func(s StoreReport) bool {
			return s.Status.State != StoreUp || s.Missing > 0 || s.Damaged > 0 || len(s.Problems) > 0
		})
}

// BackupReport is what a check says about one backup.
type BackupReport struct {
	Backup     Backup
	Restorable bool // completely
	Problems   []string
	Damaged    []DamagedRange // blocks that cannot be read, in order
	BlockSize  int64          // bytes; zero if nothing of the backup can be read
}

// DamagedRange is a run of blocks of a volume.
type DamagedRange struct{ First, Count int64 }

// StoreReport is what a check says about one store.
type StoreReport struct {
	Status   StoreStatus
	Missing  int64 // shards and records that should be there and are not, or have a wrong size
	Damaged  int64 // those with wrong bytes (ReadData)
	Problems []string
}

// maxProblems bounds the sentences in each part of a report.
const maxProblems = 20

func addProblem(to *[]string, text string) {
	switch {
	case len(*to) < maxProblems && !slices.Contains(*to, text):
		*to = append(*to, text)
	case len(*to) == maxProblems:
		*to = append(*to, "and more")
	}
}

// Check proves that every backup can be restored: its root record, its votes,
// every node of its manifest, and of every pack enough shards; with ReadData
// every byte. It never writes. The error is one of the check itself; what it
// finds is in the report.
func (r *Repository) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	if err := o.validate(); err != nil {
		return CheckReport{}, err
	}
	c := newChecker(r, o)
	err := c.find(ctx)
	if err == nil {
		err = c.judge(ctx)
	}
	if err == nil {
		err = c.records(ctx)
	}
	return c.report, err
}

// records looks at the control objects as a repair does that only says what it
// would do.
func (c *checker) records(ctx context.Context) error {
	p := &repairer{checker: newChecker(c.r, c.o), check: true}
	if err := p.controls(ctx); err != nil {
		return err
	}
	for _, s := range p.done.Stores {
		i := slices.IndexFunc(c.report.Stores, func(r StoreReport) bool { return r.Status.ID == s.Status.ID && r.Status.URL == s.Status.URL })
		if i < 0 || s.Missing+s.Damaged == 0 {
			continue
		}
		rep := &c.report.Stores[i]
		rep.Missing += int64(s.Missing)
		rep.Damaged += int64(s.Damaged)
		addProblem(&rep.Problems, fmt.Sprintf("%d records are missing and %d are damaged, such as %s", s.Missing, s.Damaged, s.example))
	}
	for _, lost := range p.done.Lost {
		addProblem(&c.report.Problems, lost)
	}
	return nil
}

func newChecker(r *Repository, o CheckOptions) *checker {
	if o.Progress == nil {
		o.Progress = func(CheckProgress) {}
	}
	return &checker{r: r, o: o, packs: make(map[chunk.PackID]*packCheck), moved: make(map[chunk.PackID]bool), leaves: make(map[nodeKey][]bool)}
}

// find learns which packs are needed and what the stores have of them.
func (c *checker) find(ctx context.Context) error {
	if err := c.roots(ctx); err != nil {
		return err
	}
	for n, b := range c.images {
		if err := c.walk(ctx, n, b); err != nil {
			return err
		}
		c.o.Progress(CheckProgress{"backups", int64(n + 1), int64(len(c.images))})
	}
	if err := c.stores(ctx); err != nil {
		return err
	}
	if c.o.ReadData {
		c.choose()
		return c.shards(ctx)
	}
	return nil
}

// judge says what that means for the backups, and ends with them.
func (c *checker) judge(ctx context.Context) error {
	c.judgePacks()
	for n, b := range c.images {
		if err := c.blocks(ctx, n, b); err != nil {
			return err
		}
	}
	for id, p := range c.packs {
		if !p.going {
			c.report.Packs++
			if c.reads(id) {
				c.report.Read++
			}
		}
	}
	return nil
}

// packCheck is what is known of one pack.
type packCheck struct {
	sizes []int64 // by slot; -1 = no shard there
	bad   []bool  // by slot: wrong bytes or wrong size
	lost  string  // why it cannot be read; empty = it can

	forwards []*forwarding // where its chunks went, if it was compacted
	target   bool          // no backup names it, only forwardings
	going    bool          // it was compacted and shards of it are gone
}

type checker struct {
	r      *Repository
	o      CheckOptions
	trash  bool // deleted backups as well
	report CheckReport
	images []*Image // parallel to report.Backups; nil = cannot be opened
	packs  map[chunk.PackID]*packCheck
	moved  map[chunk.PackID]bool // packs that have a forwarding, needed or not
	window map[chunk.PackID]bool // packs whose data is read; nil = all, if any
	leaves map[nodeKey][]bool    // leaves whose chunks were read: which are damaged; nil = none
}

// roots opens every backup, and reports root records that nobody can read.
func (c *checker) roots(ctx context.Context) error {
	all, err := c.r.standings(ctx)
	if err != nil {
		return err
	}
	names, err := c.r.union(ctx, rootPrefix)
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.state == Deleted && !c.trash {
			continue
		}
		b := BackupReport{Backup: s.root.backup(s.state), Restorable: true}
		if s.state == Unconfirmed {
			addProblem(&b.Problems, "nothing proves that it was committed: too few stores, or more were lost than a commit survives")
		}
		// The record is read anew: it may be damaged since.
		rt, err := c.r.readRoot(ctx, names[s.root.name], s.root.name)
		var img *Image
		if err == nil {
			img, err = c.r.image(rt, s.state) //nolint:contextcheck // its read-ahead ends with Close
		}
		if err != nil {
			b.Restorable = false
			addProblem(&b.Problems, err.Error())
		}
		c.report.Backups = append(c.report.Backups, b)
		c.images = append(c.images, img)
	}
	for name, ms := range names {
		if _, ok := rootSession(name); !ok {
			continue
		}
		c.r.mu.Lock()
		seen := c.r.rootSeen[name] != nil
		c.r.mu.Unlock()
		if !seen {
			if _, err := c.r.readRoot(ctx, ms, name); err != nil {
				addProblem(&c.report.Problems, err.Error())
			}
		}
	}
	return ctx.Err() //nolint:wrapcheck // canceled: no sentence is missing
}

// walk reads every node of a backup and notes the packs.
func (c *checker) walk(ctx context.Context, n int, img *Image) error {
	if img == nil {
		return nil
	}
	packs, err := img.tree.Packs(ctx)
	if ctx.Err() != nil {
		return ctx.Err() //nolint:wrapcheck // as above
	}
	if err != nil {
		c.report.Backups[n].Restorable = false
		addProblem(&c.report.Backups[n].Problems, "its manifest cannot be read completely: "+err.Error())
		return nil //nolint:nilerr // it is in the report
	}
	for p := range packs {
		if c.packs[p] == nil {
			c.packs[p] = &packCheck{}
		}
	}
	return nil
}

// stores lists the packs of every store.
func (c *checker) stores(ctx context.Context) error {
	status := c.r.Status(ctx)
	for _, s := range status {
		c.report.Stores = append(c.report.Stores, StoreReport{Status: s})
	}
	if err := c.moves(ctx); err != nil {
		return err
	}
	slots := len(c.r.membership().Placements[0].Slots)
	for _, p := range c.packs {
		p.sizes, p.bad = slices.Repeat([]int64{-1}, slots), make([]bool, slots)
	}
	for n, m := range c.r.current() {
		rep := &c.report.Stores[n]
		if rep.Status.State != StoreUp {
			continue
		}
		err := m.store.List(ctx, packPrefix, func(i objstore.Info) error {
			id, ok := parsePackName(i.Name)
			p := c.packs[id]
			if !ok || p == nil {
				return nil
			}
			for slot, holder := range c.r.holders(id) {
				if holder == m {
					p.sizes[slot] = i.Size
				}
			}
			return nil
		})
		if err != nil {
			addProblem(&rep.Problems, "its packs cannot be listed: "+err.Error())
		}
		if ctx.Err() != nil {
			return ctx.Err() //nolint:wrapcheck // canceled
		}
		c.o.Progress(CheckProgress{"packs", int64(n + 1), int64(len(c.report.Stores))})
	}
	return c.measure(ctx)
}

// measure compares the sizes of shards with what the pack's length demands, and
// counts what is missing.
func (c *checker) measure(ctx context.Context) error {
	m := c.r.membership()
	index := make(map[ident]int)
	for i, id := range m.Stores {
		index[id] = i
	}
	for _, id := range c.sorted() {
		p := c.packs[id]
		if p.going = c.isGoing(p, index, id); p.going {
			continue // nobody misses the rest of its shards
		}
		length, err := c.length(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err() //nolint:wrapcheck // canceled
		}
		g := c.r.coder.Geometry()
		for slot, holder := range c.r.holders(id) {
			rep := &c.report.Stores[index[holder.id]]
			if rep.Status.State != StoreUp {
				continue
			}
			switch {
			case p.sizes[slot] < 0:
				rep.Missing++
				addProblem(&rep.Problems, fmt.Sprintf("shard %d of pack %s is missing", slot, id))
			case err == nil && p.sizes[slot] != g.ShardSize(length, slot):
				p.bad[slot] = true
				rep.Missing++
				addProblem(&rep.Problems, fmt.Sprintf("shard %d of pack %s has %d bytes instead of %d", slot, id, p.sizes[slot], g.ShardSize(length, slot)))
			}
		}
	}
	return nil
}

func (c *checker) sorted() []chunk.PackID {
	return slices.SortedFunc(maps.Keys(c.packs), func(a, b chunk.PackID) int { return slices.Compare(a[:], b[:]) })
}

// length returns the length of a pack's container.
func (c *checker) length(ctx context.Context, id chunk.PackID) (int64, error) {
	holders := c.r.holders(id)
	if holders == nil {
		return 0, fmt.Errorf("pack %s: %w", id, ErrDamaged)
	}
	f := &fetcher{r: c.r, name: packName(id), holders: holders, desperate: true}
	defer f.release()
	length, _, err := c.r.coder.Stat(ctx, f, id)
	return length, err //nolint:wrapcheck // the caller only asks whether
}

// judgePacks says of each pack whether enough shards are left.
func (c *checker) judgePacks() {
	need := c.r.membership().Data
	for id, p := range c.packs {
		good := 0
		for slot := range p.sizes {
			if p.sizes[slot] >= 0 && !p.bad[slot] {
				good++
			}
		}
		if good < need && !c.reads(id) && !p.going {
			p.lost = fmt.Sprintf("pack %s has %d good shards, %d are needed", id, good, need)
		}
	}
}

// shards verifies every cell of every shard.
func (c *checker) shards(ctx context.Context) error {
	m := c.r.membership()
	index := make(map[ident]int)
	for i, id := range m.Stores {
		index[id] = i
	}
	ids := slices.DeleteFunc(c.sorted(), func(id chunk.PackID) bool { return !c.reads(id) })
	for n, id := range ids {
		holders := c.r.holders(id)
		p := c.packs[id]
		var size int64
		for _, n := range p.sizes {
			size += max(n, 0)
		}
		if err := c.pace(ctx, size); err != nil {
			return err
		}
		group, groupCtx := errgroup.WithContext(ctx)
		for slot := range holders {
			if p.sizes[slot] < 0 || p.bad[slot] {
				continue
			}
			group.Go(func() error {
				f := &fetcher{r: c.r, name: packName(id), holders: holders, desperate: true}
				defer f.release()
				err := c.r.coder.Verify(groupCtx, f, id, slot)
				if err == nil || groupCtx.Err() != nil {
					return groupCtx.Err() //nolint:wrapcheck // canceled
				}
				p.bad[slot] = true // this goroutine's alone
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("verify pack %s: %w", id, err)
		}
		for slot, holder := range holders {
			if rep := &c.report.Stores[index[holder.id]]; p.bad[slot] && p.sizes[slot] >= 0 {
				rep.Damaged++
				addProblem(&rep.Problems, fmt.Sprintf("shard %d of pack %s is damaged", slot, id))
			}
		}
		c.o.Progress(CheckProgress{"data", int64(n + 1), int64(len(ids))})
	}
	return nil
}

func (c *checker) pace(ctx context.Context, n int64) error {
	if c.o.Pace == nil || n == 0 {
		return nil
	}
	return c.o.Pace(ctx, n)
}

// blocks finds the blocks of a backup that cannot be read.
func (c *checker) blocks(ctx context.Context, n int, img *Image) error {
	if img == nil {
		return nil
	}
	b := &c.report.Backups[n]
	g := img.tree.Geometry()
	b.BlockSize = int64(g.BlockSize)
	err := img.tree.Nodes(ctx, func(level int, first int64, ref chunk.Ref) error {
		if why := c.lost(chunk.Node, ref); why != "" {
			b.Restorable = false
			addProblem(&b.Problems, why)
		}
		if level > 0 {
			return nil
		}
		bad, err := c.leaf(ctx, img, ref, first, b)
		for i, is := range bad {
			if block := first*manifest.LeafBlocks + int64(i); is && block < g.Blocks() {
				b.Restorable = false
				b.Damaged = appendBlock(b.Damaged, block)
			}
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		b.Restorable = false
		addProblem(&b.Problems, "its manifest cannot be read completely: "+err.Error())
		err = nil
	}
	return errors.Join(err, img.Close())
}

func appendBlock(to []DamagedRange, block int64) []DamagedRange {
	if n := len(to); n > 0 && to[n-1].First+to[n-1].Count == block {
		to[n-1].Count++
		return to
	}
	return append(to, DamagedRange{block, 1})
}

// leaf returns which blocks of a leaf are damaged. Backups share most leaves,
// so that each is looked at once.
func (c *checker) leaf(ctx context.Context, img *Image, ref chunk.Ref, leaf int64, b *BackupReport) ([]bool, error) {
	key := nodeKey{ref.ID, ref.Location}
	if bad, ok := c.leaves[key]; ok {
		return bad, nil
	}
	l, err := img.tree.Leaf(ctx, leaf)
	if err != nil {
		return nil, err //nolint:wrapcheck // blocks says what it means
	}
	var bad []bool
	note := func(i int, why string) {
		if bad == nil {
			bad = make([]bool, manifest.LeafBlocks)
		}
		bad[i] = true
		addProblem(&b.Problems, why)
	}
	var pieces []piece
	var where []int
	for i := range manifest.LeafBlocks {
		at, ok := l.At(i)
		if !ok {
			continue
		}
		if err := checkLocation(at.Location); err != nil {
			note(i, err.Error())
		} else if why := c.lost(chunk.Data, at); why != "" {
			note(i, why)
		} else if c.reads(at.Pack) {
			pieces, where = append(pieces, piece{ref: at}), append(where, i)
		}
	}
	var size int64
	for _, p := range pieces {
		size += int64(p.ref.Length)
	}
	if err := c.pace(ctx, size); err != nil {
		return nil, err
	}
	if err := c.readLeaf(ctx, img, pieces, where, note); err != nil {
		return nil, err
	}
	c.leaves[key] = bad
	return bad, nil
}

// readLeaf opens all chunks of a leaf, in large reads, and one by one where one
// of these fails.
func (c *checker) readLeaf(ctx context.Context, img *Image, pieces []piece, where []int, note func(int, string)) error {
	next := 0
	for _, r := range runs(pieces) {
		mine := where[next : next+len(r.pieces)]
		next += len(r.pieces)
		if img.readRun(ctx, r, false) == nil {
			continue
		}
		for i, one := range r.pieces {
			_, err := c.r.readChunk(ctx, img.d, chunk.Data, one.ref, nil)
			if ctx.Err() != nil {
				return ctx.Err() //nolint:wrapcheck // canceled
			}
			if err != nil {
				note(mine[i], sentence(err))
			}
		}
	}
	return nil
}

// sentence is an error without the reasons that each store gave.
func sentence(err error) string {
	if lost, ok := errors.AsType[*pack.LostError](err); ok {
		return fmt.Sprintf("pack %s can be read from too few stores", lost.Pack)
	}
	return strings.SplitN(err.Error(), "\n", 2)[0]
}
