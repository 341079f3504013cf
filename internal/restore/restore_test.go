package restore

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
)

const testBlock = 64 << 10

var errFault = errors.New("injected fault")

// faults fails the n-th of its uses.
type faults struct{ left atomic.Int64 }

func (f *faults) hit() error {
	if f != nil && f.left.Add(-1) == 0 {
		return errFault
	}
	return nil
}

// mapImage is an image of blocks in a map; absent blocks are holes.
type mapImage struct {
	size   int64
	blocks map[int64][]byte
	faults *faults
	reads  atomic.Int64 // bytes
}

func (m *mapImage) Size() int64 { return m.size }

func (m *mapImage) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := m.faults.hit(); err != nil {
		return err
	}
	m.reads.Add(int64(len(p)))
	for i := range p {
		at := off + int64(i)
		p[i] = 0
		if b := m.blocks[at/testBlock]; b != nil {
			p[i] = b[at%testBlock]
		}
	}
	return nil
}

func (m *mapImage) Extents(_ context.Context, off, n int64) ([]blockmap.Extent, error) {
	// One extent at a time: a caller has to come again.
	i := off / testBlock
	end := min(off+n, (i+1)*testBlock)
	e := blockmap.Extent{Offset: off, Length: end - off, State: blockmap.Hole | blockmap.Zero}
	if m.blocks[i] != nil {
		e.State = blockmap.Data
	}
	return []blockmap.Extent{e}, nil
}

func (m *mapImage) Differs(_ context.Context, block int64, plain []byte) (bool, error) {
	if err := m.faults.hit(); err != nil {
		return false, err
	}
	want := m.blocks[block]
	return want == nil || !bytes.Equal(want[:len(plain)], plain), nil
}

func (m *mapImage) content() []byte {
	p := make([]byte, m.size)
	for i, b := range m.blocks {
		copy(p[i*testBlock:], b)
	}
	return p
}

func drawImage(t *rapid.T, r *rand.Rand) *mapImage {
	m := &mapImage{size: rapid.Int64Range(0, 24<<20).Draw(t, "size"), blocks: map[int64][]byte{}}
	if rapid.Bool().Draw(t, "aligned") {
		m.size -= m.size % testBlock
	}
	n := (m.size + testBlock - 1) / testBlock
	for range rapid.IntRange(0, 30).Draw(t, "runs") {
		if n == 0 {
			break
		}
		first := r.Int64N(n)
		for i := first; i < min(n, first+1+r.Int64N(20)); i++ {
			m.blocks[i] = noise(r)
		}
	}
	return m
}

func noise(r *rand.Rand) []byte {
	b := make([]byte, testBlock)
	for i := range b[:64] {
		b[i] = byte(r.Uint32() | 1)
	}
	b[testBlock-1] = byte(r.Uint32() | 1)
	return b
}

// memTarget is a target in memory that counts what is written.
type memTarget struct {
	mu      sync.Mutex
	data    []byte
	written int64
	zeroed  int64
	flushes int
	faults  *faults
	lie     bool // return other bytes than were written
	sticky  bool // zero nothing
}

func (m *memTarget) Size() int64 { return int64(len(m.data)) }

func (m *memTarget) ReadAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copy(p, m.data[off:])
	if m.lie && m.written > 0 {
		p[len(p)-1] ^= 1
	}
	return m.faults.hit()
}

func (m *memTarget) WriteAt(_ context.Context, p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.written += int64(copy(m.data[off:], p))
	return m.faults.hit()
}

func (m *memTarget) Zero(_ context.Context, off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.sticky {
		clear(m.data[off : off+n])
	}
	m.zeroed += n
	return m.faults.hit()
}

func (m *memTarget) Extents(_ context.Context, off, n int64) ([]blockmap.Extent, error) {
	e := blockmap.Extent{Offset: off, Length: n}
	if off%(2*stepSize) == 0 && zeros(m.data[off:off+n]) {
		e.State = blockmap.Zero
	}
	return []blockmap.Extent{e}, m.faults.hit()
}

func (m *memTarget) Flush(context.Context) error {
	m.flushes++
	return m.faults.hit()
}

func TestCopy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		img := drawImage(t, r)
		want := img.content()
		target := &memTarget{data: make([]byte, img.size+rapid.Int64Range(0, 100).Draw(t, "more"))}
		o := Options{Fresh: rapid.Bool().Draw(t, "fresh"), Workers: rapid.IntRange(1, 4).Draw(t, "workers"), Verify: rapid.Bool().Draw(t, "verify")}
		different := int64(0)
		if !o.Fresh {
			// What the target holds: the image, but for some blocks.
			copy(target.data, want)
			for i := range (img.size + testBlock - 1) / testBlock {
				if r.IntN(5) == 0 {
					different++
					target.data[min(img.size-1, i*testBlock+r.Int64N(testBlock))] ^= 0x55
				}
			}
			for i := img.size; i < target.Size(); i++ {
				target.data[i] = 7
			}
		}
		tail := bytes.Clone(target.data[img.size:])
		calls := 0
		o.Progress = func(Progress) { calls++ }
		p, err := Copy(context.Background(), img, target, o)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(target.data[:img.size], want) || !bytes.Equal(target.data[img.size:], tail) {
			t.Fatal("the target differs from the image")
		}
		if p.Done != img.size || p.Total != img.size || target.flushes != 1 || (img.size > 0) != (calls > 0) {
			t.Fatalf("progress %+v after %d calls, %d flushes", p, calls, target.flushes)
		}
		if p.Written != target.written || p.Zeroed != target.zeroed || p.Read != img.reads.Load() {
			t.Fatalf("progress %+v, counted: written %d zeroed %d read %d", p, target.written, target.zeroed, img.reads.Load())
		}
		if o.Fresh && p.Written > int64(len(img.blocks))*testBlock {
			t.Fatalf("%d bytes written for %d blocks of data", p.Written, len(img.blocks))
		}
		if !o.Fresh && p.Written+p.Zeroed > different*testBlock {
			t.Fatalf("%d+%d bytes changed for %d blocks that differ", p.Written, p.Zeroed, different)
		}
		if sum := p.Read + p.Zeroed + p.Same + p.Hole; sum != p.Done {
			t.Fatalf("%+v does not add up: %d", p, sum)
		}
	})
}

// A restore that failed anywhere reports the failure, and can be repeated.
func TestCopyFaults(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		img := drawImage(t, r)
		target := &memTarget{data: make([]byte, img.size)}
		for i := range target.data {
			target.data[i] = byte(i >> 12)
		}
		f := &faults{}
		f.left.Store(rapid.Int64Range(1, 60).Draw(t, "after"))
		if rapid.Bool().Draw(t, "image") {
			img.faults = f
		} else {
			target.faults = f
		}
		_, err := Copy(context.Background(), img, target, Options{Verify: rapid.Bool().Draw(t, "verify")})
		if fired := f.left.Load() <= 0; fired != (err != nil) || err != nil && !errors.Is(err, errFault) {
			t.Fatalf("fault fired: %v, error: %v", fired, err)
		}
		img.faults, target.faults = nil, nil
		if _, err := Copy(context.Background(), img, target, Options{}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(target.data, img.content()) {
			t.Fatal("the repeated restore differs")
		}
	})
}

func TestCopyRefusals(t *testing.T) {
	img := &mapImage{size: 1 << 20, blocks: map[int64][]byte{3: noise(rand.New(rand.NewPCG(1, 1)))}}
	if _, err := Copy(t.Context(), img, &memTarget{data: make([]byte, 1<<20-1)}, Options{}); !errors.Is(err, ErrTooSmall) {
		t.Errorf("small target: %v", err)
	}
	if _, err := Copy(t.Context(), img, &memTarget{data: make([]byte, 1<<20), lie: true}, Options{Fresh: true, Verify: true}); !errors.Is(err, ErrMismatch) {
		t.Errorf("lying target: %v", err)
	}
	old := bytes.Repeat([]byte{1}, 1<<20)
	if _, err := Copy(t.Context(), &mapImage{size: 1 << 20}, &memTarget{data: old, sticky: true}, Options{Verify: true}); !errors.Is(err, ErrMismatch) {
		t.Errorf("target that stays as it was: %v", err)
	}
	if _, err := Copy(t.Context(), img, &memTarget{}, Options{BlockSize: 3}); err == nil {
		t.Error("block size 3 was taken")
	}
}

func TestCopyCancel(t *testing.T) {
	img := &mapImage{size: 64 << 20, blocks: map[int64][]byte{}}
	r := rand.New(rand.NewPCG(2, 2))
	for i := range int64(1024) {
		img.blocks[i] = noise(r)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	p, err := Copy(ctx, img, &memTarget{data: make([]byte, img.size)}, Options{Fresh: true, Progress: func(p Progress) {
		if p.Done >= 4<<20 {
			cancel(errFault)
		}
	}})
	if !errors.Is(err, errFault) || p.Done >= p.Total {
		t.Errorf("after cancel: %v, %+v", err, p)
	}
}

func TestFile(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	img := &mapImage{size: 9<<20 + 77, blocks: map[int64][]byte{0: noise(r), 5: noise(r), 100: noise(r), 144: noise(r)}}
	dir := t.TempDir()
	name := filepath.Join(dir, "disk.raw")
	if _, err := File(t.Context(), img, name, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		got, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(got, img.content()) {
			t.Fatalf("the file differs (%v)", err)
		}
		if l, err := os.ReadDir(dir); err != nil || len(l) != 1 {
			t.Fatalf("left in the folder: %v, %v", l, err)
		}
	}
	check()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	if st.Blocks*512 > 2<<20 {
		t.Errorf("the file of 4 blocks of data takes %d bytes", st.Blocks*512)
	}
	if st.Mode&0o777 != 0o600 {
		t.Errorf("mode %o", st.Mode)
	}
	img.blocks[7] = noise(r)
	if _, err := File(t.Context(), img, name, FileOptions{}); !errors.Is(err, ErrExists) {
		t.Errorf("existing file: %v", err)
	}
	if _, err := File(t.Context(), img, name, FileOptions{Overwrite: true}); err != nil {
		t.Error(err)
	}
	check()
	// A failure leaves what was there, and nothing else.
	want := img.content()
	bad := &mapImage{size: img.size, blocks: img.blocks, faults: &faults{}}
	bad.faults.left.Store(3)
	if _, err := File(t.Context(), bad, name, FileOptions{Overwrite: true}); !errors.Is(err, errFault) {
		t.Errorf("fault: %v", err)
	}
	if !bytes.Equal(want, img.content()) {
		t.Fatal("test changed its image")
	}
	check()
	bad.faults.left.Store(2)
	if _, err := File(t.Context(), bad, filepath.Join(dir, "other"), FileOptions{}); !errors.Is(err, errFault) {
		t.Errorf("fault: %v", err)
	}
	check()
	if _, err := File(t.Context(), img, filepath.Join(dir, "no", "such"), FileOptions{}); err == nil || errors.Is(err, fs.ErrExist) {
		t.Errorf("folder that is not there: %v", err)
	}
	if _, err := File(t.Context(), img, dir, FileOptions{Overwrite: true}); err == nil {
		t.Error("a folder was overwritten")
	}
}

// A file that is open as somebody's disk is not taken away from below it.
func TestFileHeld(t *testing.T) {
	img := &mapImage{size: 1 << 20}
	name := filepath.Join(t.TempDir(), "disk.raw")
	hold := map[string]func(fd int) error{
		"flock": func(fd int) error { return unix.Flock(fd, unix.LOCK_EX) },
		"qemu": func(fd int) error {
			return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 100, Len: 1})
		},
	}
	for what, lock := range hold {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := lock(int(f.Fd())); err != nil {
			t.Fatal(err)
		}
		if _, err := File(t.Context(), img, name, FileOptions{Overwrite: true}); !errors.Is(err, ErrHeld) {
			t.Errorf("%s: %v", what, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := File(t.Context(), img, name, FileOptions{Overwrite: true}); err != nil {
			t.Errorf("%s, let go: %v", what, err)
		}
	}
}

// Where files without a name are not possible a temporary name serves.
func TestFileNamed(t *testing.T) {
	for _, overwrite := range []bool{false, true} {
		dir := t.TempDir()
		name := filepath.Join(dir, "disk.raw")
		temp := tempName(name)
		f, err := os.Create(temp)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		left, err := publish(f, temp, name, overwrite)
		if err != nil {
			t.Fatal(err)
		}
		if left != "" {
			if err := os.Remove(left); err != nil {
				t.Fatal(err)
			}
		}
		if l, err := os.ReadDir(dir); err != nil || len(l) != 1 || l[0].Name() != "disk.raw" {
			t.Fatalf("left: %v, %v", l, err)
		}
	}
}

func TestFileNoSpace(t *testing.T) {
	img := &hugeImage{}
	_, err := File(t.Context(), img, filepath.Join(t.TempDir(), "x"), FileOptions{})
	if !errors.Is(err, ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("an image of an exbibyte: %v", err)
	}
}

// hugeImage says that it is full of data.
type hugeImage struct{ mapImage }

func (*hugeImage) Size() int64 { return 1 << 56 }

func (*hugeImage) Extents(_ context.Context, off, n int64) ([]blockmap.Extent, error) {
	return []blockmap.Extent{{Offset: off, Length: n}}, nil
}

func TestDevice(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	img := &mapImage{size: 5 << 20, blocks: map[int64][]byte{1: noise(r), 50: noise(r), 79: noise(r)}}
	name := filepath.Join(t.TempDir(), "device")
	old := bytes.Repeat([]byte("old "), 6<<18)
	if err := os.WriteFile(name, old, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Device(t.Context(), img, name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got[:img.size], img.content()) || !bytes.Equal(got[img.size:], old[img.size:]) {
		t.Fatalf("the device differs (%v)", err)
	}
	if p.Written != 3*testBlock || p.Zeroed != 5<<20-3*testBlock {
		t.Errorf("progress %+v", p)
	}
	if p, err = Device(t.Context(), img, name, Options{}); err != nil || p.Written+p.Zeroed != 0 {
		t.Errorf("again: %+v, %v", p, err)
	}
}
