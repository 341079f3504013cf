// Package vfs holds the few file operations that durability hangs on.
//
// [OS] is the operating system. [Mem] keeps everything in memory, can lose its
// power at any moment and fail on demand, so that a package written against
// [FS] proves in its tests what it promises about crashes. A conformance test
// runs both implementations.
//
// Nothing is durable before it was asked to be: the content and size of a file
// after [File.Sync] (or a write through a descriptor opened with O_SYNC or
// O_DSYNC), the entries of a directory after [FS.SyncDir]. Syncing a file says
// nothing about its name.
package vfs

import (
	"io"
	"io/fs"
)

// FS is a file system. Names are slash-separated paths as the operating system
// takes them. All methods are safe for concurrent use, and their errors wrap
// an *fs.PathError or *os.LinkError, so that errors.Is finds fs.ErrExist,
// fs.ErrNotExist and the errno.
type FS interface {
	// OpenFile opens a file with the flags of package os and perm for a file
	// that it creates. O_APPEND is refused, because every write has an offset.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// Mkdir makes one directory.
	Mkdir(name string, perm fs.FileMode) error
	// Remove deletes a file or an empty directory. A removed file lives on
	// for those who have it open.
	Remove(name string) error
	// Rename moves a file or directory and atomically replaces a file that
	// has the new name.
	Rename(oldname, newname string) error
	// Link gives a file a further name; the error is fs.ErrExist if there is
	// something by that name.
	Link(oldname, newname string) error
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Stat describes a file or directory.
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the entries of a directory durable: what was created,
	// removed, linked and renamed in it before the call.
	SyncDir(name string) error
}

// Zeroer is the part of a File that makes zeros.
type Zeroer interface {
	// Zero makes n bytes at off read as zeros, and with punch gives their
	// space back where the file system can. It never grows the file: what
	// lies beyond the end is left out.
	Zero(off, n int64, punch bool) error
	// ZeroFast is Zero where no zeros have to be written for that. Elsewhere
	// it changes nothing, and its error is errors.ErrUnsupported.
	ZeroFast(off, n int64, punch bool) error
}

// File is an open file. Its methods are safe for concurrent use; of two
// overlapping writes at the same time either may win, byte for byte.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Zeroer
	// Truncate sets the size. What it adds reads as zeros.
	Truncate(size int64) error
	// Sync makes data and size durable (fdatasync). After an error the state
	// of what was written since the last successful Sync is unknown, and a
	// later Sync may succeed without having repaired it.
	Sync() error
	// Stat describes the file.
	Stat() (fs.FileInfo, error)
	// NextData returns the first run of data that ends after off, cut to
	// start at off or later. Everything from off to start reads as zeros; a
	// run may contain zeros. The error is io.EOF when no data follow.
	NextData(off int64) (start, end int64, err error)
}
