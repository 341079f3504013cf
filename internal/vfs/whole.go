package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile makes data the durable content of the file name, all of it or
// nothing: after a crash at any point the file is the old one (or absent) or
// the new one. It writes name+".tmp" in the same directory, which an earlier
// crash may have left behind, so a name has one writer at a time.
//
// After an error the old content is normally in place; only when the directory
// could not be synced may the new one be visible, with unknown durability.
func WriteFile(fsys FS, name string, data []byte, perm fs.FileMode) error {
	temp := name + ".tmp"
	if err := writeTemp(fsys, temp, data, perm); err != nil {
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			err = fmt.Errorf("free some space on the disk of %s: %w", filepath.Dir(name), err)
		}
		return errors.Join(err, removeIfThere(fsys, temp))
	}
	if err := fsys.Rename(temp, name); err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", name, err), removeIfThere(fsys, temp))
	}
	if err := fsys.SyncDir(filepath.Dir(name)); err != nil {
		return fmt.Errorf("replace %s: sync directory: %w", name, err)
	}
	return nil
}

func writeTemp(fsys FS, temp string, data []byte, perm fs.FileMode) (err error) {
	f, err := fsys.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, perm)
	if err != nil {
		return fmt.Errorf("create %s: %w", temp, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close %s: %w", temp, cerr)
		}
	}()
	if _, err := f.WriteAt(data, 0); err != nil {
		return err // which names the file
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", temp, err)
	}
	return nil
}

func removeIfThere(fsys FS, name string) error {
	if err := fsys.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

// ReadFile returns the content of a file of at most limit bytes; a larger one
// is refused with [ErrTooLarge] before it is read.
func ReadFile(fsys FS, name string, limit int64) (data []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close %s: %w", name, cerr)
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat %s: %w", name, err)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("read %s: %d bytes, at most %d are read: %w", name, info.Size(), limit, ErrTooLarge)
	}
	data = make([]byte, info.Size())
	n, err := f.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data[:n], nil
}

// MkdirAll makes the directory name and the parents it lacks, and makes each
// durable in its parent. A directory that is there already is left alone.
func MkdirAll(fsys FS, name string, perm fs.FileMode) error {
	name = filepath.Clean(name)
	info, err := fsys.Stat(name)
	switch {
	case err == nil && info.IsDir():
		return nil
	case err == nil:
		return fmt.Errorf("make directory %s: a file of that name is in the way: %w", name, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := MkdirAll(fsys, parent, perm); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(name, perm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory %s: %w", name, err)
	}
	if err := fsys.SyncDir(parent); err != nil {
		return fmt.Errorf("make directory %s durable: %w", name, err)
	}
	return nil
}
