package vfs

import (
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// memNode is a file or a directory.
type memNode struct {
	dir   bool
	perm  fs.FileMode
	mtime time.Time

	// Of a file.
	data   memData
	holder *memFile // who has the lock

	// Of a directory: its entries as everybody sees them, as they are on
	// disk, and the operations between the two, oldest first.
	entries, durable map[string]*memNode
	pending          []entryOp
}

// entryOp is a change of a directory's entries: one goes, one comes, or both.
type entryOp struct {
	remove string
	set    string
	node   *memNode
	fate   *fate // operations of one fate survive together
}

// fate has a size, so that every one has its own address.
type fate struct{ _ byte }

func (o entryOp) apply(entries map[string]*memNode) {
	if o.remove != "" {
		delete(entries, o.remove)
	}
	if o.set != "" {
		entries[o.set] = o.node
	}
}

func (m *Mem) newNode(dir bool, perm fs.FileMode) *memNode {
	n := &memNode{dir: dir, perm: perm & fs.ModePerm, mtime: m.now()}
	if dir {
		n.entries, n.durable = map[string]*memNode{}, map[string]*memNode{}
	}
	return n
}

// change carries out an operation that is not durable yet.
func (m *Mem) change(d *memNode, o entryOp) {
	o.apply(d.entries)
	d.pending = append(d.pending, o)
	d.mtime = m.now()
}

// lookup finds the node of a name, nil if there is none.
func (m *Mem) lookup(name string) (*memNode, error) {
	n := m.root
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+filepath.ToSlash(name)), "/"), "/") {
		if part == "" {
			break
		}
		if !n.dir {
			return nil, syscall.ENOTDIR
		}
		if n = n.entries[part]; n == nil {
			return nil, syscall.ENOENT
		}
	}
	return n, nil
}

// parent finds the directory of a name, and the name's last element in it.
func (m *Mem) parent(name string) (d *memNode, last string, err error) {
	name = path.Clean("/" + filepath.ToSlash(name))
	if name == "/" {
		return nil, "", syscall.EBUSY
	}
	d, err = m.lookup(path.Dir(name))
	if err != nil {
		return nil, "", err
	}
	if !d.dir {
		return nil, "", syscall.ENOTDIR
	}
	return d, path.Base(name), nil
}

func pathErr(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

func linkErr(op, oldname, newname string, err error) error {
	if err == nil {
		return nil
	}
	return &os.LinkError{Op: op, Old: oldname, New: newname, Err: err}
}

// Mkdir implements [FS].
func (m *Mem) Mkdir(name string, perm fs.FileMode) error {
	return pathErr("mkdir", name, m.mutate("mkdir", name, func() error {
		d, last, err := m.parent(name)
		if err != nil {
			return err
		}
		if d.entries[last] != nil {
			return syscall.EEXIST
		}
		m.change(d, entryOp{set: last, node: m.newNode(true, perm), fate: new(fate)})
		return nil
	}, nil, nil))
}

// Remove implements [FS].
func (m *Mem) Remove(name string) error {
	return pathErr("remove", name, m.mutate("remove", name, func() error {
		d, last, err := m.parent(name)
		if err != nil {
			return err
		}
		switch n := d.entries[last]; {
		case n == nil:
			return syscall.ENOENT
		case n.dir && len(n.entries) > 0:
			return syscall.ENOTEMPTY
		}
		m.change(d, entryOp{remove: last, fate: new(fate)})
		return nil
	}, nil, nil))
}

// Rename implements [FS].
func (m *Mem) Rename(oldname, newname string) error {
	return linkErr("rename", oldname, newname, m.mutate("rename", newname, func() error {
		from, last, err := m.parent(oldname)
		if err != nil {
			return err
		}
		to, next, err := m.parent(newname)
		if err != nil {
			return err
		}
		n, old := from.entries[last], to.entries[next]
		switch {
		case n == nil:
			return syscall.ENOENT
		case n == old:
			return nil
		case old != nil && old.dir && !n.dir:
			return syscall.EEXIST // What os.Rename makes of it.
		case old != nil && !old.dir && n.dir:
			return syscall.ENOTDIR
		case old != nil && len(old.entries) > 0:
			return syscall.ENOTEMPTY
		case n.dir && n.holds(to):
			return syscall.EINVAL
		}
		f := new(fate)
		if from == to {
			m.change(to, entryOp{remove: last, set: next, node: n, fate: f})
			return nil
		}
		m.change(to, entryOp{set: next, node: n, fate: f})
		m.change(from, entryOp{remove: last, fate: f})
		return nil
	}, nil, nil))
}

// holds tells whether d is n or lies below it.
func (n *memNode) holds(d *memNode) bool {
	if n == d {
		return true
	}
	for _, c := range n.entries {
		if c.dir && c.holds(d) {
			return true
		}
	}
	return false
}

// Link implements [FS].
func (m *Mem) Link(oldname, newname string) error {
	return linkErr("link", oldname, newname, m.mutate("link", newname, func() error {
		n, err := m.lookup(oldname)
		if err != nil {
			return err
		}
		if n.dir {
			return syscall.EPERM
		}
		d, last, err := m.parent(newname)
		if err != nil {
			return err
		}
		if d.entries[last] != nil {
			return syscall.EEXIST
		}
		m.change(d, entryOp{set: last, node: n, fate: new(fate)})
		return nil
	}, nil, nil))
}

// SyncDir implements [FS].
func (m *Mem) SyncDir(name string) error {
	var d *memNode
	find := func() error {
		var err error
		if d, err = m.lookup(name); err == nil && !d.dir {
			err = syscall.ENOTDIR
		}
		return err
	}
	settle := func() {
		for _, o := range d.pending {
			o.apply(d.durable)
		}
		d.pending = nil
	}
	return pathErr("fsync", name, m.mutate("syncdir", name, find, settle, nil))
}

// ReadDir implements [FS].
func (m *Mem) ReadDir(name string) ([]fs.DirEntry, error) {
	var out []fs.DirEntry
	err := m.look(func() error {
		d, err := m.lookup(name)
		if err != nil {
			return err
		}
		if !d.dir {
			return syscall.ENOTDIR
		}
		for _, k := range slices.Sorted(maps.Keys(d.entries)) {
			out = append(out, fs.FileInfoToDirEntry(d.entries[k].info(k)))
		}
		return nil
	})
	return out, pathErr("open", name, err)
}

// Stat implements [FS].
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	var info fs.FileInfo
	err := m.look(func() error {
		n, err := m.lookup(name)
		if err != nil {
			return err
		}
		info = n.info(path.Base(filepath.ToSlash(name)))
		return nil
	})
	return info, pathErr("stat", name, err)
}

func (n *memNode) info(name string) memInfo {
	i := memInfo{name: name, size: n.data.size, mode: n.perm, mtime: n.mtime}
	if n.dir {
		i.mode |= fs.ModeDir
	}
	return i
}

// memInfo implements fs.FileInfo.
type memInfo struct {
	name  string
	size  int64
	mode  fs.FileMode
	mtime time.Time
}

// Name implements [fs.FileInfo].
func (i memInfo) Name() string { return i.name }

// Size implements [fs.FileInfo].
func (i memInfo) Size() int64 { return i.size }

// Mode implements [fs.FileInfo].
func (i memInfo) Mode() fs.FileMode { return i.mode }

// ModTime implements [fs.FileInfo].
func (i memInfo) ModTime() time.Time { return i.mtime }

// IsDir implements [fs.FileInfo].
func (i memInfo) IsDir() bool { return i.mode.IsDir() }

// Sys implements [fs.FileInfo].
func (i memInfo) Sys() any { return nil }
