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

// Volumes returns all volumes of the data plane.
func (b *blockStorage) Volumes(ctx context.Context) ([]cinderapi.Volume, error) {
	all, err := b.serve.Volumes(ctx)
	if err != nil {
		return nil, fault(err, "")
	}
	now := b.underway()
	out := make([]cinderapi.Volume, len(all))
	for i, v := range all {
		out[i] = b.shownVolume(v, now)
	}
	return out, nil
}

// Volume returns one by its ID.
func (b *blockStorage) Volume(ctx context.Context, id string) (cinderapi.Volume, error) {
	v, err := b.planeVolume(ctx, id)
	if err != nil {
		return cinderapi.Volume{}, err
	}
	return b.shownVolume(v, b.underway()), nil
}

// planeVolume finds a volume by its ID and by nothing else: names are not the API's.
func (b *blockStorage) planeVolume(ctx context.Context, id string) (Volume, error) {
	if uuid.Validate(id) != nil {
		return Volume{}, cinderapi.NotFound("Volume", id)
	}
	v, err := b.serve.Volume(ctx, id)
	if err == nil && v.ID != strings.ToLower(id) {
		return v, cinderapi.NotFound("Volume", id)
	}
	return v, notThere(err, "Volume", id)
}

// underway are the jobs that have not ended, by the volume that they work on.
type underway map[string][]Job

func (s *server) underway() underway {
	w := underway{}
	s.jobs.pool.using(func(j Job) bool {
		if j.VolumeID != "" && !j.Left {
			w[j.VolumeID] = append(w[j.VolumeID], j)
		}
		return false
	})
	return w
}

// status is the state of a volume as Cinder has it.
func (w underway) status(v Volume, n volumeNotes) string {
	for _, j := range w[v.ID] {
		switch {
		case j.Kind == catalog.RestoreJob:
			return noteRestoring
		case j.Kind == catalog.BackupJob && j.Snapshot == "":
			return "backing-up"
		}
	}
	switch {
	case n.Status != "":
		return n.Status
	case v.Status == serve.StatusError:
		return noteError
	case v.InUse:
		return "in-use"
	default:
		return "available"
	}
}

func (b *blockStorage) shownVolume(v Volume, w underway) cinderapi.Volume {
	n := notesOf(v)
	t, ok := typeOf(n.Type)
	if !ok {
		t.Name = n.Type
	}
	out := cinderapi.Volume{
		ID: v.ID, Project: n.Project, User: n.User, Name: n.name(v), Description: n.Description, Status: w.status(v, n), Size: gib(v.Size),
		Type: t.Name, Encrypted: t.Encrypted, Bootable: n.Bootable, Metadata: n.Metadata, BackupID: n.Backup,
		Host: b.host + "@" + backend + "#" + backend, Created: v.Created, Updated: n.Updated,
	}
	if v.InUse {
		out.Attached = orElse(v.Writer, "a client")
	}
	return out
}

// planeName is what the data plane calls a volume that a project made. Names there are
// the operator's, who tells volumes apart by them: no project can choose one.
func planeName(id string) string { return "volume-" + strings.ReplaceAll(id, "-", "")[:12] }

// CreateVolume makes a volume of the caller's project.
func (b *blockStorage) CreateVolume(ctx context.Context, by Caller, req cinderapi.NewVolume) (cinderapi.Volume, error) {
	if req.SnapshotID != "" || req.SourceID != "" {
		return cinderapi.Volume{}, cinderapi.Invalid("Invalid input received: Cairn does not copy volumes and snapshots: back it up and restore the backup to a new volume")
	}
	if req.BackupID != "" {
		r, err := b.restoreToNew(ctx, by, req.BackupID, req)
		if err != nil {
			return cinderapi.Volume{}, err
		}
		return b.Volume(ctx, r.VolumeID)
	}
	v, err := b.makeVolume(ctx, by, req, volumeNotes{})
	if err != nil {
		return cinderapi.Volume{}, err
	}
	out := b.shownVolume(v, nil)
	out.Status = "creating" // what every answer to this call says
	return out, nil
}

// makeVolume makes a volume with these notes and what the request says.
func (b *blockStorage) makeVolume(ctx context.Context, by Caller, req cinderapi.NewVolume, n volumeNotes) (Volume, error) {
	t, ok := typeOf(req.Type)
	if !ok {
		return Volume{}, cinderapi.NotFound("Volume type", req.Type)
	}
	n.Project, n.User, n.Name, n.Description = by.ProjectID, by.UserID, &req.Name, req.Description
	n.Type, n.Updated = t.Name, time.Now().UTC()
	if req.Metadata != nil {
		n.Metadata = req.Metadata
	}
	data, err := n.encode()
	if err != nil {
		return Volume{}, err
	}
	var v Volume
	x := reservation(catalog.VolumeKind, by.ProjectID, req.Size)
	err = b.reserve(ctx, x, func() (merr error) {
		v, merr = b.serve.CreateVolume(ctx, serve.CreateVolume{ID: x.ID, Name: planeName(x.ID), Size: req.Size << 30, Attributes: data})
		return fault(merr, "Invalid input received: ")
	})
	return v, err
}

// UpdateVolume changes what is noted of a volume.
func (b *blockStorage) UpdateVolume(ctx context.Context, id string, u cinderapi.Update) (cinderapi.Volume, error) {
	return b.noteVolume(ctx, id, func(n *volumeNotes) {
		if u.Name != nil {
			n.Name = u.Name
		}
		if u.Description != nil {
			n.Description = *u.Description
		}
		if u.Metadata != nil {
			n.Metadata = *u.Metadata
		}
		if u.Bootable != nil {
			n.Bootable = *u.Bootable
		}
	})
}

func (b *blockStorage) noteVolume(ctx context.Context, id string, change func(n *volumeNotes)) (cinderapi.Volume, error) {
	if _, err := b.planeVolume(ctx, id); err != nil {
		return cinderapi.Volume{}, err
	}
	v, err := b.note(ctx, id, func(n *volumeNotes) {
		change(n)
		n.Updated = time.Now().UTC()
	})
	if err != nil {
		return cinderapi.Volume{}, notThere(err, "Volume", id)
	}
	return b.shownVolume(v, b.underway()), nil
}

// ExtendVolume makes a volume larger.
func (b *blockStorage) ExtendVolume(ctx context.Context, id string, size int64) error {
	v, err := b.planeVolume(ctx, id)
	if err != nil {
		return err
	}
	if have := gib(v.Size); size <= have {
		return cinderapi.Invalid("Invalid input received: New size for extend must be greater than current size. (current: %d, extended: %d).", have, size)
	}
	if _, err = b.idleVolume(ctx, id, "extend it"); err != nil {
		return fault(err, "Invalid volume: ")
	}
	x := catalog.Volume{ID: v.ID, Kind: catalog.VolumeKind, Project: notesOf(v).Project, Gigabytes: size}
	return b.reserve(ctx, x, func() error {
		_, xerr := b.serve.ExtendVolume(ctx, v.ID, size<<30)
		return fault(xerr, "Invalid volume: ")
	})
}

// ResetVolume sets a volume's state: "available" forgets what was noted, an error is
// noted. What the data plane knows better stays true.
func (b *blockStorage) ResetVolume(ctx context.Context, id, status string) error {
	switch status {
	case "available", "in-use":
		status = ""
	case noteError, noteErrorRestore:
	default:
		return cinderapi.Invalid("Invalid volume: Cairn knows the state of its volumes: only available, error and error_restoring can be set, not %q", status)
	}
	_, err := b.noteVolume(ctx, id, func(n *volumeNotes) { n.Status = status })
	return err
}

// DeleteVolume deletes a volume that nothing hangs on.
func (b *blockStorage) DeleteVolume(ctx context.Context, id string, _ bool) error {
	v, err := b.planeVolume(ctx, id)
	if err != nil {
		return err
	}
	switch status := b.underway().status(v, notesOf(v)); status {
	case "available", noteError, noteErrorRestore:
	default:
		return cinderapi.Invalid("Invalid volume: Volume status must be available or error or error_restoring and it must not be attached or have snapshots, but the current status is %q.", status)
	}
	snaps, err := b.serve.Snapshots(ctx, v.ID)
	if err != nil {
		return fault(err, "")
	}
	for _, x := range snaps {
		if !x.Temporary {
			return cinderapi.Invalid("Invalid volume: Volume status must be available or error or error_restoring and it must not be attached or have snapshots: snapshot %s is there.", x.ID)
		}
	}
	err = b.removeVolume(ctx, v.ID)
	if errors.Is(err, serve.ErrNotFound) {
		return nil
	}
	return fault(err, "Invalid volume: ")
}
