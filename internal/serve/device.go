package serve

import (
	"fmt"
	"strings"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/volume"
	"github.com/cairnbackup/cairn/nbd"
)

var (
	_ nbd.Device     = (*liveDevice)(nil)
	_ nbd.FileBacked = (*liveDevice)(nil)
	_ nbd.FastZeroer = (*liveDevice)(nil)
	_ nbd.Device     = (*snapshotDevice)(nil)
)

// liveDevice is one connection to a volume. The volume's own methods serve
// it, including those of nbd.FileBacked: page references of its data file may
// be sent, since a reader of a live volume may see a write that comes while
// it reads.
type liveDevice struct {
	*volume.Volume
	e     *entry
	leave func() error
}

// WriteAt writes.
func (d *liveDevice) WriteAt(p []byte, off int64) (int, error) {
	n, err := d.Volume.WriteAt(p, off)
	d.e.dirty.changed()
	return n, err
}

// Trim discards.
func (d *liveDevice) Trim(off, n int64) error {
	err := d.Volume.Trim(off, n)
	d.e.dirty.changed()
	return err
}

// Zero zeroes.
func (d *liveDevice) Zero(off, n int64, punch bool) error {
	err := d.Volume.Zero(off, n, punch)
	d.e.dirty.changed()
	return err
}

// ZeroFast zeroes where that is fast.
func (d *liveDevice) ZeroFast(off, n int64, punch bool) error {
	err := d.Volume.ZeroFast(off, n, punch)
	d.e.dirty.changed()
	return err
}

// BeginWrite comes before a write that the server does itself. The blocks are
// marked when it returns.
func (d *liveDevice) BeginWrite(off, n int64) error {
	err := d.Volume.BeginWrite(off, n)
	d.e.dirty.changed()
	return err
}

// Map answers block status from the volume's state at this moment.
func (d *liveDevice) Map(context string, off, n int64) ([]blockmap.Extent, error) {
	if context == nbd.ContextAllocation {
		return d.Extents(off, n)
	}
	name, err := checkpointOf(context)
	if err != nil {
		return nil, err
	}
	dirty, err := d.e.dirty.get(name, d.steady(), func(from string) (*blockmap.Bitmap, string, error) {
		return d.Dirty(from, "")
	})
	if err != nil {
		return nil, err
	}
	return dirtyExtents(dirty, off, n), nil
}

// steady reports whether nothing changes the volume but its clients and the
// control API. A volume that lost a snapshot catches up with trims that it
// put off for it, and one that has failed distrusts its bits.
func (d *liveDevice) steady() bool {
	if d.Failed() != nil {
		return false
	}
	for _, s := range d.Snapshots() {
		if s.Info().Broken != "" {
			return false
		}
	}
	return true
}

// Close ends the connection; the volume stays open. After the last writer what
// was written is on stable storage, or an error tells.
func (d *liveDevice) Close() error { return d.leave() }

// snapshotDevice is one connection to a snapshot. It is not nbd.FileBacked:
// what it reads of the live data file has to be copied before a guest may
// overwrite it.
type snapshotDevice struct {
	sn    *snap
	leave func()
}

// Size is fixed.
func (d *snapshotDevice) Size() int64 { return d.sn.s.Info().Size }

// ReadAt reads the content at the snapshot's instant.
func (d *snapshotDevice) ReadAt(p []byte, off int64) (int, error) { return d.sn.s.ReadAt(p, off) }

// WriteAt refuses, as do Trim and Zero.
func (d *snapshotDevice) WriteAt([]byte, int64) (int, error) { return 0, nbd.EPERM }

// Flush has nothing to do.
func (d *snapshotDevice) Flush() error { return nil }

// Trim refuses.
func (d *snapshotDevice) Trim(_, _ int64) error { return nbd.EPERM }

// Zero refuses.
func (d *snapshotDevice) Zero(_, _ int64, _ bool) error { return nbd.EPERM }

// Map answers block status; a dirty bitmap is what may differ between its
// checkpoint and the snapshot, whatever was written since.
func (d *snapshotDevice) Map(context string, off, n int64) ([]blockmap.Extent, error) {
	if context == nbd.ContextAllocation {
		return d.sn.s.Extents(off, n)
	}
	name, err := checkpointOf(context)
	if err != nil {
		return nil, err
	}
	dirty, err := d.sn.dirty.get(name, true, d.sn.s.Dirty)
	if err != nil {
		return nil, err
	}
	return dirtyExtents(dirty, off, n), nil
}

// Close ends the connection.
func (d *snapshotDevice) Close() error {
	d.leave()
	return nil
}

// checkpointOf is the checkpoint that a metadata context names.
func checkpointOf(context string) (string, error) {
	name, ok := strings.CutPrefix(context, nbd.ContextDirtyBitmap)
	if !ok {
		return "", fmt.Errorf("metadata context %q: %w", clip(context), nbd.EINVAL)
	}
	return name, nil
}

// contexts are the metadata contexts of a volume and its snapshots.
func contexts(checkpoints []Checkpoint) []string {
	cs := []string{nbd.ContextAllocation}
	for _, c := range checkpoints {
		cs = append(cs, nbd.ContextDirtyBitmap+c.Name)
	}
	return cs
}

// positions lists the checkpoints of a volume that are not snapshots'.
func positions(v *volume.Volume) []Checkpoint {
	cs := []Checkpoint{}
	for _, c := range v.Checkpoints() {
		if !strings.HasPrefix(c.Name, snapshotPosition) {
			cs = append(cs, Checkpoint{Name: c.Name, Created: c.Created, Doubt: c.Doubt})
		}
	}
	return cs
}

// changes lists them with what changed since, which is read from disk.
func changes(v *volume.Volume) []Checkpoint {
	cs := []Checkpoint{}
	for _, c := range v.Changes() {
		if !strings.HasPrefix(c.Name, snapshotPosition) {
			dirty := min(c.DirtyBlocks*blockmap.DefaultBlockSize, v.Size())
			cs = append(cs, Checkpoint{Name: c.Name, Created: c.Created, Doubt: c.Doubt, DirtyBytes: &dirty})
		}
	}
	return cs
}

// dirtyExtents are the extents of a bitmap from off on, over at most n bytes
// and so many blocks as one answer can be asked for. Blocks that the bitmap
// does not have are dirty: nobody knows that they are clean.
func dirtyExtents(b *blockmap.Bitmap, off, n int64) []blockmap.Extent {
	const (
		unit      = blockmap.DefaultBlockSize
		maxBlocks = 1 << 20
	)
	n = min(n, maxBlocks*unit)
	var es []blockmap.Extent
	for end := off + n; off < end; {
		block := off / unit
		e := blockmap.Extent{Offset: off, Length: end - off, State: blockmap.Dirty}
		if block < b.Len() {
			dirty := b.Test(block)
			if !dirty {
				e.State = blockmap.Clean
			}
			e.Length = min(b.Next(block, (end-1)/unit+1, !dirty)*unit, end) - off
		}
		es = blockmap.Append(es, e)
		off = e.End()
	}
	return es
}
