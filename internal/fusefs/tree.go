package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// tree is what all nodes of a mount share.
type tree struct {
	catalog *catalog
	pool    *pool
	sizes   *sizes
	failed  func(error)
	uid     uint32
	gid     uint32
	dirMode uint32
	mode    uint32
	mounted time.Time
}

// errno turns an error of the source into what the kernel understands. The
// sentence itself goes to the owner of the mount.
func (t *tree) errno(op string, err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) && (e == syscall.EMFILE || e == syscall.ENOMEM || e == syscall.EINTR) {
		return e
	}
	t.failed(fmt.Errorf("%s: %w", op, err))
	return syscall.EIO
}

// fill sets what all attributes have in common.
func (t *tree) fill(a *fuse.Attr, mode uint32, at time.Time) {
	a.Mode = mode
	a.Owner = fuse.Owner{Uid: t.uid, Gid: t.gid}
	a.Nlink = 1
	a.SetTimes(&at, &at, &at)
}

func (t *tree) fillDir(a *fuse.Attr, at time.Time) {
	t.fill(a, t.dirMode, at)
	a.Nlink = 2
	a.Blksize = 4096
}

// root is the directory of volumes.
type root struct {
	gofs.Inode
	*tree
}

var (
	_ gofs.NodeLookuper  = (*root)(nil)
	_ gofs.NodeReaddirer = (*root)(nil)
	_ gofs.NodeGetattrer = (*root)(nil)
	_ gofs.NodeStatfser  = (*root)(nil)
)

// Getattr implements gofs.NodeGetattrer.
func (r *root) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.SetTimeout(forever)
	r.fillDir(&out.Attr, r.mounted)
	return 0
}

// Lookup implements gofs.NodeLookuper.
func (r *root) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	v, ok, err := r.catalog.volume(ctx, name)
	if err != nil {
		return nil, r.errno("list backups", err)
	}
	if !ok {
		return nil, syscall.ENOENT
	}
	n := &volume{tree: r.tree, id: v.id, created: newest(v)}
	out.SetAttrTimeout(forever)
	r.fillDir(&out.Attr, n.created)
	return r.NewInode(ctx, n, gofs.StableAttr{Mode: syscall.S_IFDIR, Ino: r.catalog.ino("volume " + v.id)}), 0
}

// Readdir implements gofs.NodeReaddirer.
func (r *root) Readdir(ctx context.Context) (gofs.DirStream, syscall.Errno) {
	vols, err := r.catalog.list(ctx)
	if err != nil {
		return nil, r.errno("list backups", err)
	}
	list := make([]fuse.DirEntry, 0, len(vols))
	for _, v := range vols {
		list = append(list, fuse.DirEntry{Name: v.name, Mode: syscall.S_IFDIR, Ino: r.catalog.ino("volume " + v.id)})
	}
	return gofs.NewListDirStream(list), 0
}

// Statfs shows the sum of all disks as used and nothing as free: the file
// system is full for whoever wants to write.
func (r *root) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	vols, err := r.catalog.list(ctx)
	if err != nil {
		return r.errno("list backups", err)
	}
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, 255
	for _, v := range vols {
		for _, b := range v.backups {
			out.Blocks += uint64(max(b.entry.Size, 0)+4095) / 4096
			out.Files++
		}
	}
	return 0
}

func newest(v volumeDir) time.Time {
	return v.backups[len(v.backups)-1].entry.Created
}

// volume is the directory of one volume's backups.
type volume struct {
	gofs.Inode
	*tree
	id      string
	created time.Time
}

var (
	_ gofs.NodeLookuper  = (*volume)(nil)
	_ gofs.NodeReaddirer = (*volume)(nil)
	_ gofs.NodeGetattrer = (*volume)(nil)
)

// Getattr implements gofs.NodeGetattrer.
func (v *volume) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.SetTimeout(forever)
	v.fillDir(&out.Attr, v.created)
	return 0
}

// Lookup implements gofs.NodeLookuper.
func (v *volume) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	d, ok, err := v.catalog.volumeByID(ctx, v.id)
	if err != nil {
		return nil, v.errno("list backups", err)
	}
	if !ok {
		return nil, syscall.ENOENT
	}
	if name == latestName {
		last := d.backups[len(d.backups)-1]
		n := &latest{tree: v.tree, target: last.name, created: last.entry.Created}
		out.SetAttrTimeout(forever)
		v.fill(&out.Attr, 0o777, n.created)
		out.Size = uint64(len(n.target))
		// The target is part of the identity: a newer backup is another link.
		return v.NewInode(ctx, n, gofs.StableAttr{Mode: syscall.S_IFLNK, Ino: v.catalog.ino("latest " + d.id + "/" + last.name)}), 0
	}
	for _, b := range d.backups {
		if b.name == name {
			n := &backup{tree: v.tree, entry: b.entry}
			out.SetAttrTimeout(forever)
			v.fillDir(&out.Attr, b.entry.Created)
			return v.NewInode(ctx, n, gofs.StableAttr{Mode: syscall.S_IFDIR, Ino: v.catalog.ino("backup " + b.entry.ID)}), 0
		}
	}
	return nil, syscall.ENOENT
}

// Readdir implements gofs.NodeReaddirer.
func (v *volume) Readdir(ctx context.Context) (gofs.DirStream, syscall.Errno) {
	d, ok, err := v.catalog.volumeByID(ctx, v.id)
	if err != nil {
		return nil, v.errno("list backups", err)
	}
	if !ok { // its last backup was deleted
		return gofs.NewListDirStream(nil), 0
	}
	list := make([]fuse.DirEntry, 0, len(d.backups)+1)
	for _, b := range d.backups {
		list = append(list, fuse.DirEntry{Name: b.name, Mode: syscall.S_IFDIR, Ino: v.catalog.ino("backup " + b.entry.ID)})
	}
	last := d.backups[len(d.backups)-1]
	list = append(list, fuse.DirEntry{Name: latestName, Mode: syscall.S_IFLNK, Ino: v.catalog.ino("latest " + d.id + "/" + last.name)})
	return gofs.NewListDirStream(list), 0
}

// latest is the symbolic link to the newest backup.
type latest struct {
	gofs.Inode
	*tree
	target  string
	created time.Time
}

var (
	_ gofs.NodeReadlinker = (*latest)(nil)
	_ gofs.NodeGetattrer  = (*latest)(nil)
)

// Readlink implements gofs.NodeReadlinker.
func (l *latest) Readlink(context.Context) ([]byte, syscall.Errno) { return []byte(l.target), 0 }

// Getattr implements gofs.NodeGetattrer.
func (l *latest) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.SetTimeout(forever)
	l.fill(&out.Attr, 0o777, l.created)
	out.Size = uint64(len(l.target))
	return 0
}

// backup is the directory of one backup.
type backup struct {
	gofs.Inode
	*tree
	entry Entry
}

var (
	_ gofs.NodeLookuper    = (*backup)(nil)
	_ gofs.NodeReaddirer   = (*backup)(nil)
	_ gofs.NodeGetattrer   = (*backup)(nil)
	_ gofs.NodeGetxattrer  = (*backup)(nil)
	_ gofs.NodeListxattrer = (*backup)(nil)
)

// Getattr implements gofs.NodeGetattrer.
func (b *backup) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.SetTimeout(forever)
	b.fillDir(&out.Attr, b.entry.Created)
	return 0
}

// Lookup implements gofs.NodeLookuper.
func (b *backup) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*gofs.Inode, syscall.Errno) {
	if name != diskName {
		return nil, syscall.ENOENT
	}
	n := &disk{tree: b.tree, entry: b.entry}
	if n.attributes(&out.Attr, 0) { //nolint:contextcheck // starts nothing, for want of time
		out.SetAttrTimeout(forever)
	} // else stat asks again, and then the holes are counted
	return b.NewInode(ctx, n, gofs.StableAttr{Mode: syscall.S_IFREG, Ino: b.catalog.ino("disk " + b.entry.ID)}), 0
}

// Readdir implements gofs.NodeReaddirer.
func (b *backup) Readdir(context.Context) (gofs.DirStream, syscall.Errno) {
	return gofs.NewListDirStream([]fuse.DirEntry{
		{Name: diskName, Mode: syscall.S_IFREG, Ino: b.catalog.ino("disk " + b.entry.ID)},
	}), 0
}

// Getxattr implements gofs.NodeGetxattrer.
func (b *backup) Getxattr(_ context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	return getxattr(b.entry, attr, dest)
}

// Listxattr implements gofs.NodeListxattrer.
func (b *backup) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	return listxattr(dest)
}

// owner returns whom the files belong to: the user who mounts.
func owner() (uid, gid uint32) {
	return uint32(os.Geteuid()), uint32(os.Getegid()) //nolint:gosec // IDs are 32 bits wide
}
