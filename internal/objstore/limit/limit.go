// Package limit bounds what is asked of a store in a second: for a line that
// others need too, or a server that charges or throttles.
package limit

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"

	"github.com/cairnbackup/cairn/internal/objstore"
)

const (
	// MinBandwidth is the least that makes sense: a shard of 4 MiB takes a minute
	// then.
	MinBandwidth = 64 << 10
	// page is how many names a request of a listing brings.
	page = 1000
	// slices of a second are how much may be taken at once: a large object
	// waits for several, and lets the others in between.
	slices = 8
)

// Options are the limits; 0 = none.
type Options struct {
	Bandwidth int64   // bytes of objects in a second, both ways together; at least MinBandwidth
	Requests  float64 // in a second
}

// clock is the time as a Store sees it.
type clock struct {
	now   func() time.Time
	sleep func(context.Context, time.Duration) error
}

// Store waits before it does what the store below does. Those who wait are
// served in their order, each a slice at a time.
type Store struct {
	objstore.Store

	bytes, requests *rate.Limiter // nil = no limit
	clock           clock
}

var _ objstore.Store = (*Store)(nil)

// New returns a store that does what s does, not faster than o says.
func New(s objstore.Store, o Options) *Store { return newStore(s, o, clock{time.Now, sleep}) }

func newStore(s objstore.Store, o Options, c clock) *Store {
	l := &Store{Store: s, clock: c}
	if o.Bandwidth > 0 {
		b := max(o.Bandwidth, MinBandwidth)
		l.bytes = rate.NewLimiter(rate.Limit(b), int(max(b/slices, 1)))
	}
	if o.Requests > 0 {
		l.requests = rate.NewLimiter(rate.Limit(o.Requests), max(int(o.Requests/slices), 1))
	}
	return l
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // take does
	}
}

// take waits until n of what l gives are free.
func (s *Store) take(ctx context.Context, l *rate.Limiter, n int64) error {
	if l == nil {
		return nil
	}
	for n > 0 {
		part := min(n, int64(l.Burst()))
		now := s.clock.now()
		r := l.ReserveN(now, int(part))
		if d := r.DelayFrom(now); d > 0 {
			if err := s.clock.sleep(ctx, d); err != nil {
				r.CancelAt(s.clock.now())
				return fmt.Errorf("%s: wait for the store's limit: %w", s.URL(), err)
			}
		}
		n -= part
	}
	return nil
}

// owe takes n afterwards: whoever comes next waits for it.
func (s *Store) owe(l *rate.Limiter, n int64) {
	for l != nil && n > 0 {
		part := min(n, int64(l.Burst()))
		l.ReserveN(s.clock.now(), int(part))
		n -= part
	}
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, name string, body []byte) error {
	if err := s.take(ctx, s.requests, 1); err != nil {
		return err
	}
	if err := s.take(ctx, s.bytes, int64(len(body))); err != nil {
		return err
	}
	return s.Store.Put(ctx, name, body) //nolint:wrapcheck // a decorator
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	if err := s.take(ctx, s.requests, 1); err != nil {
		return dst, err
	}
	if err := s.take(ctx, s.bytes, min(n, objstore.MaxObject)); err != nil {
		return dst, err
	}
	out, err := s.Store.Get(ctx, name, off, n, dst)
	if n < 0 {
		s.owe(s.bytes, int64(len(out)-len(dst)))
	}
	return out, err //nolint:wrapcheck // a decorator
}

// Stat implements objstore.Store.
func (s *Store) Stat(ctx context.Context, name string) (int64, error) {
	if err := s.take(ctx, s.requests, 1); err != nil {
		return 0, err
	}
	return s.Store.Stat(ctx, name) //nolint:wrapcheck // a decorator
}

// List implements objstore.Store. A request counts for every thousand names.
func (s *Store) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	if err := s.take(ctx, s.requests, 1); err != nil {
		return err
	}
	names := 0
	//nolint:wrapcheck // a decorator
	return s.Store.List(ctx, prefix, func(i objstore.Info) error {
		if names++; names%page == 0 {
			if err := s.take(ctx, s.requests, 1); err != nil {
				return err
			}
		}
		return fn(i)
	})
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := s.take(ctx, s.requests, 1); err != nil {
		return err
	}
	return s.Store.Delete(ctx, name) //nolint:wrapcheck // a decorator
}

// Retain implements objstore.Retainer, if the store below does.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	if err := s.take(ctx, s.requests, 1); err != nil {
		return err
	}
	return objstore.Retain(ctx, s.Store, name, until) //nolint:wrapcheck // a decorator
}
