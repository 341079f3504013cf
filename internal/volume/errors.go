package volume

import (
	"errors"
	"fmt"
	"syscall"
)

// What callers tell apart with errors.Is. The full error is a sentence that
// names the volume or the file and the way out.
var (
	// ErrExist: the state folder is already there.
	ErrExist = errors.New("already exists")
	// ErrHeld: another process holds the data file or device.
	ErrHeld = errors.New("in use by another process")
	// ErrFormat: the file looks like an image format or an encrypted container, not like a raw disk.
	ErrFormat = errors.New("not a raw disk image")
	// ErrInvalid: the request makes no sense (sizes, paths, names).
	ErrInvalid = errors.New("invalid request")
	// ErrNotFound: no such snapshot.
	ErrNotFound = errors.New("not found")
	// ErrBroken: the snapshot lost its content; every read of it fails.
	ErrBroken = errors.New("snapshot is broken")
	// ErrDeleted: the snapshot was deleted while it was being used.
	ErrDeleted = errors.New("snapshot was deleted")
	// ErrReleased: the reader of a temporary snapshot said that it was done with this part.
	ErrReleased = errors.New("released by the snapshot's reader")
	// ErrFailed: the volume refuses writes until it is reopened.
	ErrFailed = fmt.Errorf("volume has failed: %w", syscall.EIO)
	// ErrDamaged: a state file is unreadable or of another version.
	ErrDamaged = errors.New("volume state is damaged")
	// ErrChanged: the attributes are not those that the caller read.
	ErrChanged = errors.New("the attributes have changed")
	// ErrForeign: the attributes are another volume's, or were written by a release that knows more.
	ErrForeign = errors.New("the attributes are not for this program")
	// ErrStale: what another host wrote may be hidden by pages that cannot be dropped.
	ErrStale = errors.New("the page cache may be older than the medium")
	// ErrClosed: the volume is closed.
	ErrClosed = errors.New("volume is closed")
)
