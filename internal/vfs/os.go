package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS returns the file system of the operating system.
func OS() FS { return osFS{} }

type osFS struct{}

var _ FS = osFS{}

// OpenFile implements [FS].
func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if flag&os.O_APPEND != 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EINVAL}
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &osFile{f: f}, nil
}

// Mkdir implements [FS].
func (osFS) Mkdir(name string, perm fs.FileMode) error { return os.Mkdir(name, perm) }

// Remove implements [FS].
func (osFS) Remove(name string) error { return os.Remove(name) }

// Rename implements [FS].
func (osFS) Rename(oldname, newname string) error { return os.Rename(oldname, newname) }

// Link implements [FS].
func (osFS) Link(oldname, newname string) error { return os.Link(oldname, newname) }

// ReadDir implements [FS].
func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }

// Stat implements [FS].
func (osFS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

// SyncDir implements [FS].
func (osFS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = control(d, "fsync", func(fd int) error {
		serr := unix.Fsync(fd)
		if errors.Is(serr, unix.EINVAL) || errors.Is(serr, unix.ENOTSUP) {
			// Some file systems sync no single directory: sync all of it.
			serr = unix.Syncfs(fd)
		}
		return serr
	})
	if cerr := d.Close(); err == nil && cerr != nil {
		return fmt.Errorf("close directory %s: %w", name, cerr)
	}
	return err
}

// control runs call with the descriptor of f, again when a signal interrupts
// it. The descriptor is not closed meanwhile.
func control(f *os.File, op string, call func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, f.Name(), err)
	}
	var cerr error
	err = c.Control(func(fd uintptr) {
		for {
			cerr = call(int(fd))
			if !errors.Is(cerr, unix.EINTR) {
				return
			}
		}
	})
	if err != nil { // The only way to fail.
		return &fs.PathError{Op: op, Path: f.Name(), Err: fs.ErrClosed}
	}
	if cerr != nil {
		return &fs.PathError{Op: op, Path: f.Name(), Err: cerr}
	}
	return nil
}
