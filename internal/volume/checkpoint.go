package volume

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// AddCheckpoint makes the present a position that changes are counted from, also
// while guests write: a write that was acknowledged before the call is before it. A
// name that there is already is refused (blockmap.ErrCheckpointExists).
//
// When nil is returned the checkpoint is on stable storage, and so is all that was
// written before it. Without the latter a reader who copies the volume from then on
// could copy a block that a power failure takes back: it would be another one than
// was copied, and count as unchanged since the checkpoint.
func (v *Volume) AddCheckpoint(name string) error {
	if err := checkpointName(name); err != nil {
		return err
	}
	v.admin.Lock() // one position at a time
	defer v.admin.Unlock()
	if err := v.addCheckpoint(name); err != nil {
		return fmt.Errorf("add checkpoint %s to volume %s: %w", name, v.name, err)
	}
	return nil
}

func (v *Volume) addCheckpoint(name string) error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	// The next segment is laid out before the guests are held up, not while.
	if err := v.tracker.PrepareCheckpoint(); err != nil {
		return v.roomless(err)
	}
	if err := v.closeSegment(name); err != nil {
		return err
	}
	if err := v.syncData(); err != nil {
		return errors.Join(err, v.tracker.DropCheckpoint(name))
	}
	return nil
}

// closeSegment lets the writers inside finish, and what comes later is behind the
// new position.
func (v *Volume) closeSegment(name string) error {
	v.gate.lock()
	defer v.gate.unlock()
	return v.tracker.AddCheckpoint(name)
}

// checkpointName refuses the names of snapshots' positions.
func checkpointName(name string) error {
	if strings.HasPrefix(name, checkpointPrefix) {
		return fmt.Errorf("%w: checkpoint name %q is kept for snapshots", ErrInvalid, name)
	}
	return nil
}

// AliasCheckpoint gives the position of a snapshot a further name, which outlives
// the snapshot as one given in SnapshotOptions does. It is durable when nil is
// returned. A name that there is already is refused (blockmap.ErrCheckpointExists).
func (v *Volume) AliasCheckpoint(id uuid.UUID, name string) error {
	v.admin.Lock() // no snapshot comes or goes meanwhile
	defer v.admin.Unlock()
	s, ok := v.Snapshot(id)
	if !ok {
		return fmt.Errorf("snapshot %s of volume %s: %w", id, v.name, ErrNotFound)
	}
	if err := checkpointName(name); err != nil {
		return err
	}
	if err := v.tracker.AliasCheckpoint(s.checkpoint(), name); err != nil {
		return fmt.Errorf("name the position of snapshot %s of volume %s: %w", id, v.name, err)
	}
	return nil
}

// DropCheckpoint forgets a position.
func (v *Volume) DropCheckpoint(name string) error { return v.tracker.DropCheckpoint(name) }
