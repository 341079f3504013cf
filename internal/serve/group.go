package serve

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/volume"
)

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
	ids, err := req.snapshotIDs()
	if err != nil {
		return nil, err
	}
	release, err := p.reserve(ids)
	if err != nil {
		return nil, err
	}
	defer release()
	unlock, err := lockAll(ctx, g.entries)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for i := range g.entries {
		if err = g.prepare(ctx, req, i, ids[i]); err != nil {
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
		e.mu.Lock()
		e.snaps[sn.id] = sn
		answer[i] = e.describeSnap(sn, p.at)
		e.mu.Unlock()
		sn.door.start(ctx, p.snapshotExport(e, sn))
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
	case len(r.IDs) != 0 && len(r.IDs) != len(r.Volumes):
		return refuse(CodeInvalid, "there are %d IDs of snapshots for %d volumes: give one for each, or none", len(r.IDs), len(r.Volumes))
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
func (g *group) prepare(ctx context.Context, req CreateSnapshots, i int, id uuid.UUID) error {
	e := g.entries[i]
	v, err := e.live()
	if err != nil {
		return err
	}
	title := e.title()
	o := volume.SnapshotOptions{ID: id, Name: req.Name, Temporary: req.Temporary, Fresh: req.Fresh}
	if len(req.Checkpoints) > 0 {
		o.Checkpoint = req.Checkpoints[i]
	}
	e.mu.RLock()
	n, taken := len(e.snaps), false
	for _, sn := range e.snaps {
		taken = taken || req.Name != "" && sn.name == req.Name
	}
	e.mu.RUnlock()
	switch {
	case taken:
		return refuse(CodeConflict, "volume %s has a snapshot named %s already: choose another name", title, req.Name)
	case n >= maxSnapshots:
		return refuse(CodeConflict, "volume %s has %d snapshots, and that is the limit: delete some", title, n)
	}
	if err = roomFor(title, v.Checkpoints(), o.Checkpoint); err != nil {
		return err
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
