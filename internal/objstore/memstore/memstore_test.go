package memstore_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/objstore/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store { return memstore.New("a") })
}

func TestConformanceWithoutFaults(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store {
		return memstore.WithFaults(memstore.New("a"), memstore.Faults{})
	})
}

func TestFaults(t *testing.T) {
	body := []byte("sixteen bytes...")
	tests := []struct {
		name   string
		fault  memstore.Fault
		putErr error
		exists bool // behind the put
	}{
		{"none", memstore.None, nil, true},
		{"fail before", memstore.FailBefore, memstore.ErrFault, false},
		{"fail after", memstore.FailAfter, memstore.ErrFault, true},
		{"lost acknowledgement", memstore.LostAck, objstore.ErrExist, true},
		{"late", memstore.Late, memstore.ErrFault, false},
		{"held", memstore.Held, memstore.ErrFault, false},
		{"down", memstore.Down, objstore.ErrDown, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := memstore.WithFaults(memstore.New("a"), memstore.Faults{
				Decide: func(c memstore.Call) memstore.Fault {
					if c.Op == "put" {
						return tt.fault
					}
					return memstore.None
				},
			})
			if err := f.Put(t.Context(), "x", body); !errors.Is(err, tt.putErr) {
				t.Errorf("Put = %v, want %v", err, tt.putErr)
			}
			_, err := f.Store.Stat(t.Context(), "x")
			if exists := err == nil; exists != tt.exists {
				t.Errorf("the object exists: %v, want %v", exists, tt.exists)
			}
			if tt.fault == memstore.Held {
				for range 20 { // calls do not bring it
					if _, err = f.Stat(t.Context(), "x"); !errors.Is(err, objstore.ErrNotExist) {
						t.Fatalf("a put that is held is there: %v", err)
					}
				}
			}
			if tt.fault == memstore.Late || tt.fault == memstore.Held {
				f.Settle()
				if _, err := f.Stat(t.Context(), "x"); err != nil {
					t.Errorf("a late put never came: %v", err)
				}
			}
		})
	}
}

func TestPartialOverwriteLagging(t *testing.T) {
	fault := memstore.None
	f := memstore.WithFaults(memstore.New("a"), memstore.Faults{
		Decide: func(memstore.Call) memstore.Fault { return fault },
	})
	whole := []byte("sixteen bytes...")
	holds := func(name, want string) {
		t.Helper()
		if got, err := f.Store.Get(t.Context(), name, 0, -1, nil); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
		}
	}
	fault = memstore.Partial
	if err := f.Put(t.Context(), "x", whole); !errors.Is(err, memstore.ErrFault) {
		t.Errorf("partial: %v", err)
	}
	if err := f.Put(t.Context(), "x", whole); !errors.Is(err, objstore.ErrExist) {
		t.Errorf("partial, again: %v", err)
	}
	holds("x", "sixteen ")
	fault = memstore.Overwrite
	if err := f.Put(t.Context(), "x", whole); err != nil {
		t.Errorf("overwrite: %v", err)
	}
	holds("x", string(whole))
	if err := f.Store.Put(t.Context(), "old", nil); err != nil {
		t.Fatal(err)
	}
	list := func() (names []string) {
		if err := f.List(t.Context(), "", func(i objstore.Info) error { names = append(names, i.Name); return nil }); err != nil {
			t.Error(err)
		}
		return names
	}
	fault = memstore.Lagging
	if got := list(); !slices.Equal(got, []string{"old"}) {
		t.Errorf("a list that lags has %v", got)
	}
	fault = memstore.None
	if got := list(); !slices.Equal(got, []string{"old", "x"}) {
		t.Errorf("a list has %v", got)
	}
}

func TestFaultsOfGet(t *testing.T) {
	body := []byte("sixteen bytes...")
	fault := memstore.None
	f := memstore.WithFaults(memstore.New("a"), memstore.Faults{
		Decide: func(memstore.Call) memstore.Fault { return fault },
	})
	if err := f.Put(t.Context(), "x", body); err != nil {
		t.Fatal(err)
	}
	fault = memstore.WrongBytes
	got, err := f.Get(t.Context(), "x", 0, -1, nil)
	if err != nil || len(got) != len(body) || string(got) == string(body) {
		t.Errorf("wrong bytes: %q, %v", got, err)
	}
	fault = memstore.Truncated
	if got, err = f.Get(t.Context(), "x", 0, -1, nil); err != nil || len(got) >= len(body) {
		t.Errorf("truncated: %q, %v", got, err)
	}
	if _, err = f.Get(t.Context(), "x", 4, 8, nil); !errors.Is(err, objstore.ErrRange) {
		t.Errorf("truncated range: %v", err)
	}
	fault = memstore.None
	f.SetDown(true)
	if _, err = f.Get(t.Context(), "x", 0, -1, nil); !errors.Is(err, objstore.ErrDown) {
		t.Errorf("down: %v", err)
	}
}

func TestBlockingHook(t *testing.T) {
	release := make(chan struct{})
	f := memstore.WithFaults(memstore.New("a"), memstore.Faults{
		Before: func(ctx context.Context, _ memstore.Call) error {
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Put(ctx, "x", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a hung call that is canceled: %v", err)
	}
	close(release)
	if err := f.Put(t.Context(), "x", nil); err != nil {
		t.Error(err)
	}
}

func TestSeededIsReproducible(t *testing.T) {
	a, b := memstore.Seeded(7, 0.5, memstore.FailBefore, memstore.FailAfter), memstore.Seeded(7, 0.5, memstore.FailBefore, memstore.FailAfter)
	hits := 0
	for i := range int64(200) {
		x, y := a(memstore.Call{N: i}), b(memstore.Call{N: i})
		if x != y {
			t.Fatalf("call %d: %v and %v", i, x, y)
		}
		if x != memstore.None {
			hits++
		}
	}
	if hits < 60 || hits > 140 {
		t.Errorf("%d of 200 calls hit at a rate of one half", hits)
	}
}
