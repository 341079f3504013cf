package objstore

import "errors"

// Errors of stores. They are wrapped with the operation and the object.
var (
	// ErrExist: an object of this name exists already.
	ErrExist = errors.New("object exists already")
	// ErrNotExist: no object has this name.
	ErrNotExist = errors.New("object does not exist")
	// ErrRange: the object ends before the range that was asked for.
	ErrRange = errors.New("object is shorter than the range asked for")
	// ErrDown: the store cannot be reached: a missing folder, an unmounted file
	// system, a host that does not answer. Nothing was changed.
	ErrDown = errors.New("store is down")
	// ErrNoSpace: the store has no room for the object. Nothing was changed.
	ErrNoSpace = errors.New("store is full")
	// ErrBusy: the store refused the call for now. Nothing was changed, and a
	// later try may succeed.
	ErrBusy = errors.New("store is busy")
	// ErrRetained: the object is retained, and may not be deleted yet.
	ErrRetained = errors.New("object is retained")
	// ErrName: the name cannot be one of an object.
	ErrName = errors.New("invalid object name")
	// ErrTooLarge: the object is larger than MaxObject.
	ErrTooLarge = errors.New("object is too large")
)
