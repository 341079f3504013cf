package serve

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/cairnbackup/cairn/internal/volume"
)

// listSnapshots shows the snapshots of one volume, or of all with "".
func (p *plane) listSnapshots(volumeRef string) ([]Snapshot, error) {
	es := p.sorted()
	if volumeRef != "" {
		e, err := p.find(volumeRef)
		if err != nil {
			return nil, err
		}
		es = []*entry{e}
	}
	ss := []Snapshot{}
	for _, e := range es {
		ss = append(ss, e.describeSnaps(p.at)...)
	}
	return ss, nil
}

// findSnapshot returns the snapshot with this ID, name, or VOLUME@NAME.
func (p *plane) findSnapshot(ref string) (*entry, *snap, error) {
	es, label := p.sorted(), ref
	if vol, rest, ok := strings.Cut(ref, "@"); ok {
		e, err := p.find(vol)
		if err != nil {
			return nil, nil, err
		}
		es, label = []*entry{e}, rest
	}
	var (
		foundIn []*entry
		found   []*snap
		in      []string
	)
	for _, e := range es {
		e.mu.RLock()
		for _, sn := range e.snaps {
			if sn.id.String() == label || sn.name != "" && sn.name == label {
				foundIn, found, in = append(foundIn, e), append(found, sn), append(in, e.spec.Name+"@"+label)
			}
		}
		e.mu.RUnlock()
	}
	switch len(found) {
	case 0:
		return nil, nil, refuse(CodeNotFound, "no snapshot has the name or ID %q: cairn snapshot list shows those there are", clip(ref))
	case 1:
		return foundIn[0], found[0], nil
	default:
		return nil, nil, refuse(CodeConflict, "%d snapshots are named %s: say which, as %s, or give the ID", len(found), clip(ref), enumerate(in))
	}
}

func (p *plane) showSnapshot(ref string) (Snapshot, error) {
	e, sn, err := p.findSnapshot(ref)
	if err != nil {
		return Snapshot{}, err
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.snaps[sn.id] == nil {
		return Snapshot{}, refuse(CodeNotFound, "snapshot %s has been deleted", clip(ref))
	}
	return e.describeSnap(sn, p.at), nil
}

// changeSnapshot locks the volume of a snapshot for a change.
func (p *plane) changeSnapshot(ctx context.Context, ref string) (*entry, *volume.Volume, *snap, func(), error) {
	e, sn, err := p.findSnapshot(ref)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	if err = e.lock(ctx); err != nil {
		return nil, nil, nil, nil, err
	}
	v, err := e.live()
	if err == nil {
		e.mu.RLock()
		if e.snaps[sn.id] != sn {
			err = refuse(CodeNotFound, "snapshot %s has been deleted or its volume reopened", clip(ref))
		}
		e.mu.RUnlock()
	}
	if err != nil {
		e.unlock()
		return nil, nil, nil, nil, err
	}
	return e, v, sn, e.unlock, nil
}

// deleteSnapshot deletes a snapshot that nobody reads. One that is still being
// made is waited for.
func (p *plane) deleteSnapshot(ctx context.Context, ref string) error {
	if err := p.await(ctx, ref); err != nil {
		return err
	}
	e, v, sn, unlock, err := p.changeSnapshot(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	what := fmt.Sprintf("snapshot %s of volume %s", sn.label(), e.title())
	if err = sn.access.empty(ctx, what+" is being deleted", what); err != nil {
		return err
	}
	err = v.DeleteSnapshot(sn.id)
	e.refresh(v)
	if err != nil {
		if _, ok := v.Snapshot(sn.id); ok {
			sn.access.reopen()
			return err
		}
		// It is gone for whoever asks, so its socket goes too.
		return errors.Join(err, e.forget(sn))
	}
	return e.forget(sn)
}

// releaseSnapshot lets guests overwrite what lies before an offset of a temporary
// snapshot without saving it. It waits for nobody who changes the volume, so that it
// does not hold up, nor is held up by, the end of the backup that asks for it.
func (p *plane) releaseSnapshot(ref string, before int64) error {
	_, sn, err := p.findSnapshot(ref)
	if err != nil {
		return err
	}
	return sn.s.Release(before)
}

// forget takes a deleted snapshot's door away.
func (e *entry) forget(sn *snap) error {
	e.mu.Lock()
	delete(e.snaps, sn.id)
	e.mu.Unlock()
	if sn.door == nil {
		return nil
	}
	if err := sn.door.stop(); err != nil {
		return fmt.Errorf("remove socket %s of a deleted snapshot: %w", filepath.Base(sn.door.path), err)
	}
	return nil
}

// revertVolume makes a volume's content that of a snapshot, while nobody
// writes.
func (p *plane) revertVolume(ctx context.Context, ref string) error {
	e, v, sn, unlock, err := p.changeSnapshot(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	title := e.title()
	u, err := e.access.closeWrite(ctx, fmt.Sprintf("volume %s is being reverted to snapshot %s: connect again when that is done", title, sn.label()))
	if err != nil {
		return err
	}
	if u.writers > 0 {
		return refuse(CodeBusy, "volume %s is in use by %s: stop that before reverting the volume", title, u.holder)
	}
	defer e.access.reopen()
	defer e.refresh(v)
	return v.Revert(ctx, sn.id)
}
