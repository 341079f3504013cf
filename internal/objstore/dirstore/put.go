package dirstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/vfs"
)

const (
	// directMin is the body size from which writing past the page cache pays.
	directMin = 256 << 10
	// directAlign is what O_DIRECT asks of memory, offset and length.
	directAlign = 4096
	// maxDurable bounds the memory for folders known to be on the disk.
	maxDurable = 4096
)

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, name string, body []byte) error {
	if err := begin(ctx, name); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if len(body) > objstore.MaxObject {
		return fmt.Errorf("put %s: %d bytes: %w", name, len(body), objstore.ErrTooLarge)
	}
	if name == tempDir || strings.HasPrefix(name, tempDir+"/") {
		return fmt.Errorf("put %s: %w", name, objstore.ErrName)
	}
	if err := s.present(); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	path := s.path(name)
	if _, err := s.fsys.Stat(path); err == nil {
		return s.exists(name, path)
	}
	temp, err := s.writeTemp(body)
	if err != nil {
		return s.fail("put", name, err)
	}
	err = s.link(temp, path)
	if errors.Is(err, fs.ErrExist) {
		err = s.exists(name, path)
	} else if err != nil {
		err = s.fail("put", name, err)
	}
	if rmErr := s.fsys.Remove(temp); rmErr != nil && err != nil && !errors.Is(rmErr, fs.ErrNotExist) {
		// The temporary file is garbage that Open removes; it matters only
		// beside another failure, as its explanation.
		err = errors.Join(err, rmErr)
	}
	return err
}

// exists answers a Put whose name is taken. The entry may be one that another
// writer linked a moment ago: whoever then reads the object and counts on it
// needs it to survive a power failure.
func (s *Store) exists(name, path string) error {
	if err := s.ensureDir(filepath.Dir(path)); err != nil {
		return s.fail("put", name, err)
	}
	if err := s.fsys.SyncDir(filepath.Dir(path)); err != nil {
		return s.fail("put", name, err)
	}
	return fmt.Errorf("put %s in %s: %w", name, s.dir, objstore.ErrExist)
}

// writeTemp writes body to a temporary file, synced.
func (s *Store) writeTemp(body []byte) (string, error) {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", fmt.Errorf("random name: %w", err)
	}
	temp := filepath.Join(s.dir, tempDir, hex.EncodeToString(random[:]))
	f, err := s.fsys.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrNotExist) && s.present() == nil {
		// Someone tidied the folder away; the store itself is there.
		if err = s.fsys.Mkdir(filepath.Join(s.dir, tempDir), 0o700); err == nil || errors.Is(err, fs.ErrExist) {
			f, err = s.fsys.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
	}
	if err != nil {
		return "", err
	}
	err = s.fill(f, temp, body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, s.fsys.Remove(temp))
	}
	return temp, nil
}

// fill writes body to f: what is aligned past the page cache, so that a backup
// neither fills it nor pays for copying; the rest through it.
func (s *Store) fill(f vfs.File, name string, body []byte) error {
	_, isOS := vfs.OSFile(f)
	done := 0
	if isOS && len(body) >= directMin && uintptr(unsafe.Pointer(unsafe.SliceData(body)))%directAlign == 0 {
		n, err := s.writeDirect(name, body[:len(body)&^(directAlign-1)])
		if err != nil {
			return err
		}
		done = n
	}
	if done == len(body) {
		return nil
	}
	_, err := f.WriteAt(body[done:], int64(done))
	return err
}

// writeDirect returns how much it wrote: all, or nothing where the file system
// knows no O_DIRECT.
func (s *Store) writeDirect(name string, body []byte) (int, error) {
	f, err := s.fsys.OpenFile(name, os.O_WRONLY|syscall.O_DIRECT, 0)
	if errors.Is(err, syscall.EINVAL) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := f.WriteAt(body, 0)
	if errors.Is(err, syscall.EINVAL) && n == 0 {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return 0, err
	}
	return n, nil
}

// link gives the file its name, durably.
func (s *Store) link(temp, path string) error {
	dir := filepath.Dir(path)
	// A folder can vanish between making it and linking into it, when a Delete
	// empties it: try again then, but not for ever.
	for attempt := 0; ; attempt++ {
		if err := s.ensureDir(dir); err != nil {
			return err
		}
		err := s.fsys.Link(temp, path)
		if errors.Is(err, fs.ErrNotExist) && attempt < 8 {
			s.forget(dir)
			continue
		}
		if err != nil {
			return err
		}
		break
	}
	if path == filepath.Join(s.dir, identity) {
		s.fresh.Store(false)
	}
	return s.fsys.SyncDir(dir)
}

// ensureDir makes the folder dir below the store's own, with its parents, and
// returns when all of them are on the disk.
func (s *Store) ensureDir(dir string) error {
	if dir == s.dir {
		return nil
	}
	s.mu.Lock()
	_, ok := s.durable[dir]
	s.mu.Unlock()
	if ok {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := s.ensureDir(parent); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fsys.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Also for a folder that was there: whoever made it may not have come to
	// this point yet.
	if err := s.fsys.SyncDir(parent); err != nil {
		return err
	}
	if len(s.durable) >= maxDurable {
		clear(s.durable)
	}
	s.durable[dir] = struct{}{}
	return nil
}

// forget drops what is known of a folder and those above it.
func (s *Store) forget(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; dir != s.dir && len(dir) > len(s.dir); dir = filepath.Dir(dir) {
		delete(s.durable, dir)
	}
}

// Delete implements objstore.Store. Folders that it empties are removed, all
// but the topmost.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := begin(ctx, name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	if err := s.present(); err != nil {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	path := s.path(name)
	fi, err := s.fsys.Stat(path)
	if err == nil && fi.IsDir() {
		return nil // no object has this name
	}
	if err == nil {
		err = s.fsys.Remove(path)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil {
		return s.fail("delete", name, err)
	}
	dir := filepath.Dir(path)
	if err := s.fsys.SyncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.fail("delete", name, err)
	}
	s.removeEmpty(dir)
	return nil
}

// removeEmpty removes dir and the folders above it as far as they are empty.
// That they stay costs nothing, so that no error is one.
func (s *Store) removeEmpty(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for filepath.Dir(dir) != s.dir && len(dir) > len(s.dir) {
		if s.fsys.Remove(dir) != nil {
			return
		}
		delete(s.durable, dir)
		dir = filepath.Dir(dir)
	}
}

// dropTemps removes temporary files that were last written before the time.
func (s *Store) dropTemps(before time.Time) {
	dir := filepath.Join(s.dir, tempDir)
	entries, err := s.fsys.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || fi.IsDir() || fi.ModTime().IsZero() || !fi.ModTime().Before(before) {
			continue
		}
		if s.fsys.Remove(filepath.Join(dir, e.Name())) != nil {
			return // a read-only store: none can be removed
		}
	}
}
