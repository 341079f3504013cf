package restore

import (
	"context"
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/blockmap"
)

// directUnit is what offsets, lengths and buffers of direct I/O are multiples
// of; no disk asks for more.
const directUnit = 4096

// fileTarget writes a regular file or a block device. Aligned pieces go past
// the page cache where the file system can do that: the cache would copy each
// byte once more each way, and what is read back then is what the disk has.
type fileTarget struct {
	f      *os.File
	direct *os.File // the same file with O_DIRECT; nil = not to be had
	size   int64
}

var _ Target = (*fileTarget)(nil)

// newFileTarget opens f a second time for direct I/O. Close closes only that.
func newFileTarget(f *os.File, size int64) *fileTarget {
	t := &fileTarget{f: f, size: size}
	// The name would not do: the file may have none.
	if d, err := os.OpenFile(procName(int(f.Fd())), os.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0); err == nil {
		t.direct = d
	}
	return t
}

// Close ends what newFileTarget began; the file itself stays open.
func (t *fileTarget) Close() error {
	if t.direct == nil {
		return nil
	}
	return t.direct.Close()
}

// file is the one to use for p at off.
func (t *fileTarget) file(p []byte, off int64) *os.File {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	if t.direct == nil || (start|uintptr(off)|uintptr(len(p)))%directUnit != 0 { //nolint:gosec // off is not negative
		return t.f
	}
	return t.direct
}

// Size is fixed.
func (t *fileTarget) Size() int64 { return t.size }

// ReadAt reads the file.
func (t *fileTarget) ReadAt(_ context.Context, p []byte, off int64) error {
	f := t.file(p, off)
	_, err := f.ReadAt(p, off)
	if f == t.direct && errors.Is(err, unix.EINVAL) {
		_, err = t.f.ReadAt(p, off) // a file system that opens but does not serve
	}
	return err
}

// WriteAt writes the file; Flush makes it durable.
func (t *fileTarget) WriteAt(_ context.Context, p []byte, off int64) error {
	f := t.file(p, off)
	_, err := f.WriteAt(p, off)
	if f == t.direct && errors.Is(err, unix.EINVAL) {
		_, err = t.f.WriteAt(p, off)
	}
	return err
}

// Flush makes data and size durable.
func (t *fileTarget) Flush(context.Context) error { return t.f.Sync() }

// Zero frees the range where that is possible and writes zeros otherwise.
func (t *fileTarget) Zero(_ context.Context, off, n int64) error {
	err := unix.Fallocate(int(t.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	_, err = t.f.WriteAt(make([]byte, n), off)
	return err
}

// Extents says that all may be data: what is not is found by reading.
func (t *fileTarget) Extents(_ context.Context, off, n int64) ([]blockmap.Extent, error) {
	return []blockmap.Extent{{Offset: off, Length: n, State: blockmap.Data}}, nil
}
