package repository

import (
	"context"
	"errors"
	"fmt"
)

// Undelete takes a backup out of the trash: a session that reads nothing commits
// a new root record of the same backup, which reaches what the old one did. It
// races with a prune as any writer does; ErrNotFound when the trash does not
// have it, or a prune is removing it.
func (r *Repository) Undelete(ctx context.Context, id string) error {
	all, complete, err := r.survey(ctx)
	if err != nil {
		return err
	}
	var old *root
	for _, st := range all {
		if st.root.rec.BackupID != id {
			continue
		}
		if st.state != Deleted {
			return fmt.Errorf("backup %s is not deleted: %w", id, ErrInvalid)
		}
		old = st.root
	}
	if old == nil && !complete {
		return fmt.Errorf("backup %s is not in the trash of the stores that answer, and may be on the others: %w", id, ErrTooFewStores)
	}
	if old == nil {
		return fmt.Errorf("backup %s is not in the trash: %w", id, ErrNotFound)
	}
	s, err := r.Begin(ctx, SessionOptions{Project: old.rec.Project, VolumeID: old.rec.VolumeID, Volume: old.rec.Volume})
	if err != nil {
		return fmt.Errorf("undelete backup %s: %w", id, err)
	}
	rt, err := s.revive(ctx, old.name)
	if err != nil {
		return errors.Join(fmt.Errorf("undelete backup %s: %w: %w", id, ErrNotFound, err), s.Abort(ctx))
	}
	_, err = s.Commit(ctx, Root{
		BackupID: rt.rec.BackupID, Name: rt.rec.Name, Description: rt.rec.Description, Created: rt.rec.Created,
		Geometry: rt.geometry(), Top: rt.top, Stats: rt.rec.Stats,
	})
	if err != nil {
		return fmt.Errorf("undelete backup %s: %w", id, err)
	}
	return nil
}

// revive is W3 of an undeletion: the root record is read afresh, behind W2.
func (s *Session) revive(ctx context.Context, name string) (*root, error) {
	names, err := s.r.union(ctx, name)
	if err != nil {
		return nil, err
	}
	rt, err := s.r.readRoot(ctx, names[name], name)
	if err != nil {
		return nil, err
	}
	s.parentID = rt.rec.Parent
	_, err = s.reuse(ctx, rt)
	return rt, err
}
