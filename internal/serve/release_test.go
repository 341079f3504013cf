package serve_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// kept keeps what is logged.
type kept struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (k *kept) Write(p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.buf.Write(p)
}

func (k *kept) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.buf.String()
}

// A reader releases what it has read of a temporary snapshot: that costs guests nothing
// any more, is not to be read again, and what is behind it stays.
func TestRelease(t *testing.T) {
	var log kept
	o := options(t)
	o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	p := start(t, o)
	const block, size = 64 << 10, 16 * 64 << 10
	v := p.create(t, "db", size)
	c, err := nbd.Dial(t.Context(), v.URI, nbd.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	was := bytes.Repeat([]byte{1}, size)
	write := func(with byte) {
		t.Helper()
		if werr := c.WriteAt(t.Context(), bytes.Repeat([]byte{with}, size), 0, false); werr != nil {
			t.Fatal(werr)
		}
	}
	write(1)
	snap := func(name string, temporary bool) serve.Snapshot {
		t.Helper()
		l, serr := p.CreateSnapshots(t.Context(), serve.CreateSnapshots{Volumes: []string{"db"}, Name: name, Temporary: temporary, Force: true})
		if serr != nil {
			t.Fatal(serr)
		}
		return l[0]
	}
	s := snap("temp", true)
	for _, before := range []int64{3 * block, 10*block + 5, 0} {
		if rerr := p.ReleaseSnapshot(t.Context(), s.ID, before); rerr != nil {
			t.Fatal(rerr)
		}
	}
	fresh, err := p.Snapshot(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	write(2)
	s, err = p.Snapshot(t.Context(), s.ID)
	if saved := s.PreimageBytes - fresh.PreimageBytes; err != nil || saved < 6*block || saved >= 7*block {
		t.Errorf("%d bytes of preimages, %v, want those of 6 blocks", saved, err)
	}
	r, err := nbd.Dial(t.Context(), s.URI, nbd.ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 6*block)
	if err := r.ReadAt(t.Context(), got, 10*block); err != nil || !bytes.Equal(got, was[10*block:]) {
		t.Errorf("what was not released cannot be read, or is other content: %v", err)
	}
	if err := r.ReadAt(t.Context(), got, 9*block); !errors.Is(err, nbd.EIO) {
		t.Errorf("what was released: %v", err)
	}
	if err := errors.Join(r.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
	keep := snap("keep", false)
	if err := p.ReleaseSnapshot(t.Context(), keep.ID, block); !errors.Is(err, serve.ErrInvalid) {
		t.Errorf("released one that stays: %v", err)
	}
	if err := p.ReleaseSnapshot(t.Context(), s.ID, -1); !errors.Is(err, serve.ErrInvalid) {
		t.Errorf("released before -1: %v", err)
	}
	if err := p.DeleteSnapshot(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := p.ReleaseSnapshot(t.Context(), s.ID, block); !errors.Is(err, serve.ErrNotFound) {
		t.Errorf("released one that is gone: %v", err)
	}
	if l := log.String(); strings.Contains(l, "/release") || !strings.Contains(l, "path=/v1/snapshots/"+s.ID) {
		t.Errorf("the log tells of each release, or of nothing:\n%s", l)
	}
}
