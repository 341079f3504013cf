package vfs

import "errors"

var (
	// ErrLocked says that another descriptor holds the lock of a file.
	ErrLocked = errors.New("the file is in use by another process")
	// ErrCrashed is what every operation of a Mem answers after its power was lost.
	ErrCrashed = errors.New("the power is off")
	// ErrTooLarge says that a file exceeds the limit its reader gave.
	ErrTooLarge = errors.New("the file is larger than expected")
)
