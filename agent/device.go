package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/nbd"
)

// imageDevice serves a backup over NBD to one connection: read-only, or
// through an overlay. The functions hold the connection's context.
type imageDevice struct {
	guests  *guests
	size    int64
	read    func(p []byte, off int64) error
	write   func(p []byte, off int64) error // nil = read-only, and so are the next two
	zero    func(off, n int64, fast bool) error
	flush   func() error
	extents func(off, n int64) ([]blockmap.Extent, error)
	depths  func(off, n int64) ([]blockmap.Extent, error) // nil = there is one layer
}

// imageContexts are the metadata contexts of an export, with or without an overlay.
func imageContexts(overlay bool) []string {
	if overlay {
		return []string{nbd.ContextAllocation, nbd.ContextDepth}
	}
	return []string{nbd.ContextAllocation}
}

var (
	_ nbd.Device     = (*imageDevice)(nil)
	_ nbd.FastZeroer = (*imageDevice)(nil)
)

// openDevice makes the device of a connection that has entered; o is nil for a
// read-only one.
func openDevice(ctx context.Context, img image, o *overlay, g *guests) *imageDevice {
	if o == nil {
		return &imageDevice{
			guests:  g,
			size:    img.Size(),
			read:    func(p []byte, off int64) error { return img.ReadAt(ctx, p, off) },
			extents: func(off, n int64) ([]blockmap.Extent, error) { return img.Extents(ctx, off, n) },
		}
	}
	return &imageDevice{
		guests:  g,
		size:    o.size,
		read:    func(p []byte, off int64) error { return o.readAt(ctx, p, off) },
		write:   func(p []byte, off int64) error { return o.writeAt(ctx, p, off) },
		zero:    func(off, n int64, fast bool) error { return o.zero(ctx, off, n, fast) },
		flush:   o.flush,
		extents: func(off, n int64) ([]blockmap.Extent, error) { return o.extents(ctx, off, n) },
		depths:  func(off, n int64) ([]blockmap.Extent, error) { return o.depths(ctx, off, n) },
	}
}

// Size is the backup's.
func (d *imageDevice) Size() int64 { return d.size }

// ReadAt reads the overlay, and the backup where that has nothing.
func (d *imageDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.read(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt writes to the overlay.
func (d *imageDevice) WriteAt(p []byte, off int64) (int, error) {
	if d.write == nil {
		return 0, syscall.EPERM
	}
	if err := d.write(p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush makes the overlay durable.
func (d *imageDevice) Flush() error {
	if d.flush == nil {
		return nil
	}
	return d.flush()
}

// Trim frees what it can, which makes the range zero.
func (d *imageDevice) Trim(off, n int64) error { return d.Zero(off, n, true) }

// Zero makes a range of the overlay zero.
func (d *imageDevice) Zero(off, n int64, _ bool) error {
	if d.zero == nil {
		return syscall.EPERM
	}
	return d.zero(off, n, false)
}

// ZeroFast does that where the overlay need not write zeros. Of the backup it may
// have to read the two blocks that the range begins and ends in.
func (d *imageDevice) ZeroFast(off, n int64, _ bool) error {
	if d.zero == nil {
		return syscall.EPERM
	}
	return d.zero(off, n, true)
}

// Map tells data from holes, and in which layer the data are.
func (d *imageDevice) Map(name string, off, n int64) ([]blockmap.Extent, error) {
	switch {
	case name == nbd.ContextAllocation:
		return d.extents(off, n)
	case name == nbd.ContextDepth && d.depths != nil:
		return d.depths(off, n)
	default:
		return nil, fmt.Errorf("there is no context %q", name)
	}
}

// Close ends the connection; backup and overlay stay open.
func (d *imageDevice) Close() error {
	d.guests.leave()
	return nil
}

// diskFile is an overlay's file on a file system.
type diskFile struct{ *os.File }

var _ overlayFile = diskFile{}

// Zero punches a hole, or writes zeros where the file system has none.
func (f diskFile) Zero(off, n int64, punch bool) error {
	if punch {
		if err := f.ZeroFast(off, n, true); err == nil || !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	p := make([]byte, min(n, 1<<20))
	for n > 0 {
		l := min(n, int64(len(p)))
		if _, err := f.WriteAt(p[:l], off); err != nil {
			return err
		}
		off, n = off+l, n-l
	}
	return nil
}

// ZeroFast punches a hole.
func (f diskFile) ZeroFast(off, n int64, _ bool) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// Sync makes data and size durable.
func (f diskFile) Sync() error { return unix.Fdatasync(int(f.Fd())) }
