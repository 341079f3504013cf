package repository

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/pack"
)

const (
	// minDead is how many bytes of a pack have to be dead: what is less is not
	// worth the requests.
	minDead = 64 << 10
	// maxMoved is how many chunks one prune moves: what it remembers of each is
	// some 100 bytes. The next one goes on.
	maxMoved = 1 << 20
	// sourceCost is what a pack counts whose chunks move, beside them: it is on the
	// list of P5, which has to fit into an object.
	sourceCost = 16
	// smallPack is what a pack has at most that compactions merge with others.
	smallPack = pack.TargetSize / 4
	// leastMerged is how many of these there have to be, of one project.
	leastMerged = 4
	// typicalChunk is the sealed size of a chunk by which their number is guessed.
	typicalChunk = 16 << 10
)

// compaction is what a prune compacts of one project.
type compaction struct {
	project string
	packs   map[chunk.PackID]bool // what goes
	sources map[chunk.PackID]bool // packs that manifests name, whose chunks those have
}

// trackChunks says which chunks are told apart while backups are gone through.
func (p *pruner) trackChunks() {
	p.chunks = liveChunks{
		packs: make(map[chunk.PackID]*liveSet), moved: make(map[chunk.PackID]ident), forced: maps.Clone(p.unfinished),
		until: make(map[string]time.Time), off: p.o.Compact >= 1,
	}
	if !p.chunks.off {
		for id := range p.damage.packs {
			p.chunks.forced[id] = true
		}
	}
	for old, fs := range p.moves.all {
		for _, f := range fs {
			if latest := p.chunks.moved[old]; bytes.Compare(f.session[:], latest[:]) > 0 {
				p.chunks.moved[old] = f.session
			}
		}
	}
	var total int64
	for _, size := range p.packs {
		total += p.container(size)
	}
	p.chunks.expect(total/typicalChunk, uint64(p.id[0])<<56|uint64(p.id[1])<<48)
}

// container is about how many bytes a pack has that takes size on all stores.
func (p *pruner) container(size int64) int64 {
	return size * int64(p.keys.Data) / int64(p.keys.Data+p.keys.Parity)
}

// plan is the end of P4: which packs are compacted.
func (p *pruner) plan(ctx context.Context) error {
	p.chunks.frozen = true
	for id := range p.moves.remains {
		if len(p.moves.remains) <= p.most(maxRemains) {
			break
		}
		delete(p.moves.remains, id)
		p.report.Left++
	}
	p.gone = make(map[chunk.PackID]int64)
	if err := p.findRemedies(ctx); err != nil {
		return err
	}
	if err := p.choosePacks(ctx); err != nil {
		return err
	}
	needed := make(map[chunk.PackID]bool)
	for _, c := range p.plans {
		maps.Copy(needed, c.sources)
	}
	maps.Copy(needed, p.moves.remains)
	maps.DeleteFunc(p.chunks.packs, func(id chunk.PackID, _ *liveSet) bool { return !needed[id] })
	return nil
}

// movable is a pack that may be compacted.
type movable struct {
	id      chunk.PackID
	project string
	sources []chunk.PackID // packs that manifests name, whose chunks it has
	live    int64          // sealed bytes
}

// choosePacks plans for packs of which enough is dead, and then for small ones.
func (p *pruner) choosePacks(ctx context.Context) error {
	c := &choice{p: p, plans: make(map[string]*compaction), left: maxMoved}
	small := make(map[string][]movable)
	ids := slices.AppendSeq(slices.Collect(maps.Keys(p.packs)), maps.Keys(p.heals.packs))
	slices.SortFunc(ids, comparePacks)
	ids = slices.Compact(ids)
	for n, id := range ids {
		p.tell("packs", int64(n), int64(len(ids)))
		x, ok := p.movable(id)
		if !ok {
			continue
		}
		total, heals := p.container(p.packs[id]), p.heals.packs[id] != nil
		forced := p.unfinished[id] || heals
		if !forced && !p.worth(x.live, total) {
			if p.mergeable(id, total) {
				small[x.project] = append(small[x.project], x)
			}
			continue
		}
		size, err := total, error(nil)
		if !heals { // what it should have, the backups say
			size, err = p.chunkBytes(ctx, x.project, id)
		}
		if cerr := ctx.Err(); cerr != nil {
			return fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		if err != nil {
			addProblem(&p.report.Problems, fmt.Sprintf("pack %s is not compacted: %v", id, err))
			continue
		}
		if forced || p.worth(x.live, size) {
			c.take(x)
		}
	}
	for _, project := range slices.Sorted(maps.Keys(small)) {
		c.merge(small[project])
	}
	return nil
}

// movable says what of a pack would move. Not ok: it cannot be compacted now.
func (p *pruner) movable(id chunk.PackID) (x movable, ok bool) {
	x = movable{id: id, sources: slices.Clone(p.moves.users[id])}
	if p.chunks.packs[id] != nil && !p.moves.remains[id] {
		x.sources = append(x.sources, id)
	}
	if _, moved := p.moves.newest[id]; moved || len(x.sources) == 0 || p.owners[packSession(id)] == Undecided || p.moves.held[id] {
		return x, false
	}
	if x.project, ok = p.projectOf(x.sources); !ok || p.chunks.until[x.project].After(p.r.o.Now()) {
		return x, false // what is retained could not go
	}
	x.live = p.moves.alive[id] + p.chunks.packs[id].bytes()
	return x, true
}

// worth says whether enough of total bytes is dead.
func (p *pruner) worth(live, total int64) bool {
	dead := total - live
	return p.o.Compact < 1 && dead >= minDead && float64(dead) >= p.o.Compact*float64(total)
}

// projectOf returns the project of packs whose chunks are all told apart.
func (p *pruner) projectOf(sources []chunk.PackID) (project string, ok bool) {
	for i, s := range sources {
		live := p.chunks.packs[s]
		if live == nil || i > 0 && live.project != project {
			return "", false
		}
		project = live.project
	}
	return project, true
}

// chunkBytes is the sum of the lengths of a pack's chunks.
func (p *pruner) chunkBytes(ctx context.Context, project string, id chunk.PackID) (int64, error) {
	toc, err := p.contents(ctx, project, id)
	var n int64
	for _, e := range toc {
		n += int64(e.Length)
	}
	return n, err
}

// contents reads a pack's table of contents.
func (p *pruner) contents(ctx context.Context, project string, id chunk.PackID) ([]pack.Entry, error) {
	d, err := p.r.domain(project)
	if err != nil {
		return nil, err
	}
	length, err := p.r.containerLength(ctx, id)
	if err != nil {
		return nil, err
	}
	toc, err := pack.ParseTOC(d, id, length, func(b []byte, off int64) error { return p.r.readContainer(ctx, id, b, off) })
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return toc, nil
}

// listCompacted adds to the list of P5 what is compacted: the packs that go, those
// that manifests name for their chunks, and those that moved and are still there.
// A pack that nobody needs and that moved is on the list too: what has its chunks
// goes, and no writer would know that by the pack's own name.
func (p *pruner) listCompacted(c *condemned) {
	compacts := func(ids map[chunk.PackID]bool) {
		for id := range ids {
			c.packs[id], c.compact[id] = struct{}{}, struct{}{}
		}
	}
	for _, plan := range p.plans {
		compacts(plan.packs)
		compacts(plan.sources)
	}
	compacts(p.moves.remains)
	for old := range p.moves.all {
		if !p.marked[old] && !p.moves.later[old] {
			c.packs[old] = struct{}{}
		}
	}
}
