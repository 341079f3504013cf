package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// settled is how old a file's last change must be before its times tell the next
// change from it: they have the grain of a timer tick.
const settled = 100 * time.Millisecond

// secretFile is a file that only its owner may read.
type secretFile struct {
	fsys  vfs.FS
	name  string
	what  string // "users file"
	limit int64  // most bytes that are read
}

// fileState tells one content of a file from the next. The zero value is none.
type fileState struct {
	size           int64
	inode          uint64
	mtime, changed int64
}

func stateOf(info fs.FileInfo) fileState {
	s := fileState{size: info.Size(), mtime: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode, s.changed = st.Ino, st.Ctim.Nano()
	}
	return s
}

// read returns the content of the file, or nil and no error if that is still the one
// of last. A file that others can read is refused.
func (f *secretFile) read(last fileState) (data []byte, state fileState, err error) {
	info, err := f.fsys.Stat(f.name)
	if err == nil && !info.Mode().IsRegular() { // a pipe would wait for its writer
		return nil, state, fmt.Errorf("%s %s is no regular file: name one", f.what, f.name)
	}
	if err != nil {
		return nil, state, f.failed(err)
	}
	if state = stateOf(info); state == last {
		return nil, state, nil
	}
	file, err := f.fsys.OpenFile(f.name, os.O_RDONLY, 0)
	if err != nil {
		return nil, state, f.failed(err)
	}
	defer func() {
		if cerr := file.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("close %s %s: %w", f.what, f.name, cerr)
		}
	}()
	if info, err = file.Stat(); err != nil {
		return nil, state, f.failed(err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, state, fmt.Errorf("%s %s can be read by others (its mode is %04o): protect it with \"chmod 600 %s\"", f.what, f.name, mode, f.name)
	}
	if info.Size() > f.limit {
		return nil, state, fmt.Errorf("%s %s has %d bytes, at most %d are read: is it the right file?", f.what, f.name, info.Size(), f.limit)
	}
	data = make([]byte, info.Size())
	n, err := file.ReadAt(data, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, state, f.failed(err)
	}
	state = stateOf(info)
	if time.Since(info.ModTime()) < settled {
		state = fileState{} // look again next time
	}
	return data[:n], state, nil
}

func (f *secretFile) failed(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return missingFileError{what: f.what, name: f.name}
	}
	return fmt.Errorf("read %s: %w", f.what, err)
}

// missingFileError is fs.ErrNotExist with a sentence of its own.
type missingFileError struct{ what, name string }

// Error returns the sentence.
func (e missingFileError) Error() string { return e.what + " " + e.name + " is not there" }

// Is makes it fs.ErrNotExist.
func (missingFileError) Is(target error) bool { return target == fs.ErrNotExist }
