package volume

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

const bs = blockmap.DefaultBlockSize

// fakeHost is a machine whose clock, boots and free space a test decides on.
type fakeHost struct {
	mu    sync.Mutex
	now   time.Time // zero = the real clock
	boot  string
	since time.Time
	free  int64
}

func newHost() *fakeHost { return &fakeHost{boot: "boot-1", since: time.Now().Add(-time.Hour)} }

func (h *fakeHost) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now.IsZero() {
		return time.Now()
	}
	return h.now
}

func (h *fakeHost) Boot() (string, time.Time, error)      { return h.boot, h.since, nil }
func (h *fakeHost) DeviceWrites(*os.File) (uint64, error) { return 0, nil }
func (h *fakeHost) Free(*os.File) (int64, error)          { return h.free, nil }
func (h *fakeHost) reboot()                               { h.boot, h.since = uuid.NewString(), time.Now() }
func memOptions(m *vfs.Mem, h Host) Options               { return Options{FS: m, Host: h} }

// newManaged makes a managed volume in memory.
func newManaged(tb testing.TB, o Options, size int64) *Volume {
	tb.Helper()
	v, err := Create(o, "/state/vol", Spec{Name: "vol", Size: size, Managed: true})
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

// tester is what the checks below need of a testing.TB or a rapid.T.
type tester interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// must fails the test on an error.
func must(tb tester, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// fill returns n random bytes.
func fill(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// snap takes a snapshot of one volume.
func snap(tb testing.TB, v *Volume, o SnapshotOptions) *Snapshot {
	tb.Helper()
	ss, err := SnapshotGroup(tb.Context(), []*Volume{v}, []SnapshotOptions{o})
	if err != nil {
		tb.Fatal(err)
	}
	return ss[0]
}

// content reads all of a volume or snapshot.
func content(tb tester, r io.ReaderAt, size int64) []byte {
	tb.Helper()
	p := make([]byte, size)
	if n, err := r.ReadAt(p, 0); err != nil || int64(n) != size {
		tb.Fatalf("read %d of %d bytes: %v", n, size, err)
	}
	return p
}

// same fails the test at the first block that differs.
func same(tb tester, what string, got, want []byte) {
	tb.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		tb.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			tb.Fatalf("%s: byte %d (block %d) is %#x, want %#x", what, i, i/bs, got[i], want[i])
		}
	}
}

// testContext is for those that have no testing.TB at hand.
var testContext = context.Background()
