package volume

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
)

// Snapshots lists the snapshots, oldest first, broken ones included.
func (v *Volume) Snapshots() []*Snapshot {
	if set := v.snaps.set.Load(); set != nil {
		return slices.Clone(set.snaps)
	}
	return nil
}

// Snapshot returns a snapshot by its ID.
func (v *Volume) Snapshot(id uuid.UUID) (*Snapshot, bool) {
	for _, s := range v.Snapshots() {
		if s.id == id {
			return s, true
		}
	}
	return nil, false
}

// DeleteSnapshot deletes a snapshot and gives back the space that no older one
// needs. Reads of it that are running end first; later ones answer ErrDeleted.
// Other snapshots and the checkpoint named in SnapshotOptions are not touched.
// When it fails after the snapshot is gone, the error tells what could not be
// cleaned up; the next DeleteSnapshot or Open does it.
func (v *Volume) DeleteSnapshot(id uuid.UUID) error {
	v.admin.Lock()
	defer v.admin.Unlock()
	s, ok := v.Snapshot(id)
	if !ok {
		return fmt.Errorf("snapshot %s of volume %s: %w", id, v.name, ErrNotFound)
	}
	if r := v.rec.Reverting; r != nil && *r == id {
		return fmt.Errorf("%w: volume %s is being reverted to snapshot %s; finish that first", ErrInvalid, v.name, id)
	}
	if err := v.forget(s); err != nil {
		return fmt.Errorf("delete snapshot %s of volume %s: %w", id, v.name, err)
	}
	return nil
}

// forget removes a snapshot: first from volume.json, so that a crash at any
// later point leaves only leftovers, then from the tracker, then its preimages.
// admin is held.
func (v *Volume) forget(s *Snapshot) error {
	r := v.rec
	r.Snapshots = slices.DeleteFunc(slices.Clone(r.Snapshots), func(n snapshotRecord) bool { return n.ID == s.id })
	if len(r.Snapshots) != len(v.rec.Snapshots) || v.unsure.Load() {
		if err := v.saveRecord(&r); err != nil {
			return err
		}
	}
	s.deleted.Store(true)
	err := v.tracker.DropCheckpoint(s.checkpoint())
	if errors.Is(err, blockmap.ErrCheckpoint) {
		err = nil
	}
	v.replaceSet(func(set *snapSet) {
		set.snaps = slices.DeleteFunc(set.snaps, func(n *Snapshot) bool { return n == s })
	})
	return errors.Join(err, v.reclaim(), v.runDeferred())
}

// replaceSet changes a copy of the set and installs it while no writer is inside.
func (v *Volume) replaceSet(change func(*snapSet)) {
	v.gate.lock()
	defer v.gate.unlock()
	v.replaceSetLocked(change)
}

func (v *Volume) replaceSetLocked(change func(*snapSet)) {
	set := &snapSet{}
	if old := v.snaps.set.Load(); old != nil {
		set.epochs, set.snaps = slices.Clone(old.epochs), slices.Clone(old.snaps)
	}
	change(set)
	v.snaps.set.Store(set)
}

// reclaimBroken follows a break: it records the reason where there is room for
// it, and frees what the broken snapshots no longer need. It runs beside the
// guest. Its failures are leftovers for the next reclaim.
func (v *Volume) reclaimBroken() {
	v.admin.Lock()
	defer v.admin.Unlock()
	// First the reason, if the disk has room for it: then the log's mark is no longer needed.
	serr := v.saveBroken()
	err := v.reclaim()
	if serr != nil {
		serr = v.saveBroken()
	}
	if err = errors.Join(err, serr, v.runDeferred()); err != nil {
		v.log.Warn("space of a broken snapshot not reclaimed", attrVolume(v), attrError(err))
	}
}

// saveBroken writes the reasons of broken snapshots into volume.json. admin is held.
func (v *Volume) saveBroken() error {
	r := v.rec
	r.Snapshots = slices.Clone(r.Snapshots)
	changed := false
	for i := range r.Snapshots {
		n := &r.Snapshots[i]
		if s, ok := v.Snapshot(n.ID); ok && s.isBroken() && n.Broken == "" {
			n.Broken, changed = *s.broken.Load(), true
		}
	}
	if !changed {
		return nil
	}
	return v.saveRecord(&r)
}

// reclaim frees preimages by these rules (FORMAT.md):
//   - an epoch older than every sound snapshot is dropped;
//   - an epoch without a sound snapshot of its own is merged into the next older
//     one: what that lacks and somebody needs is copied, then the epoch is dropped;
//   - a temporary log is dropped when no sound temporary snapshot is as old as it.
//
// admin is held.
func (v *Volume) reclaim() error {
	err := v.dropUnneeded()
	for {
		dst, src := v.snaps.set.Load().mergeable()
		if src == nil {
			return err
		}
		if merr := v.merge(dst, src); merr != nil {
			return errors.Join(err, merr)
		}
	}
}

// dropUnneeded drops whole epochs and temporary logs.
func (v *Volume) dropUnneeded() error {
	var gone []*preLog
	v.replaceSet(func(set *snapSet) {
		var keep []*epoch
		for _, e := range set.epochs {
			if !set.sound(func(s *Snapshot) bool { return s.epoch <= e.number }) {
				gone = append(gone, e.logs()...)
				continue
			}
			if e.temp != nil && !set.sound(func(s *Snapshot) bool { return s.temporary && s.epoch <= e.number }) {
				gone = append(gone, e.temp)
				// Cells that point into it remain, and are never looked at: who could find them is gone.
				e = &epoch{number: e.number, idx: e.idx, log: e.log}
			}
			keep = append(keep, e)
		}
		set.epochs = keep
	})
	return v.removeLogs(gone)
}

// removeLogs deletes logs that the current set no longer names. Readers of the
// old set end first.
func (v *Volume) removeLogs(logs []*preLog) error {
	if len(logs) == 0 {
		return nil
	}
	v.reads.Lock()
	v.reads.Unlock() //nolint:staticcheck // waits for those who read by the old set
	var err error
	for _, l := range logs {
		err = errors.Join(err, l.remove())
	}
	return err
}

// mergeable returns the oldest epoch without a sound snapshot of its own that has an older neighbor.
func (s *snapSet) mergeable() (dst, src *epoch) {
	if s == nil {
		return nil, nil
	}
	for i, e := range s.epochs {
		if i > 0 && !s.sound(func(n *Snapshot) bool { return n.epoch == e.number }) {
			return s.epochs[i-1], e
		}
	}
	return nil, nil
}
