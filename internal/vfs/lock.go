package vfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// locker is a file that can be held exclusively.
type locker interface{ lock() error }

// base returns the innermost file of wrappers that have an Unwrap method.
func base(f File) File {
	for {
		w, ok := f.(interface{ Unwrap() File })
		if !ok {
			return f
		}
		f = w.Unwrap()
	}
}

// Lock takes f for this descriptor alone, or fails with [ErrLocked] at once.
// The lock is advisory and lasts until f is closed, or its process ends.
func Lock(f File) error {
	l, ok := base(f).(locker)
	if !ok {
		return fmt.Errorf("lock: %w", errors.ErrUnsupported)
	}
	return l.lock()
}

func (o *osFile) lock() error {
	err := control(o.f, "flock", func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", o.f.Name(), ErrLocked)
	}
	return err
}
