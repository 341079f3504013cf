package restore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Errors of restores to files, wrapped with the path.
var (
	// ErrExists: there is something under the file's name.
	ErrExists = errors.New("exists already: remove it, name another file, or ask for it to be overwritten")
	// ErrNoSpace: the file system is too full.
	ErrNoSpace = errors.New("not enough space")
	// ErrHeld: what would be replaced is open as somebody's disk.
	ErrHeld = errors.New("is in use by another program, such as a volume of cairn serve or a running guest: stop that or name another file")
)

// FileOptions says how to restore to a file.
type FileOptions struct {
	Options
	Overwrite bool // replace a regular file of this name, at the end and at once
}

// File restores img to a new sparse file, mode 0600. The name appears when the
// content is complete, verified and on stable storage; until then, and after a
// failure or when ctx ends, there is nothing under it, or what was there.
func File(ctx context.Context, img Image, name string, o FileOptions) (p Progress, err error) {
	if ierr := CheckFile(name, o.Overwrite); ierr != nil {
		return Progress{}, ierr
	}
	if ierr := checkSpace(ctx, img, filepath.Dir(name)); ierr != nil {
		return Progress{}, ierr
	}
	f, temp, err := create(name)
	if err != nil {
		return Progress{}, fmt.Errorf("restore to %s: %w", name, err)
	}
	defer func() {
		if cerr := f.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("restore to %s: %w", name, cerr)
		}
		if temp != "" {
			err = errors.Join(err, gone(os.Remove(temp)))
		}
	}()
	if ierr := f.Truncate(img.Size()); ierr != nil {
		return Progress{}, fmt.Errorf("restore to %s: %w", name, ierr)
	}
	o.Fresh = true
	target := newFileTarget(f, img.Size())
	p, err = Copy(ctx, img, target, o.Options)
	if err = errors.Join(err, target.Close()); err != nil {
		return p, fmt.Errorf("restore to %s: %w", name, explain(err))
	}
	if temp, err = publish(f, temp, name, o.Overwrite); err != nil {
		return p, fmt.Errorf("restore to %s: %w", name, err)
	}
	return p, nil
}

// CheckFile refuses a name that [File] would refuse, before anything is read.
func CheckFile(name string, overwrite bool) error {
	fi, err := os.Stat(filepath.Dir(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("restore to %s: the folder %s is not there: make it first", name, filepath.Dir(name))
	case err != nil:
		return fmt.Errorf("restore to %s: %w", name, err)
	case !fi.IsDir():
		return fmt.Errorf("restore to %s: %s is not a folder", name, filepath.Dir(name))
	}
	fi, err = os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("restore to %s: %w", name, err)
	case !fi.Mode().IsRegular():
		return fmt.Errorf("restore to %s: there is something that is no regular file: name another file", name)
	case !overwrite:
		return fmt.Errorf("restore: %s %w", name, ErrExists)
	}
	return checkFree(name)
}

// checkFree refuses a file that somebody holds: who has it open would go on
// with the old file, and all that is written there would be lost with it.
func checkFree(name string) (err error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return nil // to replace it takes no right to read it
	}
	if err != nil {
		return fmt.Errorf("restore to %s: %w", name, err)
	}
	defer func() {
		if cerr := f.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("restore to %s: %w", name, cerr)
		}
	}()
	// The locks that volumes and qemu take; a file system may have neither.
	held := errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
	if !held {
		lock := unix.Flock_t{Type: unix.F_WRLCK}
		held = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
	}
	if held {
		return fmt.Errorf("restore: %s %w", name, ErrHeld)
	}
	return nil
}

// checkSpace compares the image's data with the free space of the folder.
func checkSpace(ctx context.Context, img Image, dir string) error {
	var need int64
	err := each(ctx, img.Extents, 0, img.Size(), func(_, n int64, empty bool) error {
		if !empty {
			need += n
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("restore: free space of %s: %w", dir, err)
	}
	free := int64(st.Bavail) * st.Bsize //nolint:gosec // a free space beyond 2^63 bytes does not exist
	if need > free {
		return fmt.Errorf("restore: %w in %s: the backup holds %d MiB of data and %d MiB are free; free some or name another folder: %w",
			ErrNoSpace, dir, need>>20, free>>20, unix.ENOSPC)
	}
	return nil
}

// create opens a file in the folder of name that has no name at all, so that
// not even a kill leaves anything; where the file system cannot do that, one
// with a temporary name, which is returned.
func create(name string) (f *os.File, temp string, err error) {
	dir := filepath.Dir(name)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		// Without /proc such a file cannot be given a name afterwards.
		if _, ierr := os.Stat(procName(fd)); ierr == nil {
			return os.NewFile(uintptr(fd), name), "", nil
		}
		if ierr := unix.Close(fd); ierr != nil {
			return nil, "", ierr
		}
	}
	temp = tempName(name)
	f, err = os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, "", err
	}
	return f, temp, nil
}

// publish gives f its name, durably. temp is its present name, "" for none;
// the temporary name that is left, for the caller to remove, is returned.
func publish(f *os.File, temp, name string, overwrite bool) (left string, err error) {
	if err := f.Sync(); err != nil {
		return temp, fmt.Errorf("sync: %w", err)
	}
	if temp == "" && !overwrite {
		if err := linkOpen(f, name); err != nil {
			return "", err
		}
		return "", syncDir(filepath.Dir(name))
	}
	if temp == "" {
		// A link cannot replace a name, a rename can.
		temp = tempName(name)
		if err := linkOpen(f, temp); err != nil {
			return "", err
		}
	}
	if overwrite {
		if err := checkFree(name); err != nil {
			return temp, err
		}
		if err := os.Rename(temp, name); err != nil {
			return temp, err
		}
		return "", syncDir(filepath.Dir(name))
	}
	if err := os.Link(temp, name); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("the name %w", ErrExists)
		}
		return temp, err
	}
	return temp, syncDir(filepath.Dir(name))
}

// linkOpen gives an open file without a name this one.
func linkOpen(f *os.File, name string) error {
	err := unix.Linkat(unix.AT_FDCWD, procName(int(f.Fd())), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the name %w", ErrExists)
	}
	if err != nil {
		return fmt.Errorf("name the file: %w", err)
	}
	return nil
}

func procName(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func tempName(name string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".cairn-"+rand.Text()[:10])
}

// gone is err, unless that is because the file is not there.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// syncDir makes a folder's entries durable.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync folder %s: %w", name, err), d.Close())
	}
	return d.Close()
}

// explain turns a full disk into a sentence with its way out.
func explain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: the disk became full; nothing was left there: free some space or name another folder: %w", ErrNoSpace, err)
	}
	return err
}
