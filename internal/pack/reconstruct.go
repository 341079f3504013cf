package pack

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// complete makes every wanted cell available, reading other shards over
// exactly the runs of cells where one is missing. Cells of a shard past its
// end are given as zeros only if beyond is set; else they are ErrRange.
func (s *stripes) complete(ctx context.Context, wanted []cellRange, beyond bool) error {
	missing := func(cell int64) bool {
		for shard, r := range wanted {
			if cell >= r.first && cell < r.end && s.cell(shard, cell) == nil {
				return true
			}
		}
		return false
	}
	var length int64
	for cell := s.all.first; cell < s.all.end; cell++ {
		if !missing(cell) {
			continue
		}
		if length == 0 {
			var err error
			if length, err = s.length(ctx); err != nil {
				return err
			}
			s.supplyZeros(length)
			if err := s.checkEnd(length, wanted, beyond); err != nil {
				return err
			}
		}
		run := cellRange{cell, cell + 1}
		for run.end < s.all.end && missing(run.end) {
			run.end++
		}
		if err := s.gather(ctx, run); err != nil {
			return err
		}
		for ; cell < run.end; cell++ {
			if err := s.reconstruct(cell, wanted); err != nil {
				return err
			}
		}
		cell-- // the loop's own step
	}
	return nil
}

// supplyZeros puts in place the cells of data shards past the container's
// end, which are zeros and not stored.
func (s *stripes) supplyZeros(length int64) {
	for shard := range s.c.g.Data {
		for cell := max(s.all.first, s.c.g.cells(length, shard)); cell < s.all.end; cell++ {
			at := s.index(shard, cell)
			s.cells[at], s.tried[at] = zeroCell[:], true
		}
	}
}

// checkEnd refuses a range past the container's end.
func (s *stripes) checkEnd(length int64, wanted []cellRange, beyond bool) error {
	if beyond {
		return nil
	}
	for shard, r := range wanted {
		if !r.empty() && r.end > s.c.g.cells(length, shard) {
			return fmt.Errorf("pack %s of %d bytes: %w", s.id, length, ErrRange)
		}
	}
	return nil
}

// gather reads shards until every stripe of the run has k good cells.
func (s *stripes) gather(ctx context.Context, run cellRange) error {
	for {
		short := 0
		for cell := run.first; cell < run.end; cell++ {
			short = max(short, s.c.g.Data-s.good(cell))
		}
		if short == 0 {
			return nil
		}
		ranges := make([]cellRange, s.c.g.Total())
		picked := 0
		// Shards that have failed already come last: the store of a shard
		// with one bad cell may still have the others.
		for _, failed := range []bool{false, true} {
			for shard := range ranges {
				if picked < short && (s.bad[shard] != nil) == failed {
					if ranges[shard] = s.untried(shard, run); !ranges[shard].empty() {
						picked++
					}
				}
			}
		}
		if picked == 0 {
			return &LostError{Pack: s.id, Need: s.c.g.Data, Bad: s.report().Bad}
		}
		if err := s.fetch(ctx, ranges); err != nil {
			return err
		}
	}
}

// good counts the cells of a stripe that are there.
func (s *stripes) good(cell int64) int {
	n := 0
	for shard := range s.c.g.Total() {
		if s.cell(shard, cell) != nil {
			n++
		}
	}
	return n
}

// untried returns the part of the run that was not fetched from a shard.
func (s *stripes) untried(shard int, run cellRange) cellRange {
	var r cellRange
	for cell := run.first; cell < run.end; cell++ {
		if !s.tried[s.index(shard, cell)] {
			r = r.join(cellRange{cell, cell + 1})
		}
	}
	return r
}

// reconstruct computes the wanted cells of one stripe that are missing.
func (s *stripes) reconstruct(cell int64, wanted []cellRange) error {
	n := s.c.g.Total()
	stripe := make([][]byte, n)
	required := make([]bool, n)
	for shard := range n {
		stripe[shard] = s.cell(shard, cell)
		r := wanted[shard]
		required[shard] = stripe[shard] == nil && cell >= r.first && cell < r.end
	}
	if s.c.rs == nil {
		return &LostError{Pack: s.id, Need: s.c.g.Data, Bad: s.report().Bad}
	}
	if err := s.c.rs.ReconstructSome(stripe, required); err != nil {
		return fmt.Errorf("pack %s: compute lost cells: %w", s.id, err)
	}
	for shard, is := range required {
		if is {
			s.cells[s.index(shard, cell)] = stripe[shard]
			s.rebuilt += cellSize
		}
	}
	return nil
}

// length returns the length of the container, from the first shard whose
// header is genuine, those that have not failed first.
func (s *stripes) length(ctx context.Context) (int64, error) {
	if length, ok := s.c.known(s.id); ok {
		return length, nil
	}
	for _, failed := range []bool{false, true} {
		for shard := range s.c.g.Total() {
			if (s.bad[shard] != nil) != failed {
				continue
			}
			length, err := s.c.fetchHeader(ctx, s.f, s.id, shard)
			if err == nil {
				return length, nil
			}
			if ctx.Err() != nil {
				return 0, fmt.Errorf("read pack %s: %w", s.id, ctx.Err())
			}
			s.fault(shard, err)
		}
	}
	return 0, &LostError{Pack: s.id, Need: s.c.g.Data, Bad: s.report().Bad}
}

func (c *Coder) fetchHeader(ctx context.Context, f Fetcher, id chunk.PackID, shard int) (int64, error) {
	b, err := f.Fetch(ctx, shard, 0, headerSize)
	if err != nil {
		return 0, err //nolint:wrapcheck // the report names the shard
	}
	if len(b) != headerSize {
		return 0, fmt.Errorf("%d bytes instead of a header: %w", len(b), ErrCorrupt)
	}
	return c.decodeHeader(b, id, shard)
}

// Stat returns the length of the container and which shards have no genuine
// header; it reads the headers of all shards. The error is a *LostError when
// none has.
func (c *Coder) Stat(ctx context.Context, f Fetcher, id chunk.PackID) (int64, Report, error) {
	s := c.newStripes(f, id, cellRange{})
	var length int64
	for shard := range c.g.Total() {
		n, err := c.fetchHeader(ctx, f, id, shard)
		if err != nil {
			s.fault(shard, err)
			continue
		}
		length = n
	}
	switch {
	case ctx.Err() != nil:
		return 0, Report{}, fmt.Errorf("read pack %s: %w", id, ctx.Err())
	case length == 0:
		return 0, s.report(), &LostError{Pack: id, Need: 1, Bad: s.report().Bad}
	}
	return length, s.report(), nil
}

// Verify reads the whole object of one shard and checks every byte of it.
// The error is ErrCorrupt, ErrVersion, the Fetcher's or the context's.
func (c *Coder) Verify(ctx context.Context, f Fetcher, id chunk.PackID, shard int) error {
	if shard < 0 || shard >= c.g.Total() {
		return fmt.Errorf("pack %s: there is no shard %d with geometry %s", id, shard, c.g)
	}
	fail := func(err error) error { return fmt.Errorf("pack %s, shard %d: %w", id, shard, err) }
	b, err := f.Fetch(ctx, shard, 0, -1)
	if err != nil {
		return fail(err)
	}
	length, err := c.decodeHeader(b, id, shard)
	if err != nil {
		return fail(err)
	}
	if want := c.g.ShardSize(length, shard); int64(len(b)) != want {
		return fail(fmt.Errorf("object of %d bytes instead of %d: %w", len(b), want, ErrCorrupt))
	}
	all := cellRange{0, c.g.cells(length, shard)}
	s := c.newStripes(inMemory(b), id, all)
	if !all.empty() {
		s.fetchShard(ctx, shard, all)
	}
	if s.bad[shard] != nil {
		return fail(s.bad[shard])
	}
	return nil
}

// inMemory is the Fetcher of one shard that was read already.
type inMemory []byte

// Fetch returns a part of it.
func (b inMemory) Fetch(_ context.Context, _ int, off, n int64) ([]byte, error) {
	if off+n > int64(len(b)) {
		return nil, errors.New("shard ends before")
	}
	return b[off : off+n], nil
}

// Rebuild computes the missing shards of a pack from k others and returns
// their complete objects, in the order of missing, equal byte for byte to
// those that Encode made. Shards named missing are not read. Other shards
// that turn out bad are worked around while k are good, and reported.
func (c *Coder) Rebuild(ctx context.Context, f Fetcher, id chunk.PackID, missing []int) ([][]byte, Report, error) {
	gone := make([]bool, c.g.Total())
	for _, shard := range missing {
		if shard < 0 || shard >= c.g.Total() {
			return nil, Report{}, fmt.Errorf("pack %s: there is no shard %d with geometry %s", id, shard, c.g)
		}
		gone[shard] = true
	}
	probe := c.newStripes(f, id, cellRange{})
	for shard, is := range gone {
		if is {
			probe.fault(shard, errMissing)
		}
	}
	length, err := probe.length(ctx)
	if err != nil {
		return nil, probe.report(), err
	}
	all := cellRange{0, c.g.cells(length, 0)}
	s := c.newStripes(f, id, all)
	wanted := make([]cellRange, c.g.Total())
	for shard, is := range gone {
		if !is {
			continue
		}
		s.bad[shard] = errMissing
		wanted[shard] = all
		for cell := range all.end {
			s.tried[s.index(shard, cell)] = true
		}
	}
	if err := s.complete(ctx, wanted, true); err != nil {
		return nil, s.report(), err
	}
	out := make([][]byte, len(missing))
	t := borrow(&c.cellTags)
	defer c.cellTags.Put(t)
	for i, shard := range missing {
		size := c.g.ShardSize(length, shard)
		b := c.appendHeader(aligned(nil, size)[:0], id, shard, length)
		for cell := range c.g.cells(length, shard) {
			b = append(b, s.cell(shard, cell)...)
			b = append(b, t.tag(s.cell(shard, cell), id, shard, cell)...)
		}
		out[i] = b
	}
	return out, s.report(), nil
}

var errMissing = errors.New("shard is missing")
