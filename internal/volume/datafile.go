package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// dataFile is an open data file or device, held exclusively.
type dataFile struct {
	vfs.File
	os    *os.File // nil if the file system is not the operating system's
	size  int64
	info  fs.FileInfo
	inode uint64 // 0 = not known

	device bool
	shared bool // other hosts may write to it
}

// openData opens and holds a data file or block device. flag is os.O_RDWR and more.
func openData(fsys vfs.FS, path string, device bool, flag int) (_ *dataFile, err error) {
	if device {
		flag |= os.O_EXCL // of a device: fails while it is mounted or in use by the kernel
	}
	f, err := fsys.OpenFile(path, flag, 0o600)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return nil, fmt.Errorf("device %s is mounted or part of another device; unmount it first: %w", path, ErrHeld)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no data file %s; check the path, or whether its disk is mounted: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("open the data file: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	d := &dataFile{File: f, device: device}
	d.os, _ = vfs.OSFile(f)
	if err = d.look(path, device); err != nil {
		return nil, err
	}
	if err = d.hold(path, device); err != nil {
		return nil, err
	}
	if d.os != nil {
		if d.shared, err = otherHostsWrite(d.os, device); err != nil {
			return nil, err
		}
		// Kernels that put file pages into large folios make a 4 KiB write into one several times dearer; this keeps folios small. It also turns
		// read-ahead off, so sequential readers bring their own. A hint: its failure changes nothing.
		_ = unix.Fadvise(int(d.os.Fd()), 0, 0, unix.FADV_RANDOM)
	}
	return d, nil
}

// look finds out what was opened and how large it is.
func (d *dataFile) look(path string, device bool) error {
	info, err := d.Stat()
	if err != nil {
		return fmt.Errorf("stat the data file: %w", err)
	}
	d.info, d.size = info, info.Size()
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		d.inode = st.Ino
	}
	isDevice := info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
	switch {
	case device && !isDevice:
		return fmt.Errorf("%w: %s is not a block device; use it as a file", ErrInvalid, path)
	case !device && isDevice:
		return fmt.Errorf("%w: %s is a block device; use it as a device", ErrInvalid, path)
	case !device && !info.Mode().IsRegular():
		return fmt.Errorf("%w: %s is not a regular file", ErrInvalid, path)
	case device && d.os == nil:
		return fmt.Errorf("%w: %s is not a device of this machine", ErrInvalid, path)
	case device:
		n, err := unix.IoctlGetInt(int(d.os.Fd()), unix.BLKGETSIZE64)
		if err != nil {
			return fmt.Errorf("size of device %s: %w", path, err)
		}
		d.size = int64(n)
	}
	return nil
}

// hold takes the file for this process: an flock, which other instances and
// careful tools respect, and on files an open-file lock of the whole range,
// which qemu's image locking respects.
func (d *dataFile) hold(path string, device bool) error {
	held := fmt.Errorf("%s is in use by another process; stop what uses it, or find it with fuser: %w", path, ErrHeld)
	if err := vfs.Lock(d.File); errors.Is(err, vfs.ErrLocked) {
		return held
	} else if err != nil {
		return fmt.Errorf("hold the data file: %w", err)
	}
	if d.os == nil || device {
		return nil
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	err := unix.FcntlFlock(d.os.Fd(), unix.F_OFD_SETLK, &lock)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		return held
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP):
		return nil // a file system without such locks; the flock holds
	case err != nil:
		return fmt.Errorf("hold the data file %s: %w", path, err)
	}
	return nil
}

// makeManaged makes the data file of a managed volume: sparse, and complete on
// stable storage before anything names it.
func makeManaged(fsys vfs.FS, dir string, size int64) error {
	f, err := fsys.OpenFile(filepath.Join(dir, managedFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make the data file: %w", err)
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make a data file of %d bytes: %w", size, err)
	}
	return nil
}
