package repository

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// errBehind says that a store still owes the answer to an earlier call.
var errBehind = errors.New("store has not answered an earlier request yet")

// errAbsent says that no store with a member's ID was given.
var errAbsent = errors.New("store was not given or cannot be identified")

// member is a store of the repository, as this process sees it.
type member struct {
	id    ident
	store objstore.Store // nil when no store given has the ID

	// behind counts calls that were given up and have not returned. A store
	// with one is not asked again until it did: so a store that hangs holds a
	// few goroutines, not one per call.
	behind atomic.Int32

	health health
}

func (m *member) url() string {
	if m.store == nil {
		return "store " + m.id.String()
	}
	return m.store.URL()
}

// ready returns why the member cannot be asked, or nil.
func (m *member) ready() error {
	switch {
	case m.store == nil:
		return fmt.Errorf("store %s: %w: %w", m.id, objstore.ErrDown, errAbsent)
	case m.behind.Load() > 0:
		return fmt.Errorf("store %s: %w: %w", m.store.URL(), objstore.ErrDown, errBehind)
	default:
		return nil
	}
}

// Timing is how patient a repository is with its stores.
type Timing struct {
	// Call is how long an answer may take before a store counts as down.
	// 0 = 30 seconds.
	Call time.Duration
	// Grace is how long stores are waited for when enough others answered.
	// 0 = 3 seconds; negative = not at all.
	Grace time.Duration
	// Read is how long a read may take while other stores can be read instead.
	// 0 = 10 seconds.
	Read time.Duration
	// Aside is how long a store that failed a read is not read from.
	// 0 = 30 seconds.
	Aside time.Duration
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
		*d = max(*d, 0)
	}
	set(&t.Call, 30*time.Second)
	set(&t.Grace, 3*time.Second)
	set(&t.Read, 10*time.Second)
	set(&t.Aside, 30*time.Second)
	return t
}

// answer is what one member said.
type answer[T any] struct {
	m     *member
	value T
	err   error
}

// call is one outstanding request: it ends once, by returning or by being
// given up.
type call struct{ state atomic.Int32 }

const (
	callReturned = iota + 1
	callGivenUp
)

// settle is how long calls have to come back behind their cancellation. A
// store that minds its context is there at once.
const settle = 100 * time.Millisecond

// ask calls fn for every member at once and returns the answers in the order
// of the members. It returns when all have answered or, enough having
// succeeded, when the grace is over; those that did not answer then, or within
// Timing.Call, get an error and their call a canceled context.
func ask[T any](ctx context.Context, t Timing, ms []*member, enough int, fn func(context.Context, *member) (T, error)) []answer[T] {
	ctx, cancel := context.WithTimeout(ctx, t.Call)
	defer cancel()
	type result struct {
		i     int
		value T
		err   error
	}
	out := make([]answer[T], len(ms))
	results := make(chan result, len(ms))
	waiting := make(map[int]*call, len(ms))
	for i, m := range ms {
		out[i].m = m
		if out[i].err = m.ready(); out[i].err != nil {
			continue
		}
		c := &call{}
		waiting[i] = c
		go func() {
			value, err := fn(ctx, m)
			if !c.state.CompareAndSwap(0, callReturned) {
				m.behind.Add(-1)
			}
			results <- result{i, value, err}
		}()
	}
	var grace, last <-chan time.Time
	done := ctx.Done()
	succeeded := 0
	for len(waiting) > 0 {
		select {
		case r := <-results:
			out[r.i].value, out[r.i].err = r.value, r.err
			delete(waiting, r.i)
			if r.err == nil {
				succeeded++
			}
			if grace == nil && succeeded >= enough {
				grace = time.After(t.Grace)
			}
		case <-grace:
			cancel()
		case <-done:
			done = nil
			last = time.After(settle)
		case <-last:
			giveUp(out, waiting)
		}
	}
	return out
}

func giveUp[T any](out []answer[T], waiting map[int]*call) {
	for i, c := range waiting {
		m := out[i].m
		// Count first, so that the call cannot come back in between.
		m.behind.Add(1)
		if !c.state.CompareAndSwap(0, callGivenUp) {
			m.behind.Add(-1) // it came back just now: too late to count
		}
		out[i].err = fmt.Errorf("%s: %w: no answer", m.url(), objstore.ErrDown)
	}
	clear(waiting)
}

// succeeded returns the members that answered without an error.
func succeeded[T any](answers []answer[T]) []*member {
	var ms []*member
	for _, a := range answers {
		if a.err == nil {
			ms = append(ms, a.m)
		}
	}
	return ms
}

// failures joins the errors of answers.
func failures[T any](answers []answer[T]) error {
	var errs []error
	for _, a := range answers {
		if a.err != nil {
			errs = append(errs, a.err)
		}
	}
	return errors.Join(errs...)
}
