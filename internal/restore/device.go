package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Device restores img to an existing block device, or into an existing file
// in place: only blocks that differ are written. The device is held
// exclusively, so that one that is mounted is refused. After an error it
// holds a mixture of old and new, and the restore may be repeated.
func Device(ctx context.Context, img Image, name string, o Options) (p Progress, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return Progress{}, fmt.Errorf("restore to %s: it is mounted or held by another program: unmount it or stop that program: %w", name, err)
	}
	if err != nil {
		return Progress{}, fmt.Errorf("restore to %s: %w", name, err)
	}
	defer func() {
		if cerr := f.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("restore to %s: %w", name, cerr)
		}
	}()
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return Progress{}, fmt.Errorf("restore to %s: another program holds it: stop that program: %w", name, err)
	}
	// The size of a device is not in its file information.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Progress{}, fmt.Errorf("restore to %s: %w", name, err)
	}
	target := newFileTarget(f, size)
	p, err = Copy(ctx, img, target, o)
	if err = errors.Join(err, target.Close()); err != nil {
		return p, fmt.Errorf("restore to %s: %w", name, err)
	}
	return p, nil
}
