package source

import (
	"cmp"
	"context"
	"slices"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/serve"
)

// CreateSnapshots makes the content of one volume readable as it is now, for a backup:
// req has one volume, is temporary, and may have a checkpoint. The answer is as that of
// [serve.Client.CreateSnapshots].
func (s *Set) CreateSnapshots(ctx context.Context, req serve.CreateSnapshots, still Still) ([]serve.Snapshot, error) {
	if len(req.Volumes) != 1 {
		return nil, refuse(serve.CodeInvalid, "volumes that Cairn does not serve cannot be snapshotted together with others: snapshot each alone")
	}
	var made serve.Snapshot
	err := s.work(ctx, req.Volumes[0], func(v *volume, r *Record) (err error) {
		made, err = s.snapshot(ctx, v, r, req, still)
		return err
	})
	if err != nil {
		// The record could not be written: nobody will end what is there.
		s.drop(context.WithoutCancel(ctx), made)
		return nil, err
	}
	return []serve.Snapshot{made}, nil
}

func (s *Set) snapshot(ctx context.Context, v *volume, r *Record, req serve.CreateSnapshots, still Still) (serve.Snapshot, error) {
	d := s.drivers[r.Kind]
	st := d.state(ctx, *r)
	b := beginning{snapshot: uuid.NewString(), still: still}
	if len(req.IDs) == 1 {
		b.snapshot = req.IDs[0]
	}
	if len(req.Checkpoints) == 1 {
		b.checkpoint = req.Checkpoints[0]
	}
	switch {
	case !req.Temporary:
		s.mu.Lock()
		shown := s.shownLocked(v, st)
		s.mu.Unlock()
		return serve.Snapshot{}, Refuse(shown, Keep)
	case st.err != nil:
		return serve.Snapshot{}, refuse(serve.CodeConflict, "volume %s cannot be read: %v", r.Name, st.err)
	case st.writer != "" && !req.Force:
		return serve.Snapshot{}, refuse(serve.CodeBusy, "volume %s is used by %s: force takes it as after a power failure", r.Name, st.writer)
	case len(r.Checkpoints) >= maxCheckpoints:
		return serve.Snapshot{}, refuse(serve.CodeConflict, "volume %s has %d checkpoints, and that is the limit", r.Name, maxCheckpoints)
	case slices.ContainsFunc(r.Checkpoints, func(c Checkpoint) bool { return c.Name == b.checkpoint }):
		return serve.Snapshot{}, refuse(serve.CodeConflict, "volume %s has a checkpoint %q already", r.Name, b.checkpoint)
	}
	if err := s.sweep(ctx, v, *r); err != nil {
		return serve.Snapshot{}, err
	}
	t, err := d.begin(ctx, *r, b)
	if err != nil {
		s.left(v) // perhaps
		return serve.Snapshot{}, err
	}
	r.Size = t.size
	for i := range r.Checkpoints {
		if why, lost := t.lost[r.Checkpoints[i].Name]; lost {
			r.Checkpoints[i].Doubt = why
		}
	}
	if b.checkpoint != "" {
		r.Checkpoints = append(r.Checkpoints, Checkpoint{Name: b.checkpoint, Made: t.at})
	}
	x := serve.Snapshot{
		ID: b.snapshot, Name: req.Name, VolumeID: r.ID, Volume: r.Name, Size: t.size, Created: t.at, Status: serve.StatusAvailable,
		URI: t.uri, Temporary: true, Caveat: t.caveat,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.snaps = append(v.snaps, &x)
	return x, nil
}

// drop ends a snapshot of which nobody was told. What it cannot end, and its checkpoint,
// which is in no record, the next sweep removes.
func (s *Set) drop(ctx context.Context, x serve.Snapshot) {
	if x.ID == "" {
		return
	}
	_ = s.DeleteSnapshot(ctx, x.ID)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, v := s.findLocked(x.VolumeID); v != nil {
		s.leftLocked(v)
	}
}

// Snapshots returns the snapshots of one volume, or of all with "".
func (s *Set) Snapshots(ref string) ([]serve.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, only := s.findLocked(ref)
	if ref != "" && only == nil {
		return nil, noVolume(ref)
	}
	var out []serve.Snapshot
	for _, v := range s.volumes {
		for _, x := range v.snaps {
			if ref == "" || v == only {
				out = append(out, *x)
			}
		}
	}
	slices.SortFunc(out, func(a, b serve.Snapshot) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), a.Created.Compare(b.Created))
	})
	return out, nil
}

// Snapshot returns the snapshot with this ID, name, or VOLUME@NAME.
func (s *Set) Snapshot(ref string) (serve.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, x := s.snapshotLocked(ref); x != nil {
		return *x, nil
	}
	return serve.Snapshot{}, noSnapshot(ref)
}

// VerifySnapshot says whether all that was read of a snapshot was good: an error means that
// it was not, or that nobody can tell.
func (s *Set) VerifySnapshot(ctx context.Context, ref string) error {
	s.mu.Lock()
	v, x := s.snapshotLocked(ref)
	s.mu.Unlock()
	if x == nil {
		return noSnapshot(ref)
	}
	return s.turn(ctx, v, func(_ *volume, r *Record) error { return s.drivers[r.Kind].verify(ctx, *r, x.ID) })
}

// DeleteSnapshot ends a snapshot. If that fails it is gone for callers all the same, and a
// sweep removes what is left.
func (s *Set) DeleteSnapshot(ctx context.Context, ref string) error {
	s.mu.Lock()
	v, x := s.snapshotLocked(ref)
	s.mu.Unlock()
	if x == nil {
		return noSnapshot(ref)
	}
	return s.turn(ctx, v, func(v *volume, r *Record) error {
		err := s.drivers[r.Kind].end(ctx, *r, x.ID)
		s.mu.Lock()
		defer s.mu.Unlock()
		v.snaps = slices.DeleteFunc(v.snaps, func(o *serve.Snapshot) bool { return o == x })
		if err != nil || !v.swept && len(v.snaps) == 0 {
			s.leftLocked(v)
		}
		return err
	})
}

func noSnapshot(ref string) error {
	return refuse(serve.CodeNotFound, "Snapshot %s could not be found: \"cairn snapshot list\" shows what there is.", ref)
}
