// Package objstore is the seam between the repository and the places that keep
// its objects: named, immutable byte strings in a flat name space.
//
// A store is trusted with little. It may be slow, lose an answer, or return
// wrong bytes: what is read is verified by its reader. The one promise that
// safety hangs on is Put: it creates a name at most once, and what it
// acknowledged is durable.
package objstore

import (
	"context"
	"fmt"
	"strings"
)

// Limits of the name space.
const (
	// MaxObject is the largest object in bytes that a store has to keep.
	MaxObject = 64 << 20
	// MaxName is the longest name in bytes.
	MaxName = 512
	// maxSegment is the longest part of a name between two slashes: a store
	// that keeps objects as files needs room for it in a directory entry.
	maxSegment = 200
)

// Info names one stored object.
type Info struct {
	Name string
	Size int64 // bytes
}

// Store keeps immutable named objects. Names are slash-separated segments of
// [a-z0-9._-], none of them empty, "." or ".."; see CheckName. All methods may
// be called concurrently. Errors are wrapped; test them with errors.Is against
// the sentinels of this package, anything else is a fault of the store that
// leaves the outcome of a Put or Delete open.
type Store interface {
	// Put creates the object. When any object has the name already, it
	// changes nothing and returns ErrExist, whatever that object holds. When it
	// returns nil, the object is durable and complete for every reader. After
	// any other error the object may exist, completely, or not, and may still
	// appear later: ask with Get. Put does not keep or change body, and is done
	// with it when it returns.
	Put(ctx context.Context, name string, body []byte) error

	// Get appends n bytes of the object from offset off to dst and returns the
	// extended slice; n < 0 means to the end. It returns ErrNotExist when there
	// is no such object and ErrRange when the object ends before off+n. On an
	// error the returned slice is dst as it was given.
	Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error)

	// Stat returns the object's size in bytes, or ErrNotExist.
	Stat(ctx context.Context, name string) (int64, error)

	// List calls fn for every object whose name starts with prefix, in no
	// particular order, each once. An object that is created or deleted while
	// List runs may be missed or listed; one that existed throughout is listed.
	// An error of fn stops the listing and is returned as it is. fn may call
	// the store.
	List(ctx context.Context, prefix string, fn func(Info) error) error

	// Delete removes the object. Removing one that is not there succeeds.
	Delete(ctx context.Context, name string) error

	// URL names the store for people, without secrets.
	URL() string

	// Close releases what the store holds. No other method may be running or
	// be called afterwards.
	Close() error
}

// CheckName reports whether name is a valid object name.
func CheckName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("object name of %d bytes: %w", len(name), ErrName)
	}
	for segment := range strings.SplitSeq(name, "/") {
		if segment == "" || segment == "." || segment == ".." || len(segment) > maxSegment {
			return fmt.Errorf("object name %q: %w", name, ErrName)
		}
		if !validBytes(segment) {
			return fmt.Errorf("object name %q: %w", name, ErrName)
		}
	}
	return nil
}

// CheckPrefix reports whether prefix can be the beginning of an object name.
// The empty prefix stands for all objects.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	// A prefix may end anywhere in a name: right behind a slash, or in the
	// middle of a segment.
	return CheckName(prefix + "x")
}

func validBytes(segment string) bool {
	for _, c := range []byte(segment) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
