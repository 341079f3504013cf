package limit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/objstore/storetest"
)

// virtual is a clock that moves when someone sleeps.
type virtual struct {
	mu sync.Mutex
	at time.Time
}

func newVirtual() *virtual { return &virtual{at: time.Unix(1_760_000_000, 0)} }

func (v *virtual) now() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at
}

func (v *virtual) sleep(ctx context.Context, d time.Duration) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.at = v.at.Add(d)
	return ctx.Err()
}

func (v *virtual) clock() clock { return clock{v.now, v.sleep} }

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store {
		return newStore(memstore.New("x"), Options{Bandwidth: 1 << 20, Requests: 10}, newVirtual().clock())
	})
}

func TestConformanceWithoutLimits(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store { return New(memstore.New("x"), Options{}) })
}

// within fails unless what took from start until now is about want.
func within(t *testing.T, v *virtual, start time.Time, want time.Duration) {
	t.Helper()
	got := v.now().Sub(start)
	if got < want*8/10 || got > want*11/10 {
		t.Errorf("it took %s, want about %s", got, want)
	}
}

func TestBandwidth(t *testing.T) {
	v := newVirtual()
	s := newStore(memstore.New("x"), Options{Bandwidth: 1 << 20}, v.clock())
	start := v.now()
	body := make([]byte, 1<<20)
	for i := range 10 {
		if err := s.Put(t.Context(), fmt.Sprintf("a/%d", i), body); err != nil {
			t.Fatal(err)
		}
	}
	within(t, v, start, 10*time.Second)
	start = v.now()
	for i := range 10 {
		// Known beforehand or not: it counts.
		n := int64(1 << 20)
		if i%2 == 0 {
			n = -1
		}
		if _, err := s.Get(t.Context(), fmt.Sprintf("a/%d", i), 0, n, nil); err != nil {
			t.Fatal(err)
		}
	}
	within(t, v, start, 10*time.Second)
}

func TestRequests(t *testing.T) {
	v := newVirtual()
	m := memstore.New("x")
	s := newStore(m, Options{Requests: 10}, v.clock())
	for i := range 5000 {
		if err := m.Put(t.Context(), fmt.Sprintf("l/%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	start := v.now()
	for range 100 {
		if _, err := s.Stat(t.Context(), "l/1"); err != nil {
			t.Fatal(err)
		}
	}
	within(t, v, start, 10*time.Second)
	start = v.now()
	for range 10 {
		if err := s.List(t.Context(), "l/", func(objstore.Info) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	within(t, v, start, 6*time.Second)
}

// TestFair: a small request does not wait for all of a large one that came
// before it.
func TestFair(t *testing.T) {
	s := New(memstore.New("x"), Options{Bandwidth: 256 << 10})
	large := make(chan error, 1)
	go func() { large <- s.Put(context.Background(), "large", make([]byte, 1<<20)) }() // about four seconds
	time.Sleep(100 * time.Millisecond)
	if err := s.Put(t.Context(), "small", make([]byte, 1<<10)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-large:
		t.Errorf("the large one came first: %v", err)
	default:
	}
	if err := <-large; err != nil {
		t.Error(err)
	}
}

func TestCanceled(t *testing.T) {
	m := memstore.New("x")
	s := New(m, Options{Bandwidth: MinBandwidth})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	err := s.Put(ctx, "a", make([]byte, 32<<20))
	if !errors.Is(err, context.Canceled) || len(m.Names()) != 0 {
		t.Errorf("Put = %v, stored %v", err, m.Names())
	}
}
