package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/cairnbackup/cairn/internal/volume"
)

// listVolumes shows all volumes, reading nothing that grows with them.
func (p *plane) listVolumes() []Volume {
	vs := []Volume{}
	for _, e := range p.sorted() {
		vs = append(vs, p.describe(e, positions))
	}
	return vs
}

// extendVolume grows a volume, in use or not.
func (p *plane) extendVolume(ctx context.Context, ref string, size int64) (Volume, error) {
	e, v, unlock, err := p.change(ctx, ref)
	if err != nil {
		return Volume{}, err
	}
	defer unlock()
	if now := v.Size(); size <= now {
		return Volume{}, refuse(CodeInvalid, "volume %s has %d bytes, and %d is not more: a volume can only grow", e.title(), now, size)
	}
	if err = checkSize(e.title(), size); err != nil {
		return Volume{}, err
	}
	err = v.Extend(size)
	e.refresh(v)
	if err != nil {
		return Volume{}, err
	}
	return p.describe(e, changes), nil
}

// change locks an open volume for a change.
func (p *plane) change(ctx context.Context, ref string) (*entry, *volume.Volume, func(), error) {
	e, err := p.find(ref)
	if err != nil {
		return nil, nil, nil, err
	}
	if err = e.lock(ctx); err != nil {
		return nil, nil, nil, err
	}
	v, err := e.live()
	if err != nil {
		e.unlock()
		return nil, nil, nil, err
	}
	return e, v, e.unlock, nil
}

// reopenVolume closes a volume, if it is open, and opens it again.
func (p *plane) reopenVolume(ctx context.Context, ref string) (Volume, error) {
	e, err := p.find(ref)
	if err != nil {
		return Volume{}, err
	}
	if err := e.lock(ctx); err != nil {
		return Volume{}, err
	}
	defer e.unlock()
	title := e.title()
	e.mu.RLock()
	gone, snaps := e.gone, make([]*snap, 0, len(e.snaps))
	for _, sn := range e.snaps {
		snaps = append(snaps, sn)
	}
	e.mu.RUnlock()
	if gone {
		return Volume{}, refuse(CodeNotFound, "volume %s has been deleted", title)
	}
	why := fmt.Sprintf("volume %s is being reopened: connect again in a moment", title)
	if err := e.access.empty(ctx, why, "volume "+title); err != nil {
		return Volume{}, err
	}
	defer e.access.reopen()
	for _, sn := range snaps {
		if err := sn.access.empty(ctx, why, fmt.Sprintf("snapshot %s of volume %s", sn.label(), title)); err != nil {
			return Volume{}, err
		}
		// Its entry is made anew, but if anything below fails it must not
		// stay shut.
		defer sn.access.reopen()
	}
	if err := e.shutDown(); err != nil {
		// A volume that had failed cannot close well.
		p.log.LogAttrs(ctx, slog.LevelWarn, "volume closed with an error", slog.String("volume", title), slog.Any("error", err))
	}
	p.open(ctx, e)
	if _, err := e.live(); err != nil {
		return Volume{}, err
	}
	return p.describe(e, changes), nil
}

// deleteVolume deletes a volume that nobody uses. One that is still being made
// is waited for.
func (p *plane) deleteVolume(ctx context.Context, ref string) error {
	e, err := p.find(ref)
	if errors.Is(err, ErrNotFound) {
		p.create.Lock()
		e, err = p.find(ref)
		p.create.Unlock()
	}
	if err != nil {
		return err
	}
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	title := e.title()
	if err := e.deletable(title); err != nil {
		return err
	}
	if err := e.access.empty(ctx, "volume "+title+" is being deleted", "volume "+title); err != nil {
		return err
	}
	if err := e.shutDown(); err != nil {
		// Its state was to be saved, and is about to go.
		p.log.LogAttrs(ctx, slog.LevelWarn, "deleted volume closed with an error", slog.String("volume", title), slog.Any("error", err))
	}
	if err := volume.Destroy(p.options(), e.dir); err != nil {
		if _, statErr := p.fs.Stat(e.dir); statErr == nil { // nothing happened yet
			p.open(ctx, e)
			e.access.reopen()
			return fmt.Errorf("delete volume %s: %w", title, err)
		}
		p.log.LogAttrs(ctx, slog.LevelWarn, "deleted volume not wholly removed: the next start will", slog.String("volume", title), slog.Any("error", err))
	}
	e.mu.Lock()
	e.gone = true
	e.mu.Unlock()
	p.mu.Lock()
	delete(p.entries, e.id)
	p.mu.Unlock()
	return nil
}

// deletable refuses what must not be deleted whoever uses it.
func (e *entry) deletable(title string) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	switch {
	case e.gone:
		return refuse(CodeNotFound, "volume %s has been deleted", title)
	case e.vol == nil && e.spec.Managed:
		return refuse(CodeConflict, "volume %s cannot be opened, because %v, so its data in %s are not deleted: mend it, or stop cairn serve and move the folder away", title, e.err, e.dir)
	case e.vol == nil && e.spec.Name == "":
		return refuse(CodeConflict, "volume %s has no readable record, so nothing in %s is deleted: mend it, or stop cairn serve and move the folder away", title, e.dir)
	case len(e.snaps) > 0:
		var names []string
		for _, sn := range e.snaps {
			names = append(names, sn.label())
		}
		slices.Sort(names)
		if len(names) == 1 {
			return refuse(CodeConflict, "volume %s still has snapshot %s: delete that first", title, names[0])
		}
		return refuse(CodeConflict, "volume %s still has %d snapshots: delete %s first", title, len(names), enumerate(names))
	}
	return nil
}

// enumerate joins names for a sentence.
func enumerate(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
