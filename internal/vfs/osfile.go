package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// osFile is an open file of the operating system. Nothing uses its position,
// so that seeking for sizes and holes disturbs nobody.
type osFile struct {
	f *os.File
}

var _ File = (*osFile)(nil)

// OSFile returns the descriptor behind a file of [OS], for system calls that
// this package does not wrap. It remains f's: the caller does not close it.
func OSFile(f File) (*os.File, bool) {
	if o, ok := base(f).(*osFile); ok {
		return o.f, true
	}
	return nil, false
}

// ReadAt implements [File].
func (o *osFile) ReadAt(p []byte, off int64) (int, error) { return o.f.ReadAt(p, off) }

// WriteAt implements [File].
func (o *osFile) WriteAt(p []byte, off int64) (int, error) { return o.f.WriteAt(p, off) }

// Close implements [File].
func (o *osFile) Close() error { return o.f.Close() }

// Truncate implements [File].
func (o *osFile) Truncate(size int64) error { return o.f.Truncate(size) }

// Stat implements [File].
func (o *osFile) Stat() (fs.FileInfo, error) { return o.f.Stat() }

// Sync implements [File].
func (o *osFile) Sync() error { return control(o.f, "fdatasync", unix.Fdatasync) }

// end returns the size, also of a block device, of which Stat knows none.
func (o *osFile) end() (int64, error) {
	var size int64
	err := control(o.f, "seek", func(fd int) error {
		var err error
		size, err = unix.Seek(fd, 0, io.SeekEnd)
		return err
	})
	return size, err
}

const (
	punchHole = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zeroRange = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

// Zero implements [File].
func (o *osFile) Zero(off, n int64, punch bool) error {
	n, err := o.within(off, n)
	if err != nil || n <= 0 {
		return err
	}
	modes := []uint32{zeroRange}
	if punch {
		modes = []uint32{punchHole, zeroRange}
	}
	if err := o.fallocate(modes, off, n); err == nil || !unsupported(err) {
		return err
	}
	return o.writeZeros(off, n)
}

// ZeroFast implements [File].
func (o *osFile) ZeroFast(off, n int64, punch bool) error {
	n, err := o.within(off, n)
	if err != nil || n <= 0 {
		return err
	}
	info, err := o.f.Stat()
	if err != nil {
		return err
	}
	var modes []uint32
	if punch {
		modes = []uint32{punchHole}
	}
	if info.Mode().IsRegular() { // where a device has no other means, the kernel writes zeros for ZERO_RANGE
		modes = append(modes, zeroRange)
	}
	err = o.fallocate(modes, off, n)
	if unsupported(err) {
		return fmt.Errorf("%s can only have zeros written: %w", o.f.Name(), errors.ErrUnsupported)
	}
	return err
}

// within cuts n so that a range does not go beyond the end.
func (o *osFile) within(off, n int64) (int64, error) {
	if off < 0 || n < 0 {
		return 0, &fs.PathError{Op: "zero", Path: o.f.Name(), Err: unix.EINVAL}
	}
	size, err := o.end()
	return min(n, size-off), err
}

// fallocate tries modes in order; without one that is supported its error is one too.
func (o *osFile) fallocate(modes []uint32, off, n int64) error {
	err := error(unix.EOPNOTSUPP)
	for _, mode := range modes {
		err = control(o.f, "fallocate", func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
		if err == nil || !unsupported(err) {
			return err
		}
	}
	return err
}

// unsupported tells whether writing zeros is the way out: the file system or
// device cannot do it, or (EINVAL) not at this alignment.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV)
}

func (o *osFile) writeZeros(off, n int64) error {
	const align = 4096 // for descriptors opened with O_DIRECT
	buf := make([]byte, min(n, 1<<20)+align)
	if rest := int(uintptr(unsafe.Pointer(unsafe.SliceData(buf))) % align); rest != 0 {
		buf = buf[align-rest:]
	}
	for n > 0 {
		k, err := o.f.WriteAt(buf[:min(n, 1<<20)], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// NextData implements [File].
func (o *osFile) NextData(off int64) (start, end int64, err error) {
	size, err := o.end()
	if err != nil {
		return 0, 0, err
	}
	if off < 0 || off >= size {
		return 0, 0, io.EOF
	}
	err = control(o.f, "seek", func(fd int) error {
		var serr error
		if start, serr = unix.Seek(fd, off, unix.SEEK_DATA); serr != nil {
			return serr
		}
		end, serr = unix.Seek(fd, start, unix.SEEK_HOLE)
		return serr
	})
	switch {
	case errors.Is(err, unix.ENXIO):
		// No data follow, or the file changed between the two calls, which
		// the second look tells apart.
		if start, err = o.seekData(off); errors.Is(err, unix.ENXIO) {
			return 0, 0, io.EOF
		} else if err != nil {
			return 0, 0, err
		}
		return start, size, nil
	case unsupported(err):
		return off, size, nil // A device, or a file system without holes: all is data.
	case err != nil:
		return 0, 0, err
	}
	return start, end, nil
}

func (o *osFile) seekData(off int64) (start int64, err error) {
	err = control(o.f, "seek", func(fd int) error {
		var serr error
		start, serr = unix.Seek(fd, off, unix.SEEK_DATA)
		return serr
	})
	return start, err
}
