package nbd

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// DetachKernel makes what was written to /dev/nbdN durable and detaches it, whoever
// attached it. A device that is mounted, or that a program has to itself, is refused,
// but with force: then what was not written yet is lost.
func DetachKernel(path string, force bool) error { return detachKernel(path, force, openDriver) }

func detachKernel(path string, force bool, open opener) (err error) {
	index, err := kernelIndex(path)
	if err != nil {
		return err
	}
	d, err := open(false)
	if err != nil {
		return fmt.Errorf("nbd: detach %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	ok, err := d.connected(index)
	if err == nil && !ok {
		err = fmt.Errorf("nbd: %s is not attached to anything", path)
	}
	if err != nil {
		return err
	}
	return detach(d, index, force)
}

// detach detaches a device. Nobody can mount it between the look and that.
func detach(d *driver, index int, force bool) error {
	path := KernelPath(index)
	if !force {
		fd, err := flushDevice(path)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	if err := d.disconnect(index); err != nil {
		return fmt.Errorf("nbd: detach %s: %w", path, err)
	}
	return nil
}

// flushDevice takes a device for this program alone and makes what was written to it
// durable.
func flushDevice(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	readOnly := errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES)
	if readOnly {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return 0, fmt.Errorf("nbd: %s is mounted or in use: end that first, or detach it by force and lose what is not written: %w", path, err)
	case err != nil:
		return 0, fmt.Errorf("nbd: flush %s: %w", path, err)
	case readOnly:
		return fd, nil
	}
	if err := unix.Fsync(fd); err != nil {
		return 0, errors.Join(fmt.Errorf("nbd: flush %s: %w", path, err), unix.Close(fd))
	}
	return fd, nil
}
