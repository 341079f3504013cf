package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
	"github.com/cairnbackup/cairn/internal/serve"
)

// Snapshots returns all snapshots but those that backups make for themselves.
func (b *blockStorage) Snapshots(ctx context.Context) ([]cinderapi.Snapshot, error) {
	volumes, err := b.serve.Volumes(ctx)
	if err != nil {
		return nil, fault(err, "")
	}
	notes := make(map[string]volumeNotes, len(volumes))
	for _, v := range volumes {
		notes[v.ID] = notesOf(v)
	}
	all, err := b.serve.Snapshots(ctx, "")
	if err != nil {
		return nil, fault(err, "")
	}
	now := b.underway()
	out := make([]cinderapi.Snapshot, 0, len(all))
	for _, x := range all {
		if !x.Temporary {
			out = append(out, now.snapshot(x, notes[x.VolumeID]))
		}
	}
	return out, nil
}

// Snapshot returns one by its ID.
func (b *blockStorage) Snapshot(ctx context.Context, id string) (cinderapi.Snapshot, error) {
	x, v, err := b.planeSnapshot(ctx, id)
	if err != nil {
		return cinderapi.Snapshot{}, err
	}
	return b.underway().snapshot(x, notesOf(v)), nil
}

func (b *blockStorage) planeSnapshot(ctx context.Context, id string) (Snapshot, Volume, error) {
	if uuid.Validate(id) != nil {
		return Snapshot{}, Volume{}, cinderapi.NotFound("Snapshot", id)
	}
	x, err := b.serve.Snapshot(ctx, id)
	if err == nil && (x.Temporary || x.ID != strings.ToLower(id)) {
		return x, Volume{}, cinderapi.NotFound("Snapshot", id)
	}
	if err != nil {
		return x, Volume{}, notThere(err, "Snapshot", id)
	}
	v, err := b.serve.Volume(ctx, x.VolumeID)
	return x, v, notThere(err, "Snapshot", id)
}

// snapshot is a snapshot as Cinder has it. Its volume's notes say whose it is.
func (w underway) snapshot(x Snapshot, of volumeNotes) cinderapi.Snapshot {
	n := of.Snapshots[x.ID]
	out := cinderapi.Snapshot{
		ID: x.ID, Project: of.Project, User: n.User, Name: x.Name, Description: n.Description, Status: "available",
		VolumeID: x.VolumeID, Size: gib(x.Size), Metadata: n.Metadata, Created: x.Created, Updated: n.Updated,
	}
	if n.Name != nil {
		out.Name = *n.Name
	}
	if x.Status != serve.StatusAvailable {
		out.Status = "error"
	}
	for _, j := range w[x.VolumeID] {
		if j.Kind == catalog.BackupJob && j.Snapshot == x.ID {
			out.Status = "backing-up"
		}
	}
	return out
}

// CreateSnapshot takes a snapshot.
func (b *blockStorage) CreateSnapshot(ctx context.Context, by Caller, req cinderapi.NewSnapshot) (cinderapi.Snapshot, error) {
	v, err := b.planeVolume(ctx, req.VolumeID)
	if err != nil {
		return cinderapi.Snapshot{}, err
	}
	switch status := b.underway().status(v, notesOf(v)); {
	case status == "available", status == "in-use" && req.Force:
	default:
		return cinderapi.Snapshot{}, cinderapi.Invalid("Invalid volume: Volume %s status must be available, but current status is: %s.", v.ID, status)
	}
	var out cinderapi.Snapshot
	x := reservation(catalog.SnapshotKind, notesOf(v).Project, gib(v.Size))
	err = b.reserve(ctx, x, func() (serr error) {
		out, serr = b.takeSnapshot(ctx, by, v, x.ID, req)
		return serr
	})
	return out, err
}

func (b *blockStorage) takeSnapshot(ctx context.Context, by Caller, v Volume, id string, req cinderapi.NewSnapshot) (cinderapi.Snapshot, error) {
	still := b.hub.quiescing(v)
	l, err := b.serve.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{v.ID}, IDs: []string{id}, Force: req.Force, Fresh: b.freshly(ctx, v.ID)}, still.around())
	if err != nil {
		return cinderapi.Snapshot{}, fault(err, "Invalid volume: ")
	}
	x := l[0]
	v, err = b.note(context.WithoutCancel(ctx), v.ID, func(n *volumeNotes) {
		n.noteSnapshot(x.ID, snapshotNotes{User: by.UserID, Name: &req.Name, Description: req.Description, Metadata: req.Metadata, Quiesced: still.done(), Updated: time.Now().UTC()})
	})
	if err != nil { // nobody is told of it, and so it must not stay
		return cinderapi.Snapshot{}, errors.Join(fault(err, "Invalid volume: "), b.serve.DeleteSnapshot(context.WithoutCancel(ctx), x.ID))
	}
	out := underway(nil).snapshot(x, notesOf(v))
	out.Status = "creating" // what every answer to this call says
	return out, nil
}

// UpdateSnapshot changes what is noted of a snapshot.
func (b *blockStorage) UpdateSnapshot(ctx context.Context, id string, u cinderapi.Update) (cinderapi.Snapshot, error) {
	x, v, err := b.planeSnapshot(ctx, id)
	if err != nil {
		return cinderapi.Snapshot{}, err
	}
	v, err = b.note(ctx, v.ID, func(n *volumeNotes) {
		s := n.Snapshots[x.ID]
		if u.Name != nil {
			s.Name = u.Name
		}
		if u.Description != nil {
			s.Description = *u.Description
		}
		if u.Metadata != nil {
			s.Metadata = *u.Metadata
		}
		s.Updated = time.Now().UTC()
		n.noteSnapshot(x.ID, s)
	})
	if err != nil {
		return cinderapi.Snapshot{}, notThere(err, "Snapshot", id)
	}
	return b.underway().snapshot(x, notesOf(v)), nil
}

// ResetSnapshot sets a snapshot's state, which it has already, or cannot have.
func (b *blockStorage) ResetSnapshot(ctx context.Context, id, status string) error {
	x, err := b.Snapshot(ctx, id)
	if err == nil && x.Status != status {
		err = cinderapi.Invalid("Invalid snapshot: Cairn knows the state of its snapshots: snapshot %s is %s and cannot be set to %q", x.ID, x.Status, status)
	}
	return err
}

// DeleteSnapshot deletes a snapshot that no backup reads.
func (b *blockStorage) DeleteSnapshot(ctx context.Context, id string) error {
	x, v, err := b.planeSnapshot(ctx, id)
	if err != nil {
		return err
	}
	if err = b.unreadSnapshot(ctx, x); err != nil {
		return fault(err, "Invalid snapshot: ")
	}
	if err = b.serve.DeleteSnapshot(ctx, x.ID); err != nil {
		return notThere(err, "Snapshot", id)
	}
	// Notes that are left do no harm: no other snapshot will have this ID.
	_, err = b.note(context.WithoutCancel(ctx), v.ID, func(n *volumeNotes) { delete(n.Snapshots, x.ID) })
	return fault(err, "")
}
