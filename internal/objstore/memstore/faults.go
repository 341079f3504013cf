package memstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// Fault is what happens to one call.
type Fault int

// Faults. Those that do not fit a call leave it alone.
const (
	None       Fault = iota
	FailBefore       // an error, nothing done
	FailAfter        // done, and an error
	LostAck          // Put: done, the answer lost, and the client library's retry answered by ErrExist
	Late             // Put, Delete: an error now; done behind some later call
	Held             // Put, Delete: an error now; done when the test says so, by Settle
	Partial          // Put: half of the object is there, and an error
	Overwrite        // Put: done although the name exists, as a server does that ignores conditions
	Lagging          // List: without what was put through this store last
	WrongBytes       // Get: one byte is another
	Truncated        // Get: ends early, as if the object were shorter
	Down             // ErrDown, nothing done
)

// ErrFault is the error of an injected failure.
var ErrFault = errors.New("injected fault")

// Call is one call of a store's method.
type Call struct {
	Op   string // "put", "get", "stat", "list", "delete", "retain"
	Name string // or the prefix
	N    int64  // how many calls this store had before
}

// Faults decide what happens to calls. Both functions may be nil and are
// called concurrently.
type Faults struct {
	// Decide returns the fault of a call.
	Decide func(Call) Fault
	// Before runs before anything else and may block, on a virtual clock or a
	// channel, or until ctx ends; its error is the call's and nothing is done.
	Before func(ctx context.Context, c Call) error
}

// Faulty is a store that misbehaves.
type Faulty struct {
	objstore.Store

	calls atomic.Int64
	down  atomic.Bool

	mu     sync.Mutex
	faults Faults
	late   []lateCall
	recent []string // names put last, at most lag
}

// lag is how many of the newest objects a list that lags does not have.
const lag = 16

type lateCall struct {
	due int64 // number of the call behind which it happens
	do  func()
}

var _ objstore.Store = (*Faulty)(nil)

// WithFaults returns a store that does what s does, and f.
func WithFaults(s objstore.Store, f Faults) *Faulty { return &Faulty{Store: s, faults: f} }

// SetFaults replaces the faults of later calls.
func (f *Faulty) SetFaults(faults Faults) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = faults
}

// SetDown makes every later call fail with ErrDown, or no longer.
func (f *Faulty) SetDown(down bool) { f.down.Store(down) }

// Calls returns how many calls there were.
func (f *Faulty) Calls() int64 { return f.calls.Load() }

// Settle lets everything that is late happen now.
func (f *Faulty) Settle() { f.settle(1<<63 - 1) }

func (f *Faulty) settle(upTo int64) {
	f.mu.Lock()
	var due []func()
	f.late = slices.DeleteFunc(f.late, func(l lateCall) bool {
		if l.due > upTo {
			return false
		}
		due = append(due, l.do)
		return true
	})
	f.mu.Unlock()
	for _, do := range due {
		do()
	}
}

// enter returns the fault of a call, or the error that ends it.
func (f *Faulty) enter(ctx context.Context, op, name string) (Fault, int64, error) {
	c := Call{Op: op, Name: name, N: f.calls.Add(1) - 1}
	f.settle(c.N)
	f.mu.Lock()
	faults := f.faults
	f.mu.Unlock()
	if faults.Before != nil {
		if err := faults.Before(ctx, c); err != nil {
			return None, c.N, fmt.Errorf("%s: %s %s: %w", f.URL(), op, name, err)
		}
	}
	fault := None
	if faults.Decide != nil {
		fault = faults.Decide(c)
	}
	if f.down.Load() {
		fault = Down
	}
	switch fault {
	case Down:
		return fault, c.N, fmt.Errorf("%s: %s %s: %w", f.URL(), op, name, objstore.ErrDown)
	case FailBefore:
		return fault, c.N, fmt.Errorf("%s: %s %s: %w", f.URL(), op, name, ErrFault)
	default:
		return fault, c.N, nil
	}
}

// leave turns the outcome of a call that was done into the one that is told.
func leave(fault Fault, op, name string, err error) error {
	if fault == FailAfter {
		return fmt.Errorf("%s %s: answer lost: %w", op, name, ErrFault)
	}
	return err
}

// postpone makes call number n happen behind a later one, or not before Settle.
func (f *Faulty) postpone(fault Fault, n int64, do func()) {
	due := n + 1 + n%7
	if fault == Held {
		due = 1<<63 - 1
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.late = append(f.late, lateCall{due: due, do: do})
}

// Put implements objstore.Store.
func (f *Faulty) Put(ctx context.Context, name string, body []byte) error {
	fault, n, err := f.enter(ctx, "put", name)
	if err != nil {
		return err
	}
	if fault == Late || fault == Held {
		body = slices.Clone(body)
		f.postpone(fault, n, func() {
			// Whether it succeeds is not told to anyone.
			_ = f.Store.Put(context.WithoutCancel(ctx), name, body)
		})
		return fmt.Errorf("put %s: no answer: %w", name, ErrFault)
	}
	switch fault {
	case Partial:
		body = body[:len(body)/2]
	case Overwrite:
		if err = f.Store.Delete(ctx, name); err != nil {
			return err //nolint:wrapcheck // the store's own
		}
	default:
	}
	err = f.Store.Put(ctx, name, body)
	if err == nil {
		f.note(name)
	}
	switch {
	case fault == LostAck && err == nil:
		return fmt.Errorf("put %s: %w", name, objstore.ErrExist)
	case fault == Partial && err == nil:
		return fmt.Errorf("put %s: ended half-way: %w", name, ErrFault)
	}
	return leave(fault, "put", name, err)
}

// note remembers what was put last.
func (f *Faulty) note(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recent = append(f.recent, name)
	f.recent = f.recent[max(0, len(f.recent)-lag):]
}

// Get implements objstore.Store.
func (f *Faulty) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	fault, call, err := f.enter(ctx, "get", name)
	if err != nil {
		return dst, err
	}
	out, err := f.Store.Get(ctx, name, off, n, dst)
	if err != nil {
		return dst, err
	}
	fresh := out[len(dst):]
	switch {
	case fault == WrongBytes && len(fresh) > 0:
		fresh[int(call*7919)%len(fresh)] ^= 1 << (call % 8)
	case fault == Truncated && len(fresh) > 0 && n < 0:
		return out[:len(dst)+len(fresh)/2], nil
	case fault == Truncated && len(fresh) > 0:
		return dst, fmt.Errorf("get %s: %w", name, objstore.ErrRange)
	}
	if err := leave(fault, "get", name, nil); err != nil {
		return dst, err
	}
	return out, nil
}

// Stat implements objstore.Store.
func (f *Faulty) Stat(ctx context.Context, name string) (int64, error) {
	fault, _, err := f.enter(ctx, "stat", name)
	if err != nil {
		return 0, err
	}
	size, err := f.Store.Stat(ctx, name)
	return size, leave(fault, "stat", name, err)
}

// List implements objstore.Store.
func (f *Faulty) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	fault, _, err := f.enter(ctx, "list", prefix)
	if err != nil {
		return err
	}
	if fault == Lagging {
		f.mu.Lock()
		hidden := slices.Clone(f.recent)
		f.mu.Unlock()
		all := fn
		fn = func(i objstore.Info) error {
			if slices.Contains(hidden, i.Name) {
				return nil
			}
			return all(i)
		}
	}
	return leave(fault, "list", prefix, f.Store.List(ctx, prefix, fn))
}

// Delete implements objstore.Store.
func (f *Faulty) Delete(ctx context.Context, name string) error {
	fault, n, err := f.enter(ctx, "delete", name)
	if err != nil {
		return err
	}
	if fault == Late || fault == Held {
		f.postpone(fault, n, func() { _ = f.Store.Delete(context.WithoutCancel(ctx), name) })
		return fmt.Errorf("delete %s: no answer: %w", name, ErrFault)
	}
	return leave(fault, "delete", name, f.Store.Delete(ctx, name))
}

// Seeded returns a Decide that hits each call with the given probability by
// one of kinds, chosen by a generator of its own.
func Seeded(seed uint64, rate float64, kinds ...Fault) func(Call) Fault {
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(seed, uint64(len(kinds)))) //nolint:gosec // a reproducible schedule, not a secret
	return func(Call) Fault {
		mu.Lock()
		defer mu.Unlock()
		if len(kinds) == 0 || r.Float64() >= rate {
			return None
		}
		return kinds[r.IntN(len(kinds))]
	}
}

// Retain implements objstore.Retainer, if the store below does.
func (f *Faulty) Retain(ctx context.Context, name string, until time.Time) error {
	fault, _, err := f.enter(ctx, "retain", name)
	if err != nil {
		return err
	}
	return leave(fault, "retain", name, objstore.Retain(ctx, f.Store, name, until))
}
