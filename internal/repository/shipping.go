package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// How a pack gets to its stores.
//
// A worker fills a pack, and ship cuts it into shards, one for each store's
// queue. A queue is one goroutine and room for queueRoom shards, the one being
// written included, so that a store that is slow holds a known amount of memory
// and never more. ship waits for room, but only in the queues that the write
// rule needs. The others get a grace, and over a whole session no more than a
// small share of its time; what they have no room for then is owed: not written,
// and recorded as such before the commit.
//
//	shard:  queued -> writing -> acknowledged
//	           |         |
//	           +---------+-----> owed (no room, failed, given up at the end)
//
// A pack is stored when k+d of its shards are acknowledged. As soon as one can
// no longer get there, the session has failed.

// queueRoom is how many shards may wait for one store or be on their way.
const queueRoom = 2

// graceShare bounds what slow stores may cost beyond the grace: one part in so
// many of the session's time.
const graceShare = 20

// putAttempts is how often a shard is tried when the store fails without being
// down.
const putAttempts = 3

// shipment is one pack on its way.
type shipment struct {
	id      chunk.PackID
	acked   []bool // by slot
	pending int    // shards that are queued or being written
}

func (s *shipment) acks() int {
	n := 0
	for _, ok := range s.acked {
		if ok {
			n++
		}
	}
	return n
}

// parcel is one shard on its way.
type parcel struct {
	of    *shipment
	shard []byte
}

// shipper sends the packs of one session.
type shipper struct {
	r      *Repository
	need   int       // acknowledgements that store a pack
	slots  []*member // who keeps which shard
	queues []chan parcel
	began  time.Time

	encode sync.Mutex // one pack is encoded at a time: it bounds the memory

	wg     sync.WaitGroup
	cancel context.CancelFunc

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	room    []int         // by slot: shards that its queue can take
	why     []error       // by slot: why the last shard that failed did
	waited  time.Duration // for stores beyond those that the rule needs
	ended   bool
	failed  error
	sent    []*shipment // packs with a shard that is missing or pending; the others are only counted
	packs   int
	stored  int64 // bytes of containers
	shards  int64 // bytes acknowledged by stores
}

// newShipper starts the queues. They end with end.
func newShipper(ctx context.Context, r *Repository, slots []*member, need int) *shipper {
	// The queues outlive the call that began the session.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &shipper{
		r: r, need: need, slots: slots, cancel: cancel,
		queues: make([]chan parcel, len(slots)), room: make([]int, len(slots)), why: make([]error, len(slots)),
		changed: make(chan struct{}), began: time.Now(),
	}
	for i := range slots {
		s.queues[i] = make(chan parcel, queueRoom)
		s.room[i] = queueRoom
		s.wg.Go(func() { s.serve(ctx, i) })
	}
	return s
}

// notifyLocked wakes everyone who waits for a change.
func (s *shipper) notifyLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ship sends a finished container. When it returns, the container's buffer is
// free again. The error is the session's: a pack that could not be stored.
func (s *shipper) ship(ctx context.Context, id chunk.PackID, container []byte) error {
	s.encode.Lock()
	defer s.encode.Unlock()
	if err := s.waitForRoom(ctx); err != nil {
		return err
	}
	shards, err := s.cut(id, container)
	if err != nil {
		return errors.Join(err, s.giveBack(shards))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errors.Join(ErrEnded, s.giveBack(shards))
	}
	sh := &shipment{id: id, acked: make([]bool, len(s.slots))}
	s.packs++
	s.stored += int64(len(container))
	s.sent = append(s.sent, sh)
	for i, shard := range shards {
		if s.room[i] == 0 {
			if err := s.r.parts.put(shard); err != nil {
				return err
			}
			continue
		}
		s.room[i]--
		sh.pending++
		s.queues[i] <- parcel{sh, shard} // never blocks: room is its capacity
	}
	s.judgeLocked(sh)
	return s.failed
}

// cut returns the shards of a container in buffers of the pool, also those that
// it has when it fails.
func (s *shipper) cut(id chunk.PackID, container []byte) ([][]byte, error) {
	bufs := make([][]byte, len(s.slots))
	for i := range bufs {
		var err error
		if bufs[i], err = s.r.parts.take(); err != nil {
			return bufs[:i], err
		}
	}
	shards, err := s.r.coder.Encode(id, container, bufs)
	if err != nil {
		return bufs, fmt.Errorf("encode pack %s: %w", id, err)
	}
	return shards, nil
}

func (s *shipper) giveBack(shards [][]byte) error {
	var errs []error
	for _, shard := range shards {
		errs = append(errs, s.r.parts.put(shard))
	}
	return errors.Join(errs...)
}

// waitForRoom returns when enough queues have room for another shard.
func (s *shipper) waitForRoom(ctx context.Context) error {
	var grace <-chan time.Time
	var since time.Time
	for {
		s.mu.Lock()
		with := 0
		for _, n := range s.room {
			if n > 0 {
				with++
			}
		}
		changed, err := s.changed, s.failed
		if err == nil && s.ended {
			err = ErrEnded
		}
		if !since.IsZero() {
			s.waited += time.Since(since)
			since = time.Time{}
		}
		left := s.graceLocked()
		s.mu.Unlock()
		switch {
		case err != nil:
			return err
		case with == len(s.room), with >= s.need && left <= 0:
			return nil
		case with >= s.need:
			since = time.Now()
			grace = time.After(left)
		}
		select {
		case <-changed:
		case <-grace:
		case <-ctx.Done():
			return fmt.Errorf("wait for the stores: %w", ctx.Err())
		}
	}
}

// graceLocked returns how much longer stores may be waited for that the write
// rule does not need.
func (s *shipper) graceLocked() time.Duration {
	grace := s.r.o.Timing.Grace
	if grace <= 0 {
		return 0
	}
	return grace + time.Since(s.began)/graceShare - s.waited
}

// serve writes the shards of one queue, one at a time.
func (s *shipper) serve(ctx context.Context, slot int) {
	for p := range s.queues[slot] {
		err := ctx.Err()
		if err == nil {
			err = s.put(ctx, s.slots[slot], p)
		}
		size := int64(len(p.shard))
		putErr := s.r.parts.put(p.shard)
		s.mu.Lock()
		s.room[slot]++
		p.of.pending--
		if err == nil {
			p.of.acked[slot] = true
			s.shards += size
		} else {
			s.why[slot] = err
		}
		s.judgeLocked(p.of)
		if putErr != nil && s.failed == nil {
			s.failed = putErr
		}
		s.notifyLocked()
		s.mu.Unlock()
	}
}

// judgeLocked fails the session when the pack cannot be stored any more, and
// forgets packs that are complete.
func (s *shipper) judgeLocked(sh *shipment) {
	acks := sh.acks()
	if acks+sh.pending < s.need && s.failed == nil {
		s.failed = fmt.Errorf("a pack must reach %d of the %d stores and can reach only %d: %w: %w", s.need, len(s.slots), acks+sh.pending, ErrTooFewStores, s.lackLocked(sh))
	}
	if acks == len(s.slots) {
		for i, other := range s.sent {
			if other == sh {
				s.sent[i] = s.sent[len(s.sent)-1]
				s.sent = s.sent[:len(s.sent)-1]
				break
			}
		}
	}
}

// lackLocked says why a pack is not on the stores that it is not on.
func (s *shipper) lackLocked(sh *shipment) error {
	var all error
	for i, ok := range sh.acked {
		why := s.why[i]
		switch {
		case ok:
			continue
		case why == nil && sh.pending > 0:
			continue // perhaps on its way
		case why == nil:
			why = fmt.Errorf("%s is too slow", s.slots[i].url())
		case errors.Is(why, objstore.ErrNoSpace):
			why = fullError{s.slots[i].url(), why}
		}
		if all == nil {
			all = why
		} else {
			all = fmt.Errorf("%w; %w", all, why)
		}
	}
	return all
}

// fullError is a full store's error in a few words.
type fullError struct {
	url string
	err error
}

func (e fullError) Error() string { return e.url + " is full: free some space there" }
func (e fullError) Unwrap() error { return e.err }

// put writes one shard, until the store said that it is there.
func (s *shipper) put(ctx context.Context, m *member, p parcel) error {
	if err := m.ready(); err != nil {
		return err
	}
	name := packName(p.of.id)
	var err error
	for range putAttempts {
		if err = m.store.Put(ctx, name, p.shard); err == nil {
			return nil
		}
		if errors.Is(err, objstore.ErrExist) {
			// The name is random: it can only be an earlier attempt whose answer
			// was lost, by us or by a library below.
			got, getErr := m.store.Get(ctx, name, 0, -1, nil)
			if getErr == nil && bytes.Equal(got, p.shard) {
				return nil
			}
			return errors.Join(err, getErr)
		}
		if ctx.Err() != nil || errors.Is(err, objstore.ErrDown) || errors.Is(err, objstore.ErrNoSpace) {
			break
		}
	}
	return err //nolint:wrapcheck // stores name themselves and the object
}

// flush returns when every pack is stored, or with the session's error. Stores
// that still have shards to write then get the grace and lose the rest of them.
func (s *shipper) flush(ctx context.Context) error {
	var grace <-chan time.Time
	for {
		s.mu.Lock()
		pending, stored := 0, true
		for _, sh := range s.sent {
			pending += sh.pending
			stored = stored && sh.acks() >= s.need
		}
		changed, failed := s.changed, s.failed
		s.mu.Unlock()
		switch {
		case failed != nil:
			return failed
		case pending == 0:
			return nil
		case stored && grace == nil:
			grace = time.After(s.r.o.Timing.Grace)
		}
		select {
		case <-changed:
		case <-grace:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for the stores: %w", ctx.Err())
		}
	}
}

// end stops the queues: what they still have is owed. It waits a moment for
// writes that mind their cancellation; a store that hangs keeps its goroutine
// and its buffer until it answers.
func (s *shipper) end() {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	s.ended = true
	for _, q := range s.queues {
		close(q)
	}
	s.notifyLocked()
	s.mu.Unlock()
	s.cancel()
	done := make(chan struct{})
	go func() { s.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(settle):
	}
}

// owedShard is a shard that its store does not have.
type owedShard struct {
	pack  chunk.PackID
	shard int
	store ident
}

// owed returns the shards that were not acknowledged. The packs that lack k+d
// among the stores that still count, when some do not, are an error.
func (s *shipper) owed(counts func(*member) bool) ([]owedShard, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []owedShard
	for _, sh := range s.sent {
		for i, ok := range sh.acked {
			if !ok {
				out = append(out, owedShard{sh.id, i, s.slots[i].id})
			}
		}
	}
	if s.packs == 0 {
		return nil, s.failed
	}
	// Packs that are not in sent are on all stores, so that the number of
	// stores that count is theirs.
	whole := 0
	for _, m := range s.slots {
		if counts(m) {
			whole++
		}
	}
	if whole < s.need {
		return out, fmt.Errorf("only %d stores kept their identity during the backup, %d are needed: %w", whole, s.need, ErrTooFewStores)
	}
	for _, sh := range s.sent {
		acks := 0
		for i, ok := range sh.acked {
			if ok && counts(s.slots[i]) {
				acks++
			}
		}
		if acks < s.need {
			return out, fmt.Errorf("pack %s is on %d stores, %d are needed: %w", sh.id, acks, s.need, ErrTooFewStores)
		}
	}
	return out, s.failed
}
