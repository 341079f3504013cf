package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// Backups returns those of a project, or all, without their metadata.
func (b *blockStorage) Backups(ctx context.Context, project string) ([]cinderapi.Backup, error) {
	all, err := b.cat.BackupsListed(ctx, project)
	if err != nil {
		return nil, err
	}
	parents, err := b.cat.Parents(ctx)
	if err != nil {
		return nil, err
	}
	progress, err := b.progress(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]cinderapi.Backup, len(all))
	for i, x := range all {
		out[i] = b.shownBackup(x, parents, progress)
	}
	return out, nil
}

// BackupMetadata returns those of these backups, with how far they are.
func (b *blockStorage) BackupMetadata(ctx context.Context, ids []string) (map[string]map[string]string, error) {
	got, err := b.cat.BackupMetadata(ctx, ids)
	if err != nil {
		return nil, err
	}
	progress, err := b.progress(ctx)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if percent, ok := progress[id]; ok {
			got[id] = withProgress(got[id], percent)
		}
	}
	return got, nil
}

// Backup returns one by its ID.
func (b *blockStorage) Backup(ctx context.Context, id string) (cinderapi.Backup, error) {
	x, err := b.backupOf(ctx, id)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	parents, err := b.cat.Parents(ctx)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	progress, err := b.progress(ctx)
	return b.shownBackup(x, parents, progress), err
}

func (b *blockStorage) backupOf(ctx context.Context, id string) (Backup, error) {
	x, err := b.cat.Backup(ctx, id)
	return x, notThere(err, "Backup", id)
}

// progress is how far backups and restores have come in percent, by backup. Those of other
// hosts are as of their last beat.
func (b *blockStorage) progress(ctx context.Context) (map[string]int64, error) {
	var theirs []Job
	if b.cat.Shared() {
		var err error
		if theirs, err = b.cat.JobsUnderway(ctx); err != nil {
			return nil, err
		}
	}
	out := map[string]int64{}
	add := func(j Job) bool {
		if j.State == catalog.Running && j.Progress.Total > 0 {
			out[j.Backup] = min(99, j.Progress.Done*100/j.Progress.Total)
		}
		return false
	}
	for _, j := range theirs {
		add(j)
	}
	b.jobs.using(add)
	return out, nil
}

// progressKey is under which key a backup's metadata show how far it is. It is shown
// only, and never kept: a client may send back what it was shown.
const progressKey = "cairn:progress"

func withoutProgress(m map[string]string) map[string]string {
	if _, ok := m[progressKey]; !ok {
		return m
	}
	m = maps.Clone(m)
	delete(m, progressKey)
	return m
}

func withProgress(m map[string]string, percent int64) map[string]string {
	if m = maps.Clone(m); m == nil {
		m = map[string]string{}
	}
	m[progressKey] = fmt.Sprintf("%d%%", percent)
	return m
}

// packBytes is about what one object of a store holds.
const packBytes = 16 << 20

// shownStatus is the state of a backup as the API has it.
func shownStatus(x Backup) string {
	switch {
	case x.Unwanted: // also between the end of its job and the deletion
		return string(catalog.Deleting)
	case x.Shown != "" && x.Status == catalog.Available:
		return string(x.Shown)
	}
	return string(x.Status)
}

func (b *blockStorage) shownBackup(x Backup, parents map[string]bool, progress map[string]int64) cinderapi.Backup {
	out := cinderapi.Backup{
		ID: x.ID, Project: x.Project, User: x.User, Name: x.Name, Description: x.Description, Status: shownStatus(x), FailReason: withoutPlaces(x.FailReason),
		VolumeID: x.VolumeID, SnapshotID: x.SnapshotID, Container: orElse(x.Container, backend), Size: gib(x.Size), Objects: (x.BytesShards + packBytes - 1) / packBytes,
		Incremental: x.Incremental, Dependent: parents[x.ID], Metadata: x.Metadata, Host: orElse(x.Host, b.host), Created: x.Created, Updated: x.Updated, DataTime: x.DataTime,
	}
	if out.DataTime.IsZero() {
		out.DataTime = x.Created
	}
	if percent, ok := progress[x.ID]; ok {
		out.Metadata = withProgress(x.Metadata, percent)
	}
	return out
}

// CreateBackup begins a backup.
func (b *blockStorage) CreateBackup(ctx context.Context, by Caller, req cinderapi.NewBackup) (cinderapi.Backup, error) {
	if b.closed() != nil {
		return cinderapi.Backup{}, notOpen()
	}
	vol, err := b.planeVolume(ctx, req.VolumeID)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	now := b.underway()
	if req.SnapshotID == "" {
		switch status := now.status(vol, notesOf(vol)); {
		case status == "in-use" && !req.Force:
			return cinderapi.Backup{}, cinderapi.Invalid("Invalid volume: Backing up an in-use volume must use the force flag.")
		case status != "available" && status != "in-use":
			return cinderapi.Backup{}, cinderapi.Invalid("Invalid volume: Volume to be backed up must be available or in-use, but the current status is %q.", status)
		}
	} else {
		x, _, serr := b.planeSnapshot(ctx, req.SnapshotID)
		if serr != nil {
			return cinderapi.Backup{}, serr
		}
		if x.VolumeID != vol.ID {
			return cinderapi.Backup{}, cinderapi.Invalid("Invalid snapshot: Snapshot %s is not of volume %s.", x.ID, vol.ID)
		}
		if status := now.snapshot(x, notesOf(vol)).Status; status != "available" {
			return cinderapi.Backup{}, cinderapi.Invalid("Invalid snapshot: Snapshot to be backed up must be available, but the current status is %q.", status)
		}
		req.SnapshotID = x.ID
	}
	asked := newBackup{
		CreateBackup: CreateBackup{
			Volume: vol.ID, Snapshot: req.SnapshotID, Name: req.Name, Description: req.Description, Incremental: req.Incremental, Force: req.Force,
		},
		project: by.ProjectID, user: by.UserID, container: req.Container, metadata: withoutProgress(req.Metadata), limits: defaultLimits,
	}
	if _, perr := b.chooseParent(ctx, vol, Snapshot{}, asked); errors.Is(perr, ErrConflict) {
		return cinderapi.Backup{}, cinderapi.Invalid("Invalid backup: No backups available to do an incremental backup.")
	}
	j, err := b.submitBackup(ctx, asked)
	if err != nil {
		return cinderapi.Backup{}, fault(err, "Invalid backup: ")
	}
	return b.Backup(ctx, j.Backup)
}

// UpdateBackup changes a backup's texts.
func (b *blockStorage) UpdateBackup(ctx context.Context, id string, u cinderapi.Update) (cinderapi.Backup, error) {
	x, err := b.backupOf(ctx, id)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	if u.Metadata != nil {
		x.Metadata = withoutProgress(*u.Metadata)
		u.Metadata = &x.Metadata
		if err := fitNotes(x); err != nil {
			return cinderapi.Backup{}, fault(err, "Invalid input received: ")
		}
	}
	if err := b.cat.DescribeBackup(ctx, id, u.Name, u.Description, u.Metadata, time.Now().UTC()); err != nil {
		return cinderapi.Backup{}, notThere(err, "Backup", id)
	}
	return b.Backup(ctx, id)
}
