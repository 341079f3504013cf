package repository

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// Check proves that every backup can be restored: its root record, its votes,
// every node of its manifest, and of every pack enough shards; with ReadData
// every byte. It writes nothing, but for Publish. The error is one of the check
// itself; what it finds is in the report.
func (r *Repository) Check(ctx context.Context, o CheckOptions) (CheckReport, error) {
	if err := o.validate(); err != nil {
		return CheckReport{}, err
	}
	c := newChecker(r, o)
	err := c.find(ctx)
	if err == nil {
		err = c.judge(ctx)
	}
	c.tellSealed()
	if err == nil && o.Publish && o.ReadData {
		err = c.publish(ctx)
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
	return &checker{r: r, o: o, packs: make(map[chunk.PackID]*packCheck), moved: make(map[chunk.PackID]bool), leaves: make(map[nodeKey][]error), missed: make(map[int][]leafRange)}
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
		return c.data(ctx)
	}
	return nil
}

// packCheck is what is known of one pack.
type packCheck struct {
	sizes []int64 // by slot; -1 = no shard there
	bad   []bool  // by slot: wrong bytes or wrong size
	lost  string  // why it cannot be read; empty = it can
	hit   bool    // something in it could not be read
	doubt bool    // something of it could not be read because stores did not answer

	verified bool // every shard was read
	opened   bool // its chunks were read too: failed says which cannot be
	recalled bool // all of that by an earlier check, which found nothing
	failed   map[chunk.Ref]error
	whole    bool // shards of it were rebuilt

	forwards []*forwarding // where its chunks went, if it was compacted
	target   bool          // no backup names it, only forwardings
	users    []*packCheck  // of a target: the packs that those are of
	going    bool          // it was compacted and shards of it are gone
	sealed   bool          // it was compacted, and the password does not open where to
}

type checker struct {
	r          *Repository
	o          CheckOptions
	trash      bool // deleted backups as well
	report     CheckReport
	images     []*Image // parallel to report.Backups; nil = cannot be opened
	packs      map[chunk.PackID]*packCheck
	moved      map[chunk.PackID]bool // packs that have a forwarding, needed or not
	window     map[chunk.PackID]bool // packs whose data is read; nil = all, if any
	order      []chunk.PackID        // the same, as they are read
	leaves     map[nodeKey][]error   // leaves whose chunks were read: why some cannot be; nil = all can
	down       map[ident]bool        // members that did not answer when they were listed or read
	sealed     sealedFinds           // what the password does not open
	unsure     bool                  // where a pack moved could not be read
	unread     []string              // shards that could not, and why
	known      *damage               // of earlier checks (Publish)
	missed     map[int][]leafRange   // by backup: leaves that could not be read when chunks were opened
	opened     map[string]bool       // sessions of backups whose chunks were opened in all packs that were told to be sound
	toldOpened bool                  // Opens was told
	there      map[chunk.PackID]bool // of the packs in known that no backup needs, those that a store has
}

// roots opens every backup, and reports root records that nobody can read.
func (c *checker) roots(ctx context.Context) error {
	all, _, err := c.r.surveyBut(ctx, c.sealedRoot)
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
		if !seen && !c.sealed.roots[name] {
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
	b := &c.report.Backups[n]
	err := img.tree.Reach(ctx, func(chunk.ID) bool { return false }, func(_ chunk.Kind, ref chunk.Ref) {
		if c.packs[ref.Pack] == nil {
			c.packs[ref.Pack] = &packCheck{}
		}
	}, func(_, _ int64, ref chunk.Ref, err error) error {
		c.hit(ref.Pack, err)
		b.cannot(err, unreadableManifest(err))
		return nil
	})
	if ctx.Err() != nil {
		return ctx.Err() //nolint:wrapcheck // as above
	}
	if err != nil {
		b.cannot(err, unreadableManifest(err))
	}
	return nil
}

func unreadableManifest(err error) string {
	return "its manifest cannot be read completely: " + sentence(err)
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
	if err := c.readKnown(ctx); err != nil {
		return err
	}
	slots := len(c.r.membership().Placements[0].Slots)
	for _, p := range c.packs {
		p.sizes, p.bad = slices.Repeat([]int64{-1}, slots), make([]bool, slots)
	}
	c.down = make(map[ident]bool)
	for n, m := range c.members() {
		rep := &c.report.Stores[n]
		if rep.Status.State != StoreUp {
			c.down[m.id] = true
			continue
		}
		err := m.store.List(ctx, packPrefix, func(i objstore.Info) error {
			id, ok := parsePackName(i.Name)
			p := c.packs[id]
			if ok && p == nil && c.known.has(id) {
				c.there[id] = true
			}
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
			c.down[m.id] = true // what it has, nobody knows
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
	index := c.index()
	for _, id := range c.sorted() {
		p := c.packs[id]
		if p.going = c.isGoing(p, index, id); p.going {
			continue // nobody misses the rest of its shards
		}
		length, err := c.r.containerLength(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err() //nolint:wrapcheck // canceled
		}
		g := c.r.coder.Geometry()
		for slot, holder := range c.r.holders(id) {
			i, known := index[holder.id]
			if !known || c.report.Stores[i].Status.State != StoreUp {
				continue
			}
			rep := &c.report.Stores[i]
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

// index says where in the report a member is.
func (c *checker) index() map[ident]int {
	index := make(map[ident]int)
	for i, m := range c.members() {
		index[m.id] = i
	}
	return index
}

// members are the stores that the report is of: not those that joined meanwhile.
func (c *checker) members() []*member {
	ms := c.r.current()
	return ms[:min(len(ms), len(c.report.Stores))]
}

func (c *checker) sorted() []chunk.PackID {
	return slices.SortedFunc(maps.Keys(c.packs), func(a, b chunk.PackID) int { return slices.Compare(a[:], b[:]) })
}
