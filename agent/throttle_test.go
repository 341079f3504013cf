package agent

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	var none *throttle
	if err := none.wait(t.Context(), 1<<40); err != nil {
		t.Error(err)
	}
	if newThrottle(0) != nil {
		t.Error("a limit of 0 limits")
	}
	slow := newThrottle(1)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if err := slow.wait(ctx, 1000); !errors.Is(err, stop) {
		t.Errorf("after cancel: %v", err)
	}
	// What was let pass is booked: the future is, not the clock, what is checked.
	fast := newThrottle(1 << 30)
	before := time.Now()
	for range 4 {
		if err := fast.wait(t.Context(), 1<<26); err != nil {
			t.Fatal(err)
		}
	}
	if d := fast.free.Sub(before); d < 100*time.Millisecond || d > 10*time.Second {
		t.Errorf("256 MiB at 1 GiB/s were booked as %v", d)
	}
}
