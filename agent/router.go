package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
)

// router is the control of all volumes: those of the data plane, and the foreign ones.
// They share one space of names. A call that is about a foreign volume, or a snapshot of
// one, goes to their set, any other to the data plane; lists are those of both, and fail
// if the data plane does not answer, as nobody may take its volumes for gone.
type router struct {
	control // of the data plane
	foreign *source.Set

	naming sync.Mutex // held while a volume is made, so that no name is given twice
}

var _ control = (*router)(nil)

// Volumes returns all volumes, ordered by name.
func (r *router) Volumes(ctx context.Context) ([]Volume, error) {
	l, err := r.control.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	l = append(l, r.foreign.Volumes(ctx)...)
	slices.SortStableFunc(l, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return l, nil
}

// Volume returns one.
func (r *router) Volume(ctx context.Context, ref string) (Volume, error) {
	if r.foreign.Has(ref) {
		return r.foreign.Volume(ctx, ref)
	}
	return r.control.Volume(ctx, ref)
}

// CreateVolume makes a volume of the data plane.
func (r *router) CreateVolume(ctx context.Context, req serve.CreateVolume) (Volume, error) {
	r.naming.Lock()
	defer r.naming.Unlock()
	for _, ref := range []string{req.Name, req.ID} {
		if ref == "" || !r.foreign.Has(ref) {
			continue
		}
		v, err := r.foreign.Volume(ctx, ref)
		if err == nil {
			return Volume{}, refuse(CodeConflict, "%s is a volume of kind %s already: delete it or choose another name", v.Name, v.Kind)
		}
	}
	return r.control.CreateVolume(ctx, req)
}

// create makes a volume of what something else serves.
func (r *router) create(ctx context.Context, x source.Record) (Volume, error) {
	r.naming.Lock()
	defer r.naming.Unlock()
	served, err := r.control.Volumes(ctx)
	if err != nil {
		return Volume{}, err
	}
	for _, v := range served {
		switch {
		case v.Name == x.Name:
			return Volume{}, refuse(CodeConflict, "there is a volume %s already (%s): name this one otherwise", v.Name, v.ID)
		case v.ID == x.ID:
			return Volume{}, refuse(CodeConflict, "volume %s has the ID %s already", v.Name, v.ID)
		case x.URI != "" && v.Socket != "" && v.Socket == source.SocketOf(x.URI):
			return Volume{}, refuse(CodeConflict, "%s is volume %s, which Cairn serves: back that up", x.URI, v.Name)
		}
	}
	return r.foreign.Create(ctx, x)
}

// may refuses what the volume's kind cannot do.
func (r *router) may(ctx context.Context, ref string, a source.Act) error {
	v, err := r.foreign.Volume(ctx, ref)
	if err != nil {
		return err
	}
	return source.Refuse(v, a)
}

// ExtendVolume makes a volume larger.
func (r *router) ExtendVolume(ctx context.Context, ref string, size int64) (Volume, error) {
	if r.foreign.Has(ref) {
		return Volume{}, r.may(ctx, ref, source.Extend)
	}
	return r.control.ExtendVolume(ctx, ref, size)
}

// ReopenVolume opens a volume again.
func (r *router) ReopenVolume(ctx context.Context, ref string) (Volume, error) {
	if r.foreign.Has(ref) {
		return Volume{}, r.may(ctx, ref, source.Reopen)
	}
	return r.control.ReopenVolume(ctx, ref)
}

// SetAttributes replaces what is kept with a volume.
func (r *router) SetAttributes(ctx context.Context, ref string, req serve.SetAttributes) (Volume, error) {
	if r.foreign.Has(ref) {
		return r.foreign.SetAttributes(ctx, ref, req)
	}
	return r.control.SetAttributes(ctx, ref, req)
}

// DeleteVolume deletes a volume; of a foreign one it forgets what it was.
func (r *router) DeleteVolume(ctx context.Context, ref string) error {
	if r.foreign.Has(ref) {
		return r.foreign.Delete(ctx, ref)
	}
	return r.control.DeleteVolume(ctx, ref)
}

// CreateCheckpoint makes a checkpoint for others.
func (r *router) CreateCheckpoint(ctx context.Context, ref, name string) (serve.Checkpoint, error) {
	if r.foreign.Has(ref) {
		return serve.Checkpoint{}, r.may(ctx, ref, source.Mark)
	}
	return r.control.CreateCheckpoint(ctx, ref, name)
}

// DropCheckpoint forgets a checkpoint.
func (r *router) DropCheckpoint(ctx context.Context, ref, name string) error {
	if r.foreign.Has(ref) {
		return r.foreign.DropCheckpoint(ctx, ref, name)
	}
	return r.control.DropCheckpoint(ctx, ref, name)
}

// CreateSnapshots snapshots volumes at one instant.
func (r *router) CreateSnapshots(ctx context.Context, req CreateSnapshots, still source.Still) ([]Snapshot, error) {
	if slices.ContainsFunc(req.Volumes, r.foreign.Has) {
		return r.foreign.CreateSnapshots(ctx, req, still)
	}
	return r.control.CreateSnapshots(ctx, req, still)
}

// VerifySnapshot says whether what was read of one was good.
func (r *router) VerifySnapshot(ctx context.Context, ref string) error {
	if r.foreign.HasSnapshot(ref) {
		return r.foreign.VerifySnapshot(ctx, ref)
	}
	return r.control.VerifySnapshot(ctx, ref)
}

// WatchSnapshot ends one that takes up too much room.
func (r *router) WatchSnapshot(ctx context.Context, ref string) error {
	if r.foreign.HasSnapshot(ref) {
		return r.foreign.WatchSnapshot(ctx, ref)
	}
	return r.control.WatchSnapshot(ctx, ref)
}

// ReleaseSnapshot lets the beginning of one go. Those of foreign volumes are kept whole:
// qemu would let go of a part only by a trim over a writable export, which nobody is given,
// and what any other server exports is no snapshot.
func (r *router) ReleaseSnapshot(ctx context.Context, ref string, before int64) error {
	if r.foreign.HasSnapshot(ref) {
		return &serve.Error{Code: serve.CodeInvalid, Text: fmt.Sprintf("snapshot %s is kept whole until it is deleted", ref)}
	}
	return r.control.ReleaseSnapshot(ctx, ref, before)
}

// Snapshots returns the snapshots of one volume or of all.
func (r *router) Snapshots(ctx context.Context, ref string) ([]Snapshot, error) {
	if ref != "" && r.foreign.Has(ref) {
		return r.foreign.Snapshots(ref)
	}
	l, err := r.control.Snapshots(ctx, ref)
	if err != nil || ref != "" {
		return l, err
	}
	theirs, err := r.foreign.Snapshots("")
	return append(l, theirs...), err
}

// Snapshot returns one.
func (r *router) Snapshot(ctx context.Context, ref string) (Snapshot, error) {
	if r.foreign.HasSnapshot(ref) {
		return r.foreign.Snapshot(ref)
	}
	return r.control.Snapshot(ctx, ref)
}

// AliasCheckpoint adds a checkpoint at a snapshot's position. Foreign volumes have no
// snapshots that stay, and what is made for a backup has its own.
func (r *router) AliasCheckpoint(ctx context.Context, ref, name string) error {
	if x, err := r.foreign.Snapshot(ref); err == nil {
		return r.may(ctx, x.VolumeID, source.Keep)
	}
	return r.control.AliasCheckpoint(ctx, ref, name)
}

// RevertVolume makes a volume's content that of a snapshot.
func (r *router) RevertVolume(ctx context.Context, ref string) error {
	if x, err := r.foreign.Snapshot(ref); err == nil {
		return r.may(ctx, x.VolumeID, source.Revert)
	}
	return r.control.RevertVolume(ctx, ref)
}

// DeleteSnapshot deletes a snapshot.
func (r *router) DeleteSnapshot(ctx context.Context, ref string) error {
	if r.foreign.HasSnapshot(ref) {
		return r.foreign.DeleteSnapshot(ctx, ref)
	}
	return r.control.DeleteSnapshot(ctx, ref)
}
