package agent

import (
	"context"
	"sync"
	"time"
)

// throttle lets bytes pass at a rate. A nil one lets all pass at once.
type throttle struct {
	rate float64 // bytes a second

	mu   sync.Mutex
	free time.Time // when what was let pass so far is paid for
}

func newThrottle(bytesPerSecond int64) *throttle {
	if bytesPerSecond <= 0 {
		return nil
	}
	return &throttle{rate: float64(bytesPerSecond)}
}

// wait returns when n more bytes may pass, or ctx has ended. A tenth of a
// second's worth may pass in one go.
func (t *throttle) wait(ctx context.Context, n int) error {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	now := time.Now()
	if early := now.Add(-100 * time.Millisecond); t.free.Before(early) {
		t.free = early
	}
	t.free = t.free.Add(time.Duration(float64(n) / t.rate * float64(time.Second)))
	until := t.free
	t.mu.Unlock()
	d := until.Sub(now)
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// throttles are those of several things that are read, each at the same rate however
// many read it.
type throttles struct {
	bytesPerSecond int64

	mu   sync.Mutex
	used map[string]*usedThrottle
}

type usedThrottle struct {
	*throttle

	users int
}

func newThrottles(bytesPerSecond int64) *throttles {
	return &throttles{bytesPerSecond: bytesPerSecond, used: map[string]*usedThrottle{}}
}

// of returns the throttle of one thing, for use until done is called.
func (x *throttles) of(name string) (t *throttle, done func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	u := x.used[name]
	if u == nil {
		u = &usedThrottle{throttle: newThrottle(x.bytesPerSecond)}
		x.used[name] = u
	}
	u.users++
	return u.throttle, func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if u.users--; u.users == 0 {
			delete(x.used, name)
		}
	}
}
