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

// Who reads one thing shares its rate, and is forgotten behind the last.
func TestThrottles(t *testing.T) {
	x := newThrottles(1 << 20)
	a, doneA := x.of("a")
	again, doneAgain := x.of("a")
	b, doneB := x.of("b")
	if a != again || a == b {
		t.Error("the rate is not that of the thing")
	}
	doneA()
	if last, done := x.of("a"); last != a {
		t.Error("the rate of a thing that is still read is another")
	} else {
		done()
	}
	doneAgain()
	doneB()
	if len(x.used) != 0 {
		t.Errorf("%d are left", len(x.used))
	}
	none, done := newThrottles(0).of("a")
	defer done()
	if none != nil {
		t.Error("a limit of 0 limits")
	}
}
