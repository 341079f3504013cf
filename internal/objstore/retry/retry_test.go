package retry_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/objstore/retry"
	"github.com/cairnbackup/cairn/internal/objstore/storetest"
)

// quick waits for next to nothing.
var quick = retry.Options{First: time.Microsecond, Most: time.Millisecond}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store { return retry.New(memstore.New("x"), quick) })
}

// TestConformanceWithFaults: what is tried again hides faults completely.
func TestConformanceWithFaults(t *testing.T) {
	storetest.Run(t, func(*testing.T) objstore.Store {
		flaky := memstore.Seeded(7, 0.2, memstore.FailBefore, memstore.FailAfter)
		f := memstore.WithFaults(memstore.New("x"), memstore.Faults{Decide: func(c memstore.Call) memstore.Fault {
			if c.Op == "put" {
				return memstore.None
			}
			return flaky(c)
		}})
		return retry.New(f, retry.Options{Attempts: 20, First: time.Microsecond, Most: time.Microsecond})
	})
}

// failing fails the first n calls with err, before or after they are done.
type failing struct {
	objstore.Store

	n     int
	err   error
	after bool
	calls int
}

func (f *failing) call(do func() error) error {
	f.calls++
	if f.calls > f.n {
		return do()
	}
	if f.after {
		if err := do(); err != nil {
			return err
		}
	}
	return f.err
}

func (f *failing) Put(ctx context.Context, name string, body []byte) error {
	return f.call(func() error { return f.Store.Put(ctx, name, body) })
}

func (f *failing) Get(ctx context.Context, name string, off, n int64, dst []byte) (out []byte, err error) {
	out = dst
	err = f.call(func() (err error) { out, err = f.Store.Get(ctx, name, off, n, dst); return err })
	if err != nil {
		out = dst
	}
	return out, err
}

var errFault = errors.New("fault")

func TestPut(t *testing.T) {
	tests := []struct {
		name  string
		n     int
		err   error
		after bool
		want  error
		calls int
	}{
		{"busy for a while", 3, objstore.ErrBusy, false, nil, 4},
		{"busy for ever", 9, objstore.ErrBusy, false, objstore.ErrBusy, 4},
		{"an open outcome is told", 1, errFault, false, errFault, 1},
		{"also when it was done", 1, errFault, true, errFault, 1},
		{"down", 1, objstore.ErrDown, false, objstore.ErrDown, 1},
		{"full", 1, objstore.ErrNoSpace, false, objstore.ErrNoSpace, 1},
		{"there", 1, objstore.ErrExist, false, objstore.ErrExist, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &failing{Store: memstore.New("x"), n: tt.n, err: fmt.Errorf("put: %w", tt.err), after: tt.after}
			if tt.err == nil {
				f.err = nil
			}
			err := retry.New(f, quick).Put(t.Context(), "a", []byte("x"))
			if !errors.Is(err, tt.want) || f.calls != tt.calls {
				t.Errorf("Put = %v behind %d calls, want %v behind %d", err, f.calls, tt.want, tt.calls)
			}
		})
	}
}

func TestGet(t *testing.T) {
	for err, calls := range map[error]int{
		errFault: 3, objstore.ErrBusy: 3, objstore.ErrDown: 1, objstore.ErrNotExist: 1, objstore.ErrRange: 1,
	} {
		f := &failing{Store: memstore.New("x"), n: 2, err: err}
		if perr := f.Store.Put(t.Context(), "a", []byte("body")); perr != nil {
			t.Fatal(perr)
		}
		got, gerr := retry.New(f, quick).Get(t.Context(), "a", 0, -1, []byte("the "))
		want := "the body"
		if calls == 1 {
			want = "the "
		}
		if f.calls != calls || string(got) != want || (gerr == nil) != (calls > 1) {
			t.Errorf("%v: Get = %q, %v behind %d calls, want %d", err, got, gerr, f.calls, calls)
		}
	}
}

// breaking breaks off each of its first listings one name farther on.
type breaking struct {
	objstore.Store

	n int
}

func (b *breaking) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	b.n++
	left := b.n
	err := b.Store.List(ctx, prefix, func(i objstore.Info) error {
		if left--; left < 0 && b.n < 4 {
			return errFault
		}
		return fn(i)
	})
	return err
}

func TestListGoesOn(t *testing.T) {
	m := memstore.New("x")
	for i := range 10 {
		if err := m.Put(t.Context(), fmt.Sprintf("l/%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	seen := make(map[string]int)
	s := retry.New(&breaking{Store: m}, quick)
	if err := s.List(t.Context(), "l/", func(i objstore.Info) error { seen[i.Name]++; return nil }); err != nil {
		t.Fatal(err)
	}
	for name, n := range seen {
		if n != 1 {
			t.Errorf("%s was named %d times", name, n)
		}
	}
	if len(seen) != 10 {
		t.Errorf("%d of 10 names", len(seen))
	}
	// What fn returns ends it.
	calls := 0
	err := s.List(t.Context(), "l/", func(objstore.Info) error { calls++; return errFault })
	if err != errFault || calls != 1 { //nolint:errorlint // the contract: as it is
		t.Errorf("List = %v behind %d calls", err, calls)
	}
}

func TestCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &failing{Store: memstore.New("x"), n: 9, err: errFault}
	s := retry.New(f, retry.Options{First: time.Hour, Most: time.Hour})
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := s.Get(ctx, "a", 0, -1, nil); !errors.Is(err, errFault) || f.calls != 1 {
		t.Errorf("Get = %v behind %d calls", err, f.calls)
	}
}
