// Package dirstore keeps objects as files of one folder: a local disk, a
// mounted share, a USB drive.
//
// An object NAME is the file DIR/NAME; the folders between are made as needed.
// A Put writes a file below DIR/TMP, syncs it, gives it its name with link(2),
// which fails when the name is taken, and syncs the folders on the way: what is
// acknowledged survives a power failure, complete.
//
// A store is told from an empty folder by its identity object "store". A folder
// without one, as the place where a disk is not mounted, is down: nothing is
// ever written to it. Only Create makes a folder into a store.
package dirstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/vfs"
)

const (
	// identity is the object whose presence makes a folder a store.
	identity = "store"
	// tempDir is where files are written before they get their name. Capital
	// letters keep it out of the name space of objects.
	tempDir = "TMP"
	// tempAge is when a leftover temporary file is certainly nobody's.
	tempAge = 24 * time.Hour
)

// Options are the seams of a Store. The zero value is the operating system.
type Options struct {
	FS vfs.FS // nil = vfs.OS()
}

// Store is an objstore.Store in a folder.
type Store struct {
	fsys vfs.FS
	dir  string

	// fresh: made by Create and without an identity object so far.
	fresh atomic.Bool

	// durable holds the folders whose entries in their parents are known to be
	// on the disk; mu also orders making and removing folders in this process.
	mu      sync.Mutex
	durable map[string]struct{}
}

var _ objstore.Store = (*Store)(nil)

// Open returns the store in the folder dir. It does not fail when the folder
// is missing or is no store: every operation then returns objstore.ErrDown, and
// works as soon as the folder is back. Leftover temporary files of dead writers
// are removed.
func Open(dir string, o Options) (*Store, error) {
	s, err := newStore(dir, o)
	if err != nil {
		return nil, err
	}
	if s.present() == nil {
		s.dropTemps(time.Now().Add(-tempAge))
	}
	return s, nil
}

// Create makes the folder dir, with its parents, ready to become a store: it
// counts as one as soon as the object "store" was put. A folder that holds
// anything foreign is refused with a wrapped fs.ErrExist, and a folder that is
// a store already is opened as it is, for the caller to see whose it is.
func Create(dir string, o Options) (*Store, error) {
	s, err := newStore(dir, o)
	if err != nil {
		return nil, err
	}
	if s.present() == nil {
		return s, nil
	}
	if err = vfs.MkdirAll(s.fsys, s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the store folder %s: %w", s.dir, err)
	}
	entries, err := s.fsys.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read the store folder %s: %w", s.dir, err)
	}
	for _, e := range entries {
		if n := e.Name(); n != tempDir && n != "lost+found" {
			return nil, fmt.Errorf("folder %s is not empty (it holds %q): name an empty or a new folder: %w", s.dir, n, fs.ErrExist)
		}
	}
	if err := vfs.MkdirAll(s.fsys, filepath.Join(s.dir, tempDir), 0o700); err != nil {
		return nil, fmt.Errorf("make the store folder %s: %w", s.dir, err)
	}
	s.fresh.Store(true)
	return s, nil
}

func newStore(dir string, o Options) (*Store, error) {
	if dir == "" {
		return nil, fmt.Errorf("a store needs the name of its folder: %w", fs.ErrInvalid)
	}
	if o.FS == nil {
		o.FS = vfs.OS()
		abs, err := filepath.Abs(dir)
		if err != nil {
			return nil, fmt.Errorf("store folder %s: %w", dir, err)
		}
		dir = abs
	}
	return &Store{fsys: o.FS, dir: filepath.Clean(dir), durable: make(map[string]struct{})}, nil
}

// URL implements objstore.Store: the folder's path.
func (s *Store) URL() string { return s.dir }

// Close implements objstore.Store.
func (s *Store) Close() error { return nil }

// present returns ErrDown with the reason when the folder is no store.
func (s *Store) present() error {
	mark := identity
	if s.fresh.Load() {
		mark = tempDir
	}
	_, err := s.fsys.Stat(filepath.Join(s.dir, mark))
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("folder %s: %w: %w", s.dir, objstore.ErrDown, err)
	}
	if _, err := s.fsys.Stat(s.dir); err != nil {
		return fmt.Errorf("folder %s is not there: %w", s.dir, objstore.ErrDown)
	}
	return fmt.Errorf("folder %s holds no store (is its disk mounted?): %w", s.dir, objstore.ErrDown)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	if err := begin(ctx, name); err != nil {
		return dst, fmt.Errorf("get: %w", err)
	}
	f, err := s.fsys.OpenFile(s.path(name), os.O_RDONLY, 0)
	if err != nil {
		return dst, s.fail("get", name, err)
	}
	out, err := readRange(f, off, n, dst)
	if err = errors.Join(err, f.Close()); err != nil {
		return dst, s.fail("get", name, err)
	}
	return out, nil
}

func readRange(f vfs.File, off, n int64, dst []byte) ([]byte, error) {
	if off < 0 {
		return dst, fmt.Errorf("offset %d: %w", off, objstore.ErrRange)
	}
	if n <= 0 {
		fi, err := f.Stat()
		if err != nil {
			return dst, err
		}
		if fi.IsDir() {
			return dst, fs.ErrNotExist
		}
		if n < 0 {
			n = fi.Size() - off
		} else if off > fi.Size() {
			n = -1
		}
	}
	if n < 0 {
		return dst, fmt.Errorf("offset %d is behind the end: %w", off, objstore.ErrRange)
	}
	if n > objstore.MaxObject {
		return dst, fmt.Errorf("%d bytes: %w", n, objstore.ErrTooLarge)
	}
	have := len(dst)
	if int64(cap(dst)-have) < n {
		grown := make([]byte, have, have+int(n))
		copy(grown, dst)
		dst = grown
	}
	got, err := f.ReadAt(dst[have:have+int(n)], off)
	switch {
	case int64(got) == n:
		return dst[:have+int(n)], nil
	case err == nil || errors.Is(err, io.EOF):
		if fi, statErr := f.Stat(); statErr == nil && fi.IsDir() {
			return dst[:have], fs.ErrNotExist
		}
		return dst[:have], fmt.Errorf("%d of %d bytes from %d: %w", got, n, off, objstore.ErrRange)
	default:
		return dst[:have], err
	}
}

// Stat implements objstore.Store.
func (s *Store) Stat(ctx context.Context, name string) (int64, error) {
	if err := begin(ctx, name); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	fi, err := s.fsys.Stat(s.path(name))
	if err != nil {
		return 0, s.fail("stat", name, err)
	}
	if fi.IsDir() {
		return 0, s.fail("stat", name, fs.ErrNotExist)
	}
	return fi.Size(), nil
}

// fail wraps an error of an operation and tells an object that is not there
// from a store that is not.
func (s *Store) fail(op, name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR):
		if down := s.present(); down != nil {
			return fmt.Errorf("%s %s: %w", op, name, down)
		}
		return fmt.Errorf("%s %s in %s: %w", op, name, s.dir, objstore.ErrNotExist)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%s %s in %s: %w: %w", op, name, s.dir, objstore.ErrNoSpace, err)
	default:
		return fmt.Errorf("%s %s in %s: %w", op, name, s.dir, err)
	}
}

func begin(ctx context.Context, name string) error {
	if err := objstore.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
