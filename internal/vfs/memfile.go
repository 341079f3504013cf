package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"
)

// memFile is an open file of a Mem.
type memFile struct {
	m      *Mem
	n      *memNode
	name   string
	flag   int
	closed bool
}

var _ File = (*memFile)(nil)

// OpenFile implements [FS]. O_DIRECT is taken and changes nothing.
func (m *Mem) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if flag&os.O_APPEND != 0 {
		return nil, pathErr("open", name, syscall.EINVAL)
	}
	changes := false
	err := m.look(func() error {
		n, missing := m.lookup(name)
		changes = missing != nil && flag&os.O_CREATE != 0 || missing == nil && !n.dir && flag&os.O_TRUNC != 0
		return nil
	})
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	var f *memFile
	open := func() error {
		n, oerr := m.openNode(name, flag, perm)
		f = &memFile{m: m, n: n, name: name, flag: flag}
		return oerr
	}
	if changes {
		err = m.mutate("create", name, open, nil, nil)
	} else {
		err = m.look(open)
	}
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	return f, nil
}

func (m *Mem) openNode(name string, flag int, perm fs.FileMode) (*memNode, error) {
	d, last, err := m.parent(name)
	if err != nil {
		return nil, err
	}
	n := d.entries[last]
	writes := flag&(os.O_WRONLY|os.O_RDWR) != 0
	switch {
	case n == nil && flag&os.O_CREATE == 0:
		return nil, syscall.ENOENT
	case n == nil:
		n = m.newNode(false, perm)
		m.change(d, entryOp{set: last, node: n, fate: new(fate)})
		return n, nil
	case flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, syscall.EEXIST
	case n.dir && (writes || flag&os.O_CREATE != 0):
		return nil, syscall.EISDIR
	case flag&os.O_TRUNC != 0:
		n.data.truncate(0, m.rng)
		n.mtime = m.now()
	}
	return n, nil
}

// usable reports a closed file, and a flag that forbids the access.
func (f *memFile) usable(forbidden int) error {
	switch {
	case f.closed:
		return fs.ErrClosed
	case f.flag&(os.O_RDONLY|os.O_WRONLY|os.O_RDWR) == forbidden:
		return syscall.EBADF
	case f.n.dir:
		return syscall.EISDIR
	}
	return nil
}

// ReadAt implements [File].
func (f *memFile) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, pathErr("read", f.name, syscall.EINVAL)
	}
	err = f.m.look(func() error {
		if uerr := f.usable(os.O_WRONLY); uerr != nil {
			return uerr
		}
		n = f.n.data.read(p, off)
		return nil
	})
	if err == nil && n < len(p) {
		return n, io.EOF
	}
	return n, pathErr("read", f.name, err)
}

// WriteAt implements [File].
func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathErr("write", f.name, syscall.EINVAL)
	}
	m, n := f.m, 0
	put := func(k int) {
		if n = k; k > 0 {
			f.n.data.write(p[:k], off, int64(k), m.rng)
			f.n.mtime = m.now()
		}
	}
	apply := func() error {
		if err := f.usable(os.O_RDONLY); err != nil {
			return err
		}
		put(len(p))
		return nil
	}
	var settle func()
	if f.flag&syscall.O_DSYNC != 0 { // Also a part of O_SYNC.
		settle = func() {
			f.n.data.syncRange(off, int64(len(p)))
		}
	}
	failed := func() {
		if f.usable(os.O_RDONLY) == nil {
			put(m.rng.IntN(len(p)/memSectorSize+1) * memSectorSize)
		}
	}
	if err := m.mutate("write", f.name, apply, settle, failed); err != nil {
		return n, pathErr("write", f.name, err)
	}
	return n, nil
}

// syncRange makes the n bytes at off durable, and the size.
func (d *memData) syncRange(off, n int64) {
	for page := off / memPageSize; page*memPageSize < off+n; page++ {
		start, end := max(off-page*memPageSize, 0), min(off+n-page*memPageSize, memPageSize)
		d.writeBack(page, sectors(int(start), int(end-start)))
	}
	d.diskSize = d.size
}

// Close implements [File].
func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.closed {
		return pathErr("close", f.name, fs.ErrClosed)
	}
	f.closed = true
	if f.n.holder == f {
		f.n.holder = nil
	}
	return nil
}

// Truncate implements [File].
func (f *memFile) Truncate(size int64) error {
	if size < 0 {
		return pathErr("truncate", f.name, syscall.EINVAL)
	}
	return pathErr("truncate", f.name, f.m.mutate("truncate", f.name, func() error {
		if err := f.usable(os.O_RDONLY); err != nil {
			return err
		}
		f.n.data.truncate(size, f.m.rng)
		f.n.mtime = f.m.now()
		return nil
	}, nil, nil))
}

// Sync implements [File].
func (f *memFile) Sync() error {
	usable := func() error {
		if f.closed {
			return fs.ErrClosed
		}
		return nil
	}
	failed := func() { f.n.data.failSync(f.m.rng) }
	return pathErr("fdatasync", f.name, f.m.mutate("sync", f.name, usable, func() { f.n.data.sync() }, failed))
}

// Stat implements [File].
func (f *memFile) Stat() (info fs.FileInfo, err error) {
	err = f.m.look(func() error {
		if f.closed {
			return fs.ErrClosed
		}
		info = f.n.info(path.Base(filepath.ToSlash(f.name)))
		return nil
	})
	return info, pathErr("stat", f.name, err)
}

// Zero implements [File].
func (f *memFile) Zero(off, n int64, punch bool) error {
	if off < 0 || n < 0 {
		return pathErr("zero", f.name, syscall.EINVAL)
	}
	return pathErr("zero", f.name, f.m.mutate("zero", f.name, func() error {
		if err := f.usable(os.O_RDONLY); err != nil {
			return err
		}
		d := &f.n.data
		k := min(n, d.size-off)
		if k <= 0 {
			return nil
		}
		if punch {
			d.punch(off, k, f.m.rng)
		} else {
			d.write(nil, off, k, f.m.rng)
		}
		f.n.mtime = f.m.now()
		return nil
	}, nil, nil))
}

// ZeroFast implements [File]: nothing is written to memory that costs more.
func (f *memFile) ZeroFast(off, n int64, punch bool) error { return f.Zero(off, n, punch) }

// NextData implements [File].
func (f *memFile) NextData(off int64) (start, end int64, err error) {
	found := false
	err = f.m.look(func() error {
		if uerr := f.usable(-1); uerr != nil {
			return uerr
		}
		start, end, found = f.n.data.nextData(off)
		return nil
	})
	if err == nil && !found {
		return 0, 0, io.EOF
	}
	return start, end, pathErr("seek", f.name, err)
}

func (f *memFile) lock() error {
	return f.m.look(func() error {
		switch {
		case f.closed:
			return pathErr("flock", f.name, fs.ErrClosed)
		case f.n.holder != nil && f.n.holder != f:
			return fmt.Errorf("lock %s: %w", f.name, ErrLocked)
		}
		f.n.holder = f
		return nil
	})
}
