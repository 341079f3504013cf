// Package retry tries again what a store failed to do: the one place below the
// repository where that is done.
//
// Tried again is what is certain to be safe: reading and deleting after any
// fault of the store, and everything that the store refused for now (ErrBusy).
//
// A Put whose outcome is open is not. Only its caller can tell whether the object
// that is there then is its own: put again blindly, a vote whose answer was lost
// would come back as ErrExist, or worse, as a failure that was none (the
// repository compares, and knows what to count). So Put passes such an error on,
// and its caller asks, as objstore.Store says.
//
// A store that is down is not tried again either: the repository does without
// it, and looks again later.
package retry

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// maxListed is how many names of a listing are remembered, so that it can be
// begun again without naming one twice.
const maxListed = 64 << 10

// Options are how patient a Store is. The zero value is what stores over a
// network need.
type Options struct {
	Attempts int           // in all; 0 = 4
	First    time.Duration // the wait before the second attempt; 0 = 100 ms; it doubles from there
	Most     time.Duration // the longest wait; 0 = 2 s
}

// Store tries again what the store below failed to do.
type Store struct {
	objstore.Store

	o Options
}

var _ objstore.Store = (*Store)(nil)

// New returns a store that does what s does, more often if it has to.
func New(s objstore.Store, o Options) *Store {
	if o.Attempts == 0 {
		o.Attempts = 4
	}
	if o.First == 0 {
		o.First = 100 * time.Millisecond
	}
	if o.Most == 0 {
		o.Most = 2 * time.Second
	}
	return &Store{Store: s, o: o}
}

// final are the errors that another attempt would bring again.
var final = []error{
	objstore.ErrExist, objstore.ErrNotExist, objstore.ErrRange, objstore.ErrDown,
	objstore.ErrNoSpace, objstore.ErrName, objstore.ErrTooLarge, objstore.ErrRetained, errors.ErrUnsupported,
}

func fault(err error) bool {
	for _, f := range final {
		if errors.Is(err, f) {
			return false
		}
	}
	return true
}

func busy(err error) bool { return errors.Is(err, objstore.ErrBusy) }

// do calls try until it succeeds or fails with an error for which again is
// false. The error is that of the last attempt.
func (s *Store) do(ctx context.Context, again func(error) bool, try func() error) error {
	wait := s.o.First
	for n := 1; ; n++ {
		err := try()
		if err == nil || n >= s.o.Attempts || ctx.Err() != nil || !again(err) {
			return err
		}
		// At least half of it, so that many who failed at once come back apart.
		t := time.NewTimer(wait/2 + rand.N(wait/2+1)) //nolint:gosec // no secret
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
		wait = min(2*wait, s.o.Most)
	}
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, name string, body []byte) error {
	return s.do(ctx, busy, func() error { return s.Store.Put(ctx, name, body) })
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, name string, off, n int64, dst []byte) (out []byte, err error) {
	err = s.do(ctx, fault, func() (err error) { out, err = s.Store.Get(ctx, name, off, n, dst); return err })
	return out, err
}

// Stat implements objstore.Store.
func (s *Store) Stat(ctx context.Context, name string) (size int64, err error) {
	err = s.do(ctx, fault, func() (err error) { size, err = s.Store.Stat(ctx, name); return err })
	return size, err
}

// List implements objstore.Store. Of a listing that broke off, what was named
// already is left out the next time; one that is too long to remember fails.
func (s *Store) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	seen := make(map[string]struct{})
	count := 0
	var own error
	again := func(err error) bool { return own == nil && count <= maxListed && fault(err) }
	return s.do(ctx, again, func() error {
		return s.Store.List(ctx, prefix, func(i objstore.Info) error {
			if _, ok := seen[i.Name]; ok {
				return nil
			}
			if count++; count <= maxListed {
				seen[i.Name] = struct{}{}
			}
			own = fn(i)
			return own
		})
	})
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.do(ctx, fault, func() error { return s.Store.Delete(ctx, name) })
}

// Retain implements objstore.Retainer, if the store below does.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	return s.do(ctx, fault, func() error { return objstore.Retain(ctx, s.Store, name, until) })
}
