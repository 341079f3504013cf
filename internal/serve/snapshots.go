package serve

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

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
		ss = append(ss, e.describeSnaps(p.nbdDir)...)
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
	return e.describeSnap(sn, p.nbdDir), nil
}

// group is what one snapshot request is about, volume by volume.
type group struct {
	entries []*entry
	vols    []*volume.Volume
	opts    []volume.SnapshotOptions
	doors   []*door
}

// createSnapshots makes one snapshot of each volume at one instant, or none.
func (p *plane) createSnapshots(ctx context.Context, req CreateSnapshots) ([]Snapshot, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	var g group
	for _, ref := range req.Volumes {
		e, err := p.find(ref)
		if err != nil {
			return nil, err
		}
		if slices.Contains(g.entries, e) {
			return nil, refuse(CodeInvalid, "volume %s is given twice", e.title())
		}
		g.entries = append(g.entries, e)
	}
	unlock, err := lockAll(ctx, g.entries)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for i := range g.entries {
		if err = g.prepare(ctx, req, i); err != nil {
			return nil, err
		}
	}
	// All sockets are there before any snapshot is: what can fail, fails now.
	for i, e := range g.entries {
		d, listenErr := p.listen(ctx, snapshotExportName(e.title(), snapshotLabel(req.Name, g.opts[i].ID)))
		if listenErr != nil {
			return nil, errors.Join(listenErr, g.stop())
		}
		g.doors = append(g.doors, d)
	}
	ss, err := volume.SnapshotGroup(ctx, g.vols, g.opts)
	for i, e := range g.entries {
		e.refresh(g.vols[i])
	}
	if err != nil {
		return nil, errors.Join(err, g.stop())
	}
	answer := make([]Snapshot, len(ss))
	for i, s := range ss {
		e, sn := g.entries[i], newSnap(s)
		sn.door = g.doors[i]
		sn.door.start(ctx, p.snapshotExport(e, sn))
		e.mu.Lock()
		e.snaps[sn.id] = sn
		answer[i] = e.describeSnap(sn, p.nbdDir)
		e.mu.Unlock()
	}
	return answer, nil
}

// check refuses a request that is wrong whatever volumes there are.
func (r *CreateSnapshots) check() error {
	switch {
	case len(r.Volumes) == 0:
		return refuse(CodeInvalid, "a snapshot needs a volume: name at least one")
	case len(r.Volumes) > maxGroup:
		return refuse(CodeInvalid, "%d volumes cannot be snapshotted at one instant: the limit is %d", len(r.Volumes), maxGroup)
	case len(r.Checkpoints) != 0 && len(r.Checkpoints) != len(r.Volumes):
		return refuse(CodeInvalid, "there are %d checkpoints for %d volumes: give one for each, or none", len(r.Checkpoints), len(r.Volumes))
	case "@"+r.Name == readOnlyDoor:
		return refuse(CodeInvalid, "a snapshot cannot be named %s, which is what a volume's read-only export is called: choose another", r.Name)
	}
	if r.Name != "" {
		if err := checkFreeName("snapshot", r.Name); err != nil {
			return err
		}
	}
	for _, c := range r.Checkpoints {
		if c == "" {
			continue
		}
		if err := checkName("checkpoint", c); err != nil { // a backup's is its ID
			return err
		}
	}
	return nil
}

// lockAll locks several volumes, in the order of their IDs, so that two
// requests cannot wait for each other.
func lockAll(ctx context.Context, es []*entry) (unlock func(), err error) {
	es = slices.SortedFunc(slices.Values(es), func(a, b *entry) int { return strings.Compare(a.id.String(), b.id.String()) })
	for i, e := range es {
		if err := e.lock(ctx); err != nil {
			for _, locked := range es[:i] {
				locked.unlock()
			}
			return nil, err
		}
	}
	return func() {
		for _, e := range es {
			e.unlock()
		}
	}, nil
}

// prepare checks the i-th volume of the group, which is locked, and says what
// its snapshot is.
func (g *group) prepare(ctx context.Context, req CreateSnapshots, i int) error {
	e := g.entries[i]
	v, err := e.live()
	if err != nil {
		return err
	}
	title := e.title()
	o := volume.SnapshotOptions{Name: req.Name, Temporary: req.Temporary}
	if o.ID, err = uuid.NewRandom(); err != nil {
		return fmt.Errorf("draw an ID: %w", err)
	}
	if len(req.Checkpoints) > 0 {
		o.Checkpoint = req.Checkpoints[i]
	}
	e.mu.RLock()
	n, taken := len(e.snaps), false
	for _, sn := range e.snaps {
		taken = taken || req.Name != "" && sn.name == req.Name
	}
	e.mu.RUnlock()
	cs := v.Checkpoints()
	switch {
	case taken:
		return refuse(CodeConflict, "volume %s has a snapshot named %s already: choose another name", title, req.Name)
	case n >= maxSnapshots:
		return refuse(CodeConflict, "volume %s has %d snapshots, and that is the limit: delete some", title, n)
	case len(cs) >= maxCheckpoints:
		return refuse(CodeConflict, "volume %s has %d checkpoints, and that is the limit: delete snapshots, or backups whose checkpoints it keeps", title, len(cs))
	}
	for _, c := range cs {
		if o.Checkpoint != "" && c.Name == o.Checkpoint {
			return refuse(CodeConflict, "volume %s has a checkpoint %s already: drop it, or choose another name", title, o.Checkpoint)
		}
	}
	if !req.Force {
		u, err := e.access.wait(ctx, func(u use) bool { return u.writers == 0 })
		if err != nil {
			return err
		}
		if u.writers > 0 {
			return refuse(CodeBusy, "volume %s is in use by %s: stop that, or use --force for a snapshot such as a power failure would leave", title, u.holder)
		}
	}
	g.vols, g.opts = append(g.vols, v), append(g.opts, o)
	return nil
}

// stop undoes the group's sockets.
func (g *group) stop() error {
	var errs []error
	for _, d := range g.doors {
		errs = append(errs, d.stop())
	}
	return errors.Join(errs...)
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

// deleteSnapshot deletes a snapshot that nobody reads.
func (p *plane) deleteSnapshot(ctx context.Context, ref string) error {
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
