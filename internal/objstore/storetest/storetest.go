// Package storetest is the conformance suite of objstore.Store: what every
// implementation and every decorator of one has to do.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// Run runs the suite. open returns an empty store, a new one each time; the
// suite closes it.
func Run(t *testing.T, open func(t *testing.T) objstore.Store) {
	t.Helper()
	tests := []struct {
		name string
		run  func(t *testing.T, s objstore.Store)
	}{
		{"put and get", putGet},
		{"create only", createOnly},
		{"one winner", oneWinner},
		{"ranges", ranges},
		{"appends", appends},
		{"sizes", sizes},
		{"not there", notThere},
		{"list", list},
		{"list stops", listStops},
		{"delete", deletes},
		{"names", names},
		{"canceled", canceled},
		{"concurrent", concurrent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			tt.run(t, s)
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
	}
}

func pattern(n, seed int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7 + i>>8 + seed) //nolint:gosec // any byte will do
	}
	return p
}

func put(t *testing.T, s objstore.Store, name string, body []byte) {
	t.Helper()
	if err := s.Put(t.Context(), name, body); err != nil {
		t.Fatalf("Put %s: %v", name, err)
	}
}

func putGet(t *testing.T, s objstore.Store) {
	t.Helper()
	body := pattern(5000, 1)
	sent := slices.Clone(body)
	put(t, s, "a/b/c", sent)
	clear(sent) // the store must not have kept the caller's buffer
	got, err := s.Get(t.Context(), "a/b/c", 0, -1, nil)
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("Get: %d bytes, %v", len(got), err)
	}
	clear(got) // nor may the caller reach into the store
	got, err = s.Get(t.Context(), "a/b/c", 0, 5000, nil)
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("second Get: %d bytes, %v", len(got), err)
	}
	size, err := s.Stat(t.Context(), "a/b/c")
	if err != nil || size != 5000 {
		t.Errorf("Stat = %d, %v", size, err)
	}
	if s.URL() == "" {
		t.Error("URL is empty")
	}
}

func createOnly(t *testing.T, s objstore.Store) {
	t.Helper()
	put(t, s, "x", []byte("first"))
	for _, body := range []string{"second", "first", ""} {
		if err := s.Put(t.Context(), "x", []byte(body)); !errors.Is(err, objstore.ErrExist) {
			t.Errorf("Put of an existing name = %v, want ErrExist", err)
		}
	}
	got, err := s.Get(t.Context(), "x", 0, -1, nil)
	if err != nil || string(got) != "first" {
		t.Errorf("Get = %q, %v", got, err)
	}
}

func oneWinner(t *testing.T, s objstore.Store) {
	t.Helper()
	const racers = 16
	errs := make([]error, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { errs[i] = s.Put(t.Context(), "sessions/s/verdict", pattern(300, i)) })
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner >= 0:
			t.Fatalf("both %d and %d won", winner, i)
		case err == nil:
			winner = i
		case !errors.Is(err, objstore.ErrExist):
			t.Errorf("racer %d: %v", i, err)
		}
	}
	if winner < 0 {
		t.Fatal("nobody won")
	}
	got, err := s.Get(t.Context(), "sessions/s/verdict", 0, -1, nil)
	if err != nil || !bytes.Equal(got, pattern(300, winner)) {
		t.Errorf("the winner's bytes are not what is stored: %v", err)
	}
}

func ranges(t *testing.T, s objstore.Store) {
	t.Helper()
	body := pattern(10000, 3)
	put(t, s, "r", body)
	tests := []struct {
		off, n int64
		err    error
	}{
		{0, 0, nil},
		{0, 1, nil},
		{9999, 1, nil},
		{4095, 4098, nil},
		{10000, 0, nil},
		{10000, -1, nil},
		{1, -1, nil},
		{0, 10001, objstore.ErrRange},
		{9999, 2, objstore.ErrRange},
		{10000, 1, objstore.ErrRange},
		{10001, -1, objstore.ErrRange},
		{-1, 4, objstore.ErrRange},
	}
	for _, tt := range tests {
		got, err := s.Get(t.Context(), "r", tt.off, tt.n, nil)
		if tt.err != nil {
			if !errors.Is(err, tt.err) {
				t.Errorf("Get(%d, %d) = %d bytes, %v, want %v", tt.off, tt.n, len(got), err, tt.err)
			}
			continue
		}
		end := tt.off + tt.n
		if tt.n < 0 {
			end = int64(len(body))
		}
		if err != nil || !bytes.Equal(got, body[tt.off:end]) {
			t.Errorf("Get(%d, %d) = %d bytes, %v", tt.off, tt.n, len(got), err)
		}
	}
}

func appends(t *testing.T, s objstore.Store) {
	t.Helper()
	put(t, s, "x", []byte("world"))
	dst := append(make([]byte, 0, 64), "hello "...)
	got, err := s.Get(t.Context(), "x", 0, -1, dst)
	if err != nil || string(got) != "hello world" {
		t.Errorf("Get = %q, %v", got, err)
	}
	if &got[0] != &dst[0] {
		t.Error("Get moved a buffer that was large enough")
	}
	got, err = s.Get(t.Context(), "missing", 0, -1, dst)
	if err == nil || string(got) != "hello " {
		t.Errorf("a failed Get returned %q, %v", got, err)
	}
}

func sizes(t *testing.T, s objstore.Store) {
	t.Helper()
	// Around what file systems and O_DIRECT care about.
	for i, n := range []int{0, 1, 511, 512, 4095, 4096, 4097, 256 << 10, 256<<10 + 1, 1 << 20, 3<<20 + 777} {
		name := fmt.Sprintf("sizes/%d", n)
		body := aligned(pattern(n, i))
		put(t, s, name, body)
		got, err := s.Get(t.Context(), name, 0, -1, nil)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
		if size, err := s.Stat(t.Context(), name); err != nil || size != int64(n) {
			t.Errorf("Stat of %d bytes = %d, %v", n, size, err)
		}
	}
	if err := s.Put(t.Context(), "sizes/huge", make([]byte, objstore.MaxObject+1)); !errors.Is(err, objstore.ErrTooLarge) {
		t.Errorf("Put of too large an object = %v", err)
	}
}

func notThere(t *testing.T, s objstore.Store) {
	t.Helper()
	put(t, s, "there/a", []byte("x"))
	for _, name := range []string{"missing", "there", "there/b", "there/a/b", "no/such/folder"} {
		if _, err := s.Get(t.Context(), name, 0, -1, nil); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("Get %s = %v, want ErrNotExist", name, err)
		}
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, objstore.ErrNotExist) {
			t.Errorf("Stat %s = %v, want ErrNotExist", name, err)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Errorf("Delete %s = %v", name, err)
		}
	}
	if _, err := s.Stat(t.Context(), "there/a"); err != nil {
		t.Errorf("deleting what is not there took another: %v", err)
	}
}

func listed(t *testing.T, s objstore.Store, prefix string) map[string]int64 {
	t.Helper()
	got := map[string]int64{}
	err := s.List(t.Context(), prefix, func(i objstore.Info) error {
		if _, ok := got[i.Name]; ok {
			t.Errorf("List(%q) names %s twice", prefix, i.Name)
		}
		got[i.Name] = i.Size
		return nil
	})
	if err != nil {
		t.Errorf("List(%q): %v", prefix, err)
	}
	return got
}

func list(t *testing.T, s objstore.Store) {
	t.Helper()
	all := map[string]int64{
		"top": 1, "packs/aa/1": 2, "packs/aa/2": 3, "packs/ab/1": 4, "packs/ab/0/1": 5,
		"prune/x/condemned": 6, "prune/x/done": 0, "prunes": 7, "a.b-c_d/0": 8,
	}
	for name, size := range all {
		put(t, s, name, pattern(int(size), 0))
	}
	for _, prefix := range []string{"", "t", "top", "packs/", "packs", "packs/a", "packs/aa/", "packs/ab/0", "prune", "prune/", "prune/x/do", "nothing/", "packs/aa/1/"} {
		want := maps.Clone(all)
		maps.DeleteFunc(want, func(name string, _ int64) bool { return !strings.HasPrefix(name, prefix) })
		if got := listed(t, s, prefix); !maps.Equal(got, want) {
			t.Errorf("List(%q) = %v, want %v", prefix, got, want)
		}
	}
}

func listStops(t *testing.T, s objstore.Store) {
	t.Helper()
	for i := range 5 {
		put(t, s, fmt.Sprintf("l/%d", i), nil)
	}
	stop := errors.New("enough")
	calls := 0
	err := s.List(t.Context(), "l/", func(i objstore.Info) error {
		calls++
		// fn may call the store.
		if _, err := s.Stat(t.Context(), i.Name); err != nil {
			t.Errorf("Stat inside List: %v", err)
		}
		if calls == 2 {
			return stop
		}
		return nil
	})
	if err != stop || calls != 2 { //nolint:errorlint // the contract: returned as it is
		t.Errorf("List = %v behind %d calls", err, calls)
	}
}

func deletes(t *testing.T, s objstore.Store) {
	t.Helper()
	put(t, s, "d/e/1", []byte("x"))
	put(t, s, "d/e/2", []byte("y"))
	for range 2 {
		if err := s.Delete(t.Context(), "d/e/1"); err != nil {
			t.Fatalf("Delete: %v", err)
		}
	}
	if got := listed(t, s, ""); !maps.Equal(got, map[string]int64{"d/e/2": 1}) {
		t.Errorf("left: %v", got)
	}
	if err := s.Delete(t.Context(), "d/e/2"); err != nil {
		t.Fatalf("Delete: %v", err)
	}
	put(t, s, "d/e/1", []byte("again")) // also where a folder was emptied
	if got, err := s.Get(t.Context(), "d/e/1", 0, -1, nil); err != nil || string(got) != "again" {
		t.Errorf("Get = %q, %v", got, err)
	}
}

func names(t *testing.T, s objstore.Store) {
	t.Helper()
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "A", "a b", "a\x00b", "ä", "a\\b", "a:b",
		strings.Repeat("a", 201), strings.Repeat("abcdefg/", 80),
	} {
		if err := s.Put(t.Context(), name, nil); !errors.Is(err, objstore.ErrName) {
			t.Errorf("Put %q = %v, want ErrName", name, err)
		}
		if _, err := s.Get(t.Context(), name, 0, -1, nil); !errors.Is(err, objstore.ErrName) {
			t.Errorf("Get %q = %v, want ErrName", name, err)
		}
		if err := s.Delete(t.Context(), name); !errors.Is(err, objstore.ErrName) {
			t.Errorf("Delete %q = %v, want ErrName", name, err)
		}
	}
	long := strings.Repeat(strings.Repeat("a", 100)+"/", 5) + "0123456"
	put(t, s, long, []byte("x"))
	if _, err := s.Stat(t.Context(), long); err != nil {
		t.Errorf("the longest name: %v", err)
	}
	if err := s.List(t.Context(), "A", func(objstore.Info) error { return nil }); !errors.Is(err, objstore.ErrName) {
		t.Errorf("List of an impossible prefix = %v", err)
	}
}

func canceled(t *testing.T, s objstore.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Put(ctx, "x", []byte("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Put = %v", err)
	}
	if _, err := s.Get(ctx, "x", 0, -1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Get = %v", err)
	}
}

func concurrent(t *testing.T, s objstore.Store) {
	t.Helper()
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				name := fmt.Sprintf("c/%d/%d", w%3, w*100+i)
				body := pattern(1000+i, w)
				if err := s.Put(t.Context(), name, body); err != nil {
					t.Errorf("Put %s: %v", name, err)
					return
				}
				got, err := s.Get(t.Context(), name, 0, -1, nil)
				if err != nil || !bytes.Equal(got, body) {
					t.Errorf("Get %s: %v", name, err)
				}
				if i%2 == 0 {
					if err := s.Delete(t.Context(), name); err != nil {
						t.Errorf("Delete %s: %v", name, err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got := listed(t, s, "c/"); len(got) != 80 {
		t.Errorf("%d objects are left, want 80", len(got))
	}
}
