package pack

import (
	"context"
	"errors"
	"time"
)

// Reads do not wait for the slowest store. A shard that has not answered in the
// time that the Fetcher calls patience is late: as many others are asked as make
// up for it, and the first that are enough win. Those that are still on their way
// then are canceled, and waited for: nothing is written to that belongs to the
// read when it has returned.
//
//	asked -> answered            (good cells are kept, whenever they come)
//	      -> late -> answered    (before the others: they are canceled)
//	              -> overtaken   (canceled)
//
// A read whose shards all answer in time asks for nothing more than it needs.

// ErrOvertaken is the cause with which a Fetch is canceled whose bytes are not
// needed any more: others were quicker, or the read has failed.
var ErrOvertaken = errors.New("other shards were quicker")

// flight is one Fetch that has ended.
type flight struct {
	shard int
	r     cellRange
	cells [][]byte // of the range; nil = wrong
	err   error    // the first thing wrong
}

// launch starts to fetch the range of each shard. Who launches drains.
func (s *stripes) launch(ctx context.Context, ranges []cellRange) {
	if s.flights == nil {
		s.flights = make(chan flight, s.c.g.Total())
	}
	for shard, r := range ranges {
		if !r.empty() {
			s.mark(shard, r)
			s.flying[shard]++
			go func() { s.flights <- s.fly(ctx, shard, r) }()
		}
	}
}

// await takes what comes until every fetch has ended or enough came. When
// patience is not 0 it waits no longer, and not for what was late before: the
// shards that are on their way then are late.
func (s *stripes) await(ctx context.Context, patience time.Duration, enough func() bool) error {
	var over <-chan time.Time
	if patience > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		over = t.C
	}
	for s.waiting(patience > 0) && !enough() {
		select {
		case f := <-s.flights:
			s.flying[f.shard]--
			s.land(f)
		case <-over:
			for shard, n := range s.flying {
				s.late[shard] = s.late[shard] || n > 0
			}
			return s.canceled(ctx)
		case <-ctx.Done():
			return s.canceled(ctx)
		}
	}
	return s.canceled(ctx)
}

// waiting says whether a fetch is on its way; of those that are late, only if
// they are not to be left behind.
func (s *stripes) waiting(leave bool) bool {
	for shard, n := range s.flying {
		if n > 0 && (!leave || !s.late[shard]) {
			return true
		}
	}
	return false
}

// drain waits for the fetches that are on their way still.
func (s *stripes) drain() {
	for s.waiting(false) {
		f := <-s.flights
		s.flying[f.shard]--
	}
}

// patience is how long the ranges may take together; 0 = as long as they take.
func (s *stripes) patience(ranges []cellRange) time.Duration {
	if !s.hedged {
		return 0
	}
	cells := int64(0)
	for _, r := range ranges {
		if !r.empty() {
			cells = max(cells, r.end-r.first)
		}
	}
	return s.f.Patience(cells * storedCell)
}
