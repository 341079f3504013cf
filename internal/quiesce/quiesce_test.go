package quiesce

import (
	"context"
	"errors"
	"testing"
	"time"
)

// guest counts how often it was frozen and thawed, and is not both at once.
type guest struct {
	t         *testing.T
	frozen    bool
	thaws     int
	freezeErr error
	thawErrs  int // how many thaws fail at first
	hangs     bool
}

func (g *guest) Freeze(ctx context.Context) error {
	if g.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if g.freezeErr != nil {
		return g.freezeErr
	}
	g.frozen = true
	return nil
}

func (g *guest) Thaw(ctx context.Context) error {
	if ctx.Err() != nil {
		g.t.Error("thawed with a context that has ended")
	}
	if g.thaws++; g.thaws <= g.thawErrs {
		return errors.New("not now")
	}
	g.frozen = false
	return nil
}

var errFailed = errors.New("failed")

func TestAround(t *testing.T) {
	for _, c := range []struct {
		name  string
		guest guest
		limit time.Duration
		fn    func(context.Context, context.CancelFunc) error
		want  error
		thaws int
	}{
		{name: "good", thaws: 1},
		{name: "the work fails", fn: func(context.Context, context.CancelFunc) error { return errFailed }, want: errFailed, thaws: 1},
		{name: "the freeze fails", guest: guest{freezeErr: errFailed}, want: errFailed, thaws: 1},
		{name: "nothing was frozen", guest: guest{freezeErr: ErrUntouched}, want: ErrUntouched, thaws: 0},
		{name: "the freeze hangs", guest: guest{hangs: true}, limit: time.Millisecond, want: context.DeadlineExceeded, thaws: 1},
		{name: "a thaw fails", guest: guest{thawErrs: 1}, thaws: 2},
		{name: "the caller gives up", fn: func(ctx context.Context, cancel context.CancelFunc) error {
			cancel()
			<-ctx.Done()
			return nil
		}, want: context.Canceled, thaws: 1},
		{name: "the limit passes", limit: time.Millisecond, fn: func(ctx context.Context, _ context.CancelFunc) error {
			<-ctx.Done()
			return nil
		}, want: ErrLimit, thaws: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			g := c.guest
			g.t = t
			limit := c.limit
			if limit == 0 {
				limit = time.Minute
			}
			called := false
			err := Around(ctx, &g, limit, func(ctx context.Context) error {
				called = true
				if c.fn == nil {
					return nil
				}
				return c.fn(ctx, cancel)
			})
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if g.frozen || g.thaws != c.thaws {
				t.Errorf("frozen %v after %d thaws", g.frozen, g.thaws)
			}
			if called == (g.freezeErr != nil || g.hangs) {
				t.Errorf("called: %v", called)
			}
		})
	}
}

// TestThawInTime: work that does not heed its context does not keep the guest frozen.
func TestThawInTime(t *testing.T) {
	thawed := make(chan struct{})
	h := hooks{thaw: func() { close(thawed) }}
	err := Around(t.Context(), h, time.Millisecond, func(context.Context) error {
		<-thawed // deadlocks if it is only thawed afterward
		return nil
	})
	if !errors.Is(err, ErrLimit) {
		t.Errorf("got %v", err)
	}
}

type hooks struct{ thaw func() }

func (hooks) Freeze(context.Context) error { return nil }

func (h hooks) Thaw(context.Context) error {
	h.thaw()
	return nil
}
