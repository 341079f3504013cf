package volume

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
)

// Snapshot is the content of a volume at one instant. It is read from the live
// volume where nothing was overwritten since, and from preimages elsewhere.
type Snapshot struct {
	v         *Volume
	id        uuid.UUID
	name      string
	epoch     uint64
	size      int64 // fixed at creation
	created   time.Time
	temporary bool
	broken    atomic.Pointer[string]
	deleted   atomic.Bool
	released  atomic.Int64 // blocks below it are not read any more; it only grows
}

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	ID        uuid.UUID
	Name      string
	Size      int64
	Created   time.Time
	Temporary bool
	// Broken says why the snapshot lost its content; "" if it is sound.
	Broken string
	// PreimageBytes is the space of what was saved since this snapshot and before the next one.
	PreimageBytes int64
}

// Info returns a description of the snapshot.
func (s *Snapshot) Info() SnapshotInfo {
	i := SnapshotInfo{ID: s.id, Name: s.name, Size: s.size, Created: s.created, Temporary: s.temporary}
	if r := s.broken.Load(); r != nil {
		i.Broken = *r
	}
	if set := s.v.snaps.set.Load(); set != nil {
		if e := set.at(s.epoch); e != nil {
			i.PreimageBytes = e.size()
		}
	}
	return i
}

// Size is the volume's size at the snapshot's instant.
func (s *Snapshot) Size() int64 { return s.size }

// checkpoint is the name of the snapshot's position in the tracker.
func (s *Snapshot) checkpoint() string { return checkpointPrefix + s.id.String() }

const checkpointPrefix = "snapshot:"

func (s *Snapshot) isBroken() bool { return s.broken.Load() != nil }

func (s *Snapshot) blocks() int64 { return blocksOf(s.size) }

// sound returns the error of a snapshot that is not to be read.
func (s *Snapshot) sound() error {
	if s.deleted.Load() {
		return fmt.Errorf("snapshot %s of volume %s: %w", s.id, s.v.name, ErrDeleted)
	}
	if r := s.broken.Load(); r != nil {
		return fmt.Errorf("snapshot %s of volume %s lost its content (%s); delete it and take another: %w", s.id, s.v.name, *r, ErrBroken)
	}
	return nil
}

// ReadAt reads the snapshot. A read beyond the end is short and answers io.EOF.
// A snapshot that is or becomes broken, or was deleted, answers an error and never other bytes;
// so does a range that begins in what was released.
func (s *Snapshot) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.size {
		return 0, fmt.Errorf("read at %d of snapshot %s of %d bytes: %w", off, s.id, s.size, syscall.EINVAL)
	}
	short := int64(len(p)) > s.size-off
	if short {
		p = p[:s.size-off]
	}
	s.v.reads.RLock()
	defer s.v.reads.RUnlock()
	if err := s.readable(off); err != nil {
		return 0, err
	}
	if err := s.read(p, off); err != nil {
		return 0, err
	}
	// What was not saved is overwritten only after the snapshot broke or released it.
	if err := s.readable(off); err != nil {
		return 0, err
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// read fills p run by run: blocks whose preimage is saved one by one, others
// together from the live volume, and over that the pages that are saved of them.
func (s *Snapshot) read(p []byte, off int64) error {
	for len(p) > 0 {
		b := off / blockmap.DefaultBlockSize
		n := min(int64(len(p)), (b+1)*blockmap.DefaultBlockSize-off)
		if e, c := s.v.snaps.set.Load().find(s.epoch, b); e != nil && !isPart(c) {
			if err := s.readSaved(e, c, b, allPages, p[:n], off); err != nil {
				return err
			}
			p, off = p[n:], off+n
			continue
		}
		for n < int64(len(p)) {
			b++
			if e, c := s.v.snaps.set.Load().find(s.epoch, b); e != nil && !isPart(c) {
				break
			}
			n = min(int64(len(p)), n+blockmap.DefaultBlockSize)
		}
		if err := s.readLive(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readLive reads from the live volume and then looks again: a preimage is
// published before what it is of is overwritten, so a page without one had its old
// content while it was read. The set is loaded anew, because a later snapshot may
// have opened an epoch meanwhile.
func (s *Snapshot) readLive(p []byte, off int64) error {
	if n, err := s.v.data.ReadAt(p, off); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = syscall.EIO
		}
		return fmt.Errorf("read snapshot %s of volume %s at %d: %w", s.id, s.v.name, off+int64(n), err)
	}
	for len(p) > 0 {
		b := off / blockmap.DefaultBlockSize
		n := min(int64(len(p)), (b+1)*blockmap.DefaultBlockSize-off)
		_, err := s.v.snaps.set.Load().pages(s.epoch, b, pagesOf(off, n, b), func(e *epoch, c uint32, saved pageSet) error {
			return s.readSaved(e, c, b, saved, p[:n], off)
		})
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readSaved reads pages of one block from their preimages, as far as they lie in p, which
// begins at off. Damage breaks the snapshot, unless the block was released meanwhile: what
// is found then may be another's.
func (s *Snapshot) readSaved(e *epoch, cell uint32, b int64, pages pageSet, p []byte, off int64) error {
	for pages != 0 {
		r, has, err := e.load(cell, b, pages)
		if err == nil {
			err = r.copyTo(has, p, off)
			r.free()
		}
		if err != nil {
			return s.unreadableAt(b, err)
		}
		pages &^= has
	}
	return nil
}

// unreadableAt is unreadable for the reader of a block that the snapshot may have released.
func (s *Snapshot) unreadableAt(b int64, err error) error {
	if rerr := s.readable(b * blockmap.DefaultBlockSize); rerr != nil {
		return rerr
	}
	return s.unreadable(err)
}

// unreadable turns the failure to read a preimage into the answer: damage is
// lasting and breaks the snapshot, an I/O error may pass.
func (s *Snapshot) unreadable(err error) error {
	if errors.Is(err, ErrDamaged) {
		err = errors.Join(s.breakOff(err.Error()), err)
	}
	return fmt.Errorf("read snapshot %s of volume %s: %w", s.id, s.v.name, err)
}

// Extents tells where the snapshot has data, from off on, in order and without
// gaps, at least one and at most n bytes in all; it may stop early.
func (s *Snapshot) Extents(off, n int64) ([]blockmap.Extent, error) {
	if off < 0 || n <= 0 || off >= s.size || n > s.size-off {
		return nil, fmt.Errorf("extents of %d bytes at %d of snapshot %s of %d bytes: %w", n, off, s.id, s.size, syscall.EINVAL)
	}
	s.v.reads.RLock()
	defer s.v.reads.RUnlock()
	if err := s.readable(off); err != nil {
		return nil, err
	}
	live, err := s.v.liveExtents(off, n)
	if err != nil {
		return nil, err
	}
	n = live[len(live)-1].End() - off
	// As for reading: what is not saved after the look at the live volume was not yet changed by then.
	saved := s.savedExtents(off, n)
	if err := s.readable(off); err != nil {
		return nil, err
	}
	return blockmap.Clip(blockmap.Merge(blockmap.Overlay(live, saved)), off, n), nil
}

// savedExtents lists the saved blocks of a range, all as data: to look which are
// zeros would cost a read of each.
func (s *Snapshot) savedExtents(off, n int64) []blockmap.Extent {
	set := s.v.snaps.set.Load()
	var l []blockmap.Extent
	end := (off+n-1)/blockmap.DefaultBlockSize + 1
	for b := set.touched(s.epoch, off/blockmap.DefaultBlockSize, end); b < end; b = set.touched(s.epoch, b+1, end) {
		if e, _ := set.find(s.epoch, b); e != nil {
			l = blockmap.Append(l, blockmap.Extent{Offset: b * blockmap.DefaultBlockSize, Length: blockmap.DefaultBlockSize, State: blockmap.Data})
		}
	}
	return blockmap.Clip(l, off, n)
}

// Dirty returns the blocks that may differ between a checkpoint and this
// snapshot, one bit for each of the snapshot's blocks, and why that is not exact
// ("" if it is).
func (s *Snapshot) Dirty(from string) (*blockmap.Bitmap, string, error) {
	if err := s.sound(); err != nil {
		return nil, "", err
	}
	all, doubt, err := s.v.tracker.Dirty(from, s.checkpoint())
	if err != nil {
		return nil, "", fmt.Errorf("changes between checkpoint %s and snapshot %s of volume %s: %w", from, s.id, s.v.name, err)
	}
	own := blockmap.NewBitmap(s.blocks())
	own.Or(all)
	return own, doubt, nil
}
