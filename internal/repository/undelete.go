package repository

import (
	"context"
	"errors"
	"fmt"
)

// Undelete takes a backup out of the trash, by its ID or, if the trash has none,
// its name: a session that reads nothing commits a new root record of the same
// backup, which reaches what the old one did. It races with a prune as any writer
// does; ErrNotFound when the trash does not have it, or a prune is removing it for
// good; ErrPruning while a prune is at work on packs of it, which it may outlive.
func (r *Repository) Undelete(ctx context.Context, ref string) (Backup, error) {
	old, err := r.inTrash(ctx, ref)
	if err != nil {
		return Backup{}, err
	}
	rt, err := r.renew(ctx, old, func(*Root) {})
	if err != nil {
		return Backup{}, fmt.Errorf("undelete backup %s: %w", old.rec.BackupID, err)
	}
	return rt.backup(Available), nil
}

// renew commits a new root record that reaches what an old one does, by a session
// that reads nothing; change says in what else they differ. It returns the old one
// with the new session. ErrNotFound and ErrPruning as of Undelete.
func (r *Repository) renew(ctx context.Context, old *root, change func(*Root)) (*root, error) {
	s, err := r.Begin(ctx, SessionOptions{Project: old.rec.Project, VolumeID: old.rec.VolumeID, Volume: old.rec.Volume})
	if err != nil {
		return nil, err
	}
	rt, err := s.revive(ctx, old.name)
	if err != nil {
		return nil, errors.Join(err, s.Abort(ctx))
	}
	next := Root{
		BackupID: rt.rec.BackupID, Name: rt.rec.Name, Description: rt.rec.Description, Created: rt.rec.Created,
		Geometry: rt.geometry(), Top: rt.top, Stats: rt.rec.Stats, keep: retention{rt.rec.RetainUntil, rt.rec.Retained},
		Attributes: rt.rec.Attributes,
	}
	change(&next)
	if _, err = s.Commit(ctx, next); err != nil {
		return nil, err
	}
	rt.rec.Session = s.id
	return rt, nil
}

// inTrash finds a deleted backup.
func (r *Repository) inTrash(ctx context.Context, ref string) (*root, error) {
	all, complete, err := r.survey(ctx)
	if err != nil {
		return nil, err
	}
	var named []*root
	for _, st := range all {
		if st.trash != nil { // an earlier attempt came to nothing
			st = standing{root: st.trash, state: Deleted}
		}
		switch {
		case st.root.rec.Pin != nil:
		case st.root.rec.BackupID == ref && st.state != Deleted:
			return nil, fmt.Errorf("backup %s is not deleted: %w", ref, ErrInvalid)
		case st.root.rec.BackupID == ref:
			return st.root, nil
		case st.root.rec.Name == ref && ref != "" && st.state == Deleted:
			named = append(named, st.root)
		}
	}
	switch {
	case len(named) == 1:
		return named[0], nil
	case len(named) > 1:
		return nil, fmt.Errorf("%d backups in the trash are called %q: name one by its ID: %w", len(named), ref, ErrAmbiguous)
	case !complete:
		return nil, fmt.Errorf("backup %q is not in the trash of the stores that answer, and may be on the others: %w", ref, ErrTooFewStores)
	default:
		return nil, fmt.Errorf("backup %q is not in the trash: %w", ref, ErrNotFound)
	}
}

// revive is W3 of an undeletion: the root record is read afresh, behind W2.
func (s *Session) revive(ctx context.Context, name string) (*root, error) {
	names, err := s.r.union(ctx, name)
	if err != nil {
		return nil, err
	}
	rt, err := s.r.readRoot(ctx, names[name], name)
	if err != nil {
		session, _ := rootSession(name)
		if purged, markErr := s.r.isMarked(ctx, purgedName(session)); markErr == nil && purged {
			return nil, errRemoved
		}
		return nil, err
	}
	s.parentID = rt.rec.Parent
	_, err = s.reuse(ctx, rt)
	return rt, err
}
