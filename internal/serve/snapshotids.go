package serve

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
)

// snapshotIDs reads the IDs that the snapshots of a request are to have, one for
// each volume, or draws them.
func (r *CreateSnapshots) snapshotIDs() ([]uuid.UUID, error) {
	ids := make([]uuid.UUID, len(r.Volumes))
	seen := make(map[uuid.UUID]bool, len(ids))
	for i := range ids {
		asked := ""
		if len(r.IDs) > 0 {
			if asked = r.IDs[i]; asked == "" {
				return nil, refuse(CodeInvalid, "snapshot %d of the request has no ID: give each one, or none", i+1)
			}
		}
		var err error
		if ids[i], err = newID("snapshot", asked); err != nil {
			return nil, err
		}
		if seen[ids[i]] {
			return nil, refuse(CodeInvalid, "the ID %s is given to two snapshots", ids[i])
		}
		seen[ids[i]] = true
	}
	return ids, nil
}

// reserve keeps the IDs of snapshots that are about to be made from others, until
// release is called. Whoever wants to delete one of them can wait for that.
func (p *plane) reserve(ids []uuid.UUID) (release func(), err error) {
	p.mu.Lock()
	for _, id := range ids {
		if p.making[id] != nil {
			p.mu.Unlock()
			return nil, refuse(CodeConflict, "a snapshot with the ID %s is being made already: leave the IDs out, and they are drawn", id)
		}
	}
	done := make(chan struct{})
	for _, id := range ids {
		p.making[id] = done
	}
	p.mu.Unlock()
	release = func() {
		p.mu.Lock()
		for _, id := range ids {
			delete(p.making, id)
		}
		p.mu.Unlock()
		close(done)
	}
	for _, id := range ids {
		if e, _, findErr := p.findSnapshot(id.String()); !errors.Is(findErr, ErrNotFound) {
			release()
			if findErr != nil {
				return nil, findErr
			}
			return nil, refuse(CodeConflict, "volume %s has a snapshot with the ID %s already: leave the IDs out, and they are drawn", e.title(), id)
		}
	}
	return release, nil
}

// await waits while the snapshot with the ID in ref is being made.
func (p *plane) await(ctx context.Context, ref string) error {
	id, ok := parseID(ref[strings.IndexByte(ref, '@')+1:])
	if !ok {
		return nil
	}
	p.mu.RLock()
	done := p.making[id]
	p.mu.RUnlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait while snapshot %s is made: %w", id, context.Cause(ctx))
	}
}
