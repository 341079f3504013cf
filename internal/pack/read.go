package pack

import (
	"context"
	"crypto/subtle"
	"fmt"
	"sync"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Fetcher reads the shards of one pack. Its methods are called concurrently.
type Fetcher interface {
	// Fetch returns exactly n bytes at off of a shard's object, or all from
	// off to its end when n < 0. Any error, also that the object ends
	// before, means that this shard is out for this range. The Coder does
	// not modify the bytes, and does not look at them after its call ended.
	Fetch(ctx context.Context, shard int, off, n int64) ([]byte, error)
}

// ReadAt fills p with the container's bytes at off. What lies in the healthy
// shards is fetched with one range each, in parallel; cells that are missing
// or wrong, and only those, are computed from k others. The Report names bad
// shards also when p could be filled. Errors: a *LostError (ErrLost) when too
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
}

func (c *Coder) newStripes(f Fetcher, id chunk.PackID, all cellRange) *stripes {
	n := c.g.Total() * int(all.end-all.first)
	return &stripes{
		c: c, f: f, id: id, all: all,
		cells: make([][]byte, n), tried: make([]bool, n), bad: make([]error, c.g.Total()),
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
	}
	return r
}

// fetch gets the range of each shard, in parallel. It fails only with the
// context; whatever else goes wrong leaves cells missing.
func (s *stripes) fetch(ctx context.Context, ranges []cellRange) error {
	var last int
	busy := 0
	for i, r := range ranges {
		if !r.empty() {
			last = i
			busy++
		}
	}
	if busy == 1 {
		s.fetchShard(ctx, last, ranges[last])
	} else {
		var wg sync.WaitGroup
		for i, r := range ranges {
			if !r.empty() {
				wg.Go(func() { s.fetchShard(ctx, i, r) })
			}
		}
		wg.Wait()
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("read pack %s: %w", s.id, err)
	}
	return nil
}

// fetchShard gets a range of one shard and keeps the cells that are right. It
// touches only what is this shard's.
func (s *stripes) fetchShard(ctx context.Context, shard int, r cellRange) {
	for cell := r.first; cell < r.end; cell++ {
		s.tried[s.index(shard, cell)] = true
	}
	n := (r.end - r.first) * storedCell
	b, err := s.f.Fetch(ctx, shard, cellOffset(r.first), n)
	if err == nil && int64(len(b)) != n {
		err = fmt.Errorf("%d bytes instead of %d: %w", len(b), n, ErrCorrupt)
	}
	if err != nil {
		s.fault(shard, err)
		return
	}
	t := borrow(&s.c.cellTags)
	defer s.c.cellTags.Put(t)
	for cell := r.first; cell < r.end; cell++ {
		stored := b[(cell-r.first)*storedCell:][:storedCell]
		payload, tag := stored[:cellSize:cellSize], stored[cellSize:]
		if subtle.ConstantTimeCompare(t.tag(payload, s.id, shard, cell), tag) == 1 {
			s.cells[s.index(shard, cell)] = payload
		} else {
			s.fault(shard, fmt.Errorf("cell %d: %w", cell, ErrCorrupt))
		}
	}
}

func (s *stripes) fault(shard int, err error) {
	if s.bad[shard] == nil {
		s.bad[shard] = err
	}
}
