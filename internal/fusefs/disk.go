package fusefs

import (
	"context"
	"syscall"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	seekData = 3 // SEEK_DATA
	seekHole = 4 // SEEK_HOLE

	// countWait is how long stat waits for the count of allocated bytes. A
	// disk of many TiB takes longer: until then it is shown as without holes.
	countWait = 250 * time.Millisecond
	// forever is how long the kernel may believe what cannot change.
	forever = time.Hour
)

// disk is the file disk.raw of one backup.
type disk struct {
	gofs.Inode
	*tree
	entry Entry
}

var (
	_ gofs.NodeGetattrer   = (*disk)(nil)
	_ gofs.NodeOpener      = (*disk)(nil)
	_ gofs.NodeGetxattrer  = (*disk)(nil)
	_ gofs.NodeListxattrer = (*disk)(nil)
)

// attributes fills a and reports whether st_blocks is exact, having waited no
// longer than given for that.
func (d *disk) attributes(a *fuse.Attr, wait time.Duration) bool {
	d.fill(a, d.mode, d.entry.Created)
	a.Size = uint64(max(d.entry.Size, 0))
	a.Blksize = 64 << 10
	n, exact := d.sizes.allocated(d.pool, d.entry, wait)
	a.Blocks = uint64(max(n, 0)+511) / 512
	return exact
}

// Getattr implements gofs.NodeGetattrer.
func (d *disk) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	if d.attributes(&out.Attr, countWait) { //nolint:contextcheck // a count outlives the request, see pool.life
		out.SetTimeout(forever)
	}
	return 0
}

// Open implements gofs.NodeOpener.
func (d *disk) Open(_ context.Context, flags uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, syscall.EROFS
	}
	s, err := d.pool.get(d.entry.ID) //nolint:contextcheck // an image outlives the request, see pool.life
	if err != nil {
		return nil, 0, d.errno("open backup "+d.entry.ID, err)
	}
	if s.image.Size() != d.entry.Size {
		d.pool.put(s)
		return nil, 0, d.errno("open backup "+d.entry.ID, errSize)
	}
	return &file{tree: d.tree, entry: d.entry, shared: s}, fuse.FOPEN_KEEP_CACHE, 0
}

// Getxattr implements gofs.NodeGetxattrer.
func (d *disk) Getxattr(_ context.Context, attr string, dest []byte) (uint32, syscall.Errno) {
	return getxattr(d.entry, attr, dest)
}

// Listxattr implements gofs.NodeListxattrer.
func (d *disk) Listxattr(_ context.Context, dest []byte) (uint32, syscall.Errno) {
	return listxattr(dest)
}

// file is an open disk.
type file struct {
	*tree
	entry  Entry
	shared *shared
}

var (
	_ gofs.FileReader   = (*file)(nil)
	_ gofs.FileLseeker  = (*file)(nil)
	_ gofs.FileReleaser = (*file)(nil)
)

// Read ignores the request's context on purpose, see pool.life.
func (f *file) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	size := f.entry.Size
	if off >= size {
		return fuse.ReadResultData(nil), 0
	}
	dest = dest[:min(int64(len(dest)), size-off)]
	if err := f.shared.image.ReadAt(f.pool.life(), dest, off); err != nil { //nolint:contextcheck // not ended by a signal to the reader, see pool.life
		return nil, f.errno("read backup "+f.entry.ID, err)
	}
	return fuse.ReadResultData(dest), 0
}

// Lseek implements gofs.FileLseeker.
func (f *file) Lseek(_ context.Context, off uint64, whence uint32) (uint64, syscall.Errno) {
	if whence != seekData && whence != seekHole {
		return 0, syscall.EINVAL // the kernel answers the others itself
	}
	if off >= uint64(max(f.entry.Size, 0)) {
		return 0, syscall.ENXIO
	}
	at, ok, err := f.shared.holes.seek(f.pool.life(), f.shared.image, int64(off), whence == seekData) //nolint:contextcheck,gosec // see pool.life; off is below the size
	if err != nil {
		return 0, f.errno("look for holes of backup "+f.entry.ID, err)
	}
	if !ok {
		return 0, syscall.ENXIO
	}
	return uint64(at), 0 //nolint:gosec // an offset within the file
}

// Release implements gofs.FileReleaser.
func (f *file) Release(context.Context) syscall.Errno {
	f.pool.put(f.shared)
	return 0
}

// Extended attributes of a backup's directory and disk.
const (
	xattrID   = "user.cairn.backup"
	xattrName = "user.cairn.backup.name"
)

func getxattr(e Entry, attr string, dest []byte) (uint32, syscall.Errno) {
	switch attr {
	case xattrID:
		return answerXattr(dest, e.ID)
	case xattrName:
		return answerXattr(dest, e.Name)
	}
	return 0, syscall.ENODATA
}

func listxattr(dest []byte) (uint32, syscall.Errno) {
	return answerXattr(dest, xattrID+"\x00"+xattrName+"\x00")
}

// answerXattr follows getxattr(2): the length that is needed, and ERANGE when
// dest is shorter.
func answerXattr(dest []byte, value string) (uint32, syscall.Errno) {
	n := uint32(len(value)) //nolint:gosec // names and IDs are short
	if len(dest) < len(value) {
		return n, syscall.ERANGE
	}
	copy(dest, value)
	return n, 0
}
