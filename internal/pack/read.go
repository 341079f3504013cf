package pack

import (
	"context"
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Fetcher reads the shards of one pack. Its methods are called concurrently.
type Fetcher interface {
	// Fetch returns exactly n bytes at off of a shard's object, or all from
	// off to its end when n < 0. Any error, also that the object ends
	// before, means that this shard is out for this range. The Coder does
	// not modify the bytes, and does not look at them after its call ended.
	Fetch(ctx context.Context, shard int, off, n int64) ([]byte, error)
	// Patience returns how long a Fetch of n bytes may take before ReadAt asks
	// other shards as well; 0 = as long as it takes. The context of a Fetch that
	// is not needed any more is then canceled with the cause ErrOvertaken, and
	// it should return at once: ReadAt waits for it.
	Patience(n int64) time.Duration
}

// ReadAt fills p with the container's bytes at off. What lies in the healthy
// shards is fetched with one range each, in parallel; cells that are missing
// or wrong, and only those, are computed from k others; so are those that are
// late, if that is done first. The Report names bad and late shards also when p
// could be filled. Errors: a *LostError (ErrLost) when too
// few shards are left, ErrRange past the container's end (the zeros that fill
// its last cell may be returned instead), the context's.
func (c *Coder) ReadAt(ctx context.Context, f Fetcher, id chunk.PackID, p []byte, off int64) (Report, error) {
	if off < 0 || off > MaxContainer || int64(len(p)) > MaxContainer-off {
		return Report{}, fmt.Errorf("pack %s: read %d bytes at %d: %w", id, len(p), off, ErrRange)
	}
	if len(p) == 0 {
		return Report{}, nil
	}
	ranges := make([]cellRange, c.g.Total())
	all := cellRange{}
	c.g.pieces(off, len(p), func(q piece) {
		r := cellRange{q.offset / cellSize, (q.offset + int64(q.length) + cellSize - 1) / cellSize}
		ranges[q.shard] = ranges[q.shard].join(r)
		all = all.join(r)
	})
	s := c.newStripes(f, id, all)
	s.hedged = c.g.Parity > 0
	ctx, overtake := context.WithCancelCause(ctx)
	defer s.drain()
	defer overtake(ErrOvertaken)
	if err := s.fetch(ctx, ranges); err != nil {
		return s.report(), err
	}
	if err := s.complete(ctx, ranges, false); err != nil {
		return s.report(), err
	}
	done := 0
	c.g.pieces(off, len(p), func(q piece) {
		for n := 0; n < q.length; {
			at := q.offset + int64(n)
			m := copy(p[done:done+q.length-n], s.cell(q.shard, at/cellSize)[at%cellSize:])
			n += m
			done += m
		}
	})
	return s.report(), nil
}

// cellRange is a run of cells: those from first up to, not including, end.
type cellRange struct{ first, end int64 }

func (r cellRange) empty() bool { return r.first >= r.end }

func (r cellRange) join(o cellRange) cellRange {
	if r.empty() {
		return o
	}
	return cellRange{min(r.first, o.first), max(r.end, o.end)}
}

// stripes holds cells of all shards of a pack over one range of cell numbers
// while they are gathered.
type stripes struct {
	c     *Coder
	f     Fetcher
	id    chunk.PackID
	all   cellRange
	cells [][]byte // [shard*span+cell-first]; nil = not there (yet)
	tried []bool   // same index: fetched, or not to be fetched
	bad   []error  // by shard: the first thing wrong with it

	rebuilt int64

	hedged  bool        // shards that are late are not waited for
	flights chan flight // that have ended
	flying  []int       // by shard: fetches on their way
	late    []bool      // by shard: others were asked because it did not answer
}

func (c *Coder) newStripes(f Fetcher, id chunk.PackID, all cellRange) *stripes {
	n := c.g.Total() * int(all.end-all.first)
	return &stripes{
		c: c, f: f, id: id, all: all,
		cells: make([][]byte, n), tried: make([]bool, n), bad: make([]error, c.g.Total()),
		flying: make([]int, c.g.Total()), late: make([]bool, c.g.Total()),
	}
}

func (s *stripes) index(shard int, cell int64) int {
	return shard*int(s.all.end-s.all.first) + int(cell-s.all.first)
}

func (s *stripes) cell(shard int, cell int64) []byte { return s.cells[s.index(shard, cell)] }

func (s *stripes) report() Report {
	r := Report{Rebuilt: s.rebuilt}
	for i, err := range s.bad {
		if err != nil {
			r.Bad = append(r.Bad, BadShard{Shard: i, Err: err})
		}
		if s.late[i] && s.flying[i] > 0 {
			r.Late = append(r.Late, i)
		}
	}
	return r
}

// fetch gets the range of each shard, in parallel. It fails only with the
// context; whatever else goes wrong, or takes too long, leaves cells missing.
func (s *stripes) fetch(ctx context.Context, ranges []cellRange) error {
	last, busy := 0, 0
	for i, r := range ranges {
		if !r.empty() {
			last = i
			busy++
		}
	}
	patience := s.patience(ranges)
	if busy == 1 && patience == 0 {
		s.mark(last, ranges[last])
		s.land(s.fly(ctx, last, ranges[last]))
		return s.canceled(ctx)
	}
	s.launch(ctx, ranges)
	return s.await(ctx, patience, func() bool { return false })
}

func (s *stripes) canceled(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read pack %s: %w", s.id, err)
	}
	return nil
}

// mark notes that a range of a shard is being asked for.
func (s *stripes) mark(shard int, r cellRange) {
	for cell := r.first; cell < r.end; cell++ {
		s.tried[s.index(shard, cell)] = true
	}
}

// fly gets a range of one shard and checks its cells. It runs in a goroutine of
// its own and touches nothing that is shared.
func (s *stripes) fly(ctx context.Context, shard int, r cellRange) flight {
	n := (r.end - r.first) * storedCell
	b, err := s.f.Fetch(ctx, shard, cellOffset(r.first), n)
	if err == nil && int64(len(b)) != n {
		err = fmt.Errorf("%d bytes instead of %d: %w", len(b), n, ErrCorrupt)
	}
	out := flight{shard: shard, r: r, err: err}
	if err != nil {
		return out
	}
	out.cells = make([][]byte, r.end-r.first)
	t := borrow(&s.c.cellTags)
	defer s.c.cellTags.Put(t)
	for cell := r.first; cell < r.end; cell++ {
		stored := b[(cell-r.first)*storedCell:][:storedCell]
		payload, tag := stored[:cellSize:cellSize], stored[cellSize:]
		if subtle.ConstantTimeCompare(t.tag(payload, s.id, shard, cell), tag) == 1 {
			out.cells[cell-r.first] = payload
		} else if out.err == nil {
			out.err = fmt.Errorf("cell %d: %w", cell, ErrCorrupt)
		}
	}
	return out
}

// land keeps the cells that are right.
func (s *stripes) land(f flight) {
	for i, payload := range f.cells {
		if payload != nil {
			s.cells[s.index(f.shard, f.r.first+int64(i))] = payload
		}
	}
	if f.err != nil {
		s.fault(f.shard, f.err)
	}
}

func (s *stripes) fault(shard int, err error) {
	if s.bad[shard] == nil {
		s.bad[shard] = err
	}
}
