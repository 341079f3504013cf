package pack

import (
	"context"
	"fmt"
	"time"

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
		if err := s.gather(ctx, run, wanted); err != nil {
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

// gather reads shards until every stripe of the run has k good cells, or those
// that are wanted.
func (s *stripes) gather(ctx context.Context, run cellRange, wanted []cellRange) error {
	enough := func() bool { return s.short(run, wanted) == 0 }
	for {
		short := s.short(run, wanted)
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
		patience := s.patience(ranges)
		if picked == 0 {
			if !s.waiting(false) {
				return &LostError{Pack: s.id, Need: s.c.g.Data, Bad: s.report().Bad}
			}
			patience = 0 // nobody is left to ask instead
		}
		s.launch(ctx, ranges)
		if err := s.await(ctx, patience, enough); err != nil {
			return err
		}
	}
}

// short returns how many shards more the run needs.
func (s *stripes) short(run cellRange, wanted []cellRange) int {
	short := 0
	for cell := run.first; cell < run.end; cell++ {
		lacks := false
		for shard, r := range wanted {
			lacks = lacks || cell >= r.first && cell < r.end && s.cell(shard, cell) == nil
		}
		if lacks {
			short = max(short, s.c.g.Data-s.good(cell))
		}
	}
	return short
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
	lacks := false
	for shard, r := range wanted {
		lacks = lacks || cell >= r.first && cell < r.end && s.cell(shard, cell) == nil
	}
	if !lacks {
		return nil // it came late, but first
	}
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
// header is genuine. Those that have failed or are late are asked last, and one
// that is late now is not waited for if there is another.
func (s *stripes) length(ctx context.Context) (int64, error) {
	if length, ok := s.c.known(s.id); ok {
		return length, nil
	}
	var order []int
	for _, last := range []bool{false, true} {
		for shard := range s.c.g.Total() {
			if (s.bad[shard] != nil || s.late[shard]) == last {
				order = append(order, shard)
			}
		}
	}
	type answer struct {
		shard  int
		length int64
		err    error
	}
	ctx, overtake := context.WithCancelCause(ctx)
	answers := make(chan answer, len(order))
	asked := 0
	defer func() {
		overtake(ErrOvertaken)
		for ; asked > 0; asked-- {
			<-answers
		}
	}()
	for {
		if len(order) > 0 {
			shard := order[0]
			order = order[1:]
			asked++
			go func() {
				length, err := s.c.fetchHeader(ctx, s.f, s.id, shard)
				answers <- answer{shard, length, err}
			}()
		}
		var over <-chan time.Time
		if s.hedged && len(order) > 0 {
			if patience := s.f.Patience(headerSize); patience > 0 {
				over = time.After(patience)
			}
		}
		select {
		case a := <-answers:
			asked--
			switch {
			case a.err == nil:
				return a.length, nil
			case ctx.Err() != nil:
				return 0, s.canceled(ctx)
			}
			s.fault(a.shard, a.err)
			if asked == 0 && len(order) == 0 {
				return 0, &LostError{Pack: s.id, Need: s.c.g.Data, Bad: s.report().Bad}
			}
		case <-over:
		case <-ctx.Done():
			return 0, s.canceled(ctx)
		}
	}
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
