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

// Backups returns those of a project, or all.
func (b *blockStorage) Backups(ctx context.Context, project string) ([]cinderapi.Backup, error) {
	var all []Backup
	var err error
	if project == "" {
		all, err = b.cat.Backups(ctx)
	} else {
		all, err = b.cat.BackupsOfProject(ctx, project)
	}
	if err != nil {
		return nil, err
	}
	parents, err := b.cat.Parents(ctx)
	if err != nil {
		return nil, err
	}
	progress := b.progress()
	out := make([]cinderapi.Backup, len(all))
	for i, x := range all {
		out[i] = b.shownBackup(x, parents, progress)
	}
	return out, nil
}

// Backup returns one by its ID.
func (b *blockStorage) Backup(ctx context.Context, id string) (cinderapi.Backup, error) {
	x, err := b.backupOf(ctx, id)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	parents, err := b.cat.Parents(ctx)
	return b.shownBackup(x, parents, b.progress()), err
}

func (b *blockStorage) backupOf(ctx context.Context, id string) (Backup, error) {
	x, err := b.cat.Backup(ctx, id)
	return x, notThere(err, "Backup", id)
}

// progress is how far backups and restores have come in percent, by backup.
func (b *blockStorage) progress() map[string]int64 {
	out := map[string]int64{}
	b.jobs.using(func(j Job) bool {
		if j.State == catalog.Running && j.Progress.Total > 0 {
			out[j.Backup] = min(99, j.Progress.Done*100/j.Progress.Total)
		}
		return false
	})
	return out
}

// progressKey is under which key a backup's metadata show how far it is.
const progressKey = "cairn:progress"

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
		ID: x.ID, Project: x.Project, User: x.User, Name: x.Name, Description: x.Description, Status: shownStatus(x), FailReason: x.FailReason,
		VolumeID: x.VolumeID, SnapshotID: x.SnapshotID, Container: orElse(x.Container, backend), Size: gib(x.Size), Objects: (x.BytesShards + packBytes - 1) / packBytes,
		Incremental: x.Incremental, Dependent: parents[x.ID], Metadata: x.Metadata, Host: orElse(x.Host, b.host), Created: x.Created, Updated: x.Updated, DataTime: x.DataTime,
	}
	if out.DataTime.IsZero() {
		out.DataTime = x.Created
	}
	if percent, ok := progress[x.ID]; ok {
		out.Metadata = maps.Clone(x.Metadata)
		if out.Metadata == nil {
			out.Metadata = map[string]string{}
		}
		out.Metadata[progressKey] = fmt.Sprintf("%d%%", percent)
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
		project: by.ProjectID, user: by.UserID, container: req.Container, metadata: req.Metadata, limits: defaultLimits,
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
		x.Metadata = *u.Metadata
		if err := fitNotes(x); err != nil {
			return cinderapi.Backup{}, fault(err, "Invalid input received: ")
		}
	}
	if err := b.cat.DescribeBackup(ctx, id, u.Name, u.Description, u.Metadata, time.Now().UTC()); err != nil {
		return cinderapi.Backup{}, notThere(err, "Backup", id)
	}
	return b.Backup(ctx, id)
}

// DeleteBackup deletes a backup. With force one that is being made is canceled and
// goes when its job has ended, also when that is behind the next start.
func (b *blockStorage) DeleteBackup(ctx context.Context, id string, force bool) error {
	x, err := b.backupOf(ctx, id)
	if err != nil {
		return err
	}
	if b.closed() != nil {
		return notOpen()
	}
	switch status := shownStatus(x); {
	case status == string(catalog.Creating) && force:
		return b.cancelBackup(ctx, x)
	case status == string(catalog.Deleting) && force:
		return nil // that is what is wanted
	case x.Undecided && force: // it goes once the stores say what became of it
		return notThere(b.cat.UnwantBackup(ctx, x.ID, x.Status), "Backup", id)
	case status != string(catalog.Available) && status != string(catalog.Failed):
		return cinderapi.Invalid("Invalid backup: Backup status must be available or error")
	}
	if b.strict {
		parents, perr := b.cat.Parents(ctx)
		if perr != nil {
			return perr
		}
		if parents[x.ID] {
			return cinderapi.Invalid("Invalid backup: Incremental backups exist for this backup.")
		}
	}
	x, err = b.beginDrop(ctx, x.ID)
	if err == nil && x.Status != catalog.Failed {
		// Its end is waited for a little: stores that are fast need no second look.
		ending, cancel := context.WithTimeout(ctx, deletePatience)
		defer cancel()
		err = b.finishDelete(ending, x.ID)
	}
	if errors.Is(err, catalog.ErrNotFound) || errors.Is(err, ErrNotFound) {
		return nil
	}
	if state, serr := b.cat.Backup(ctx, x.ID); err != nil && serr == nil && state.Status == catalog.Deleting {
		b.wakeTidy() // it is on its way
		return nil
	}
	return fault(err, "Invalid backup: ")
}

// deletePatience is how long a request waits for the stores to delete a backup.
const deletePatience = 2 * time.Second

// cancelBackup ends a backup that is being made, and has it deleted.
func (b *blockStorage) cancelBackup(ctx context.Context, x Backup) error {
	if err := b.cat.UnwantBackup(ctx, x.ID, catalog.Creating); err != nil {
		if errors.Is(err, catalog.ErrNotFound) { // it has just ended
			return b.DeleteBackup(ctx, x.ID, false)
		}
		return err
	}
	b.cancelJobs(ctx, func(j Job) bool { return j.Kind == catalog.BackupJob && j.Backup == x.ID })
	b.wakeTidy()
	return nil
}

// cancelJobs asks jobs to end. One that has ended meanwhile needs no asking.
func (b *blockStorage) cancelJobs(ctx context.Context, match func(Job) bool) {
	var ids []string
	b.jobs.using(func(j Job) bool {
		if match(j) {
			ids = append(ids, j.ID)
		}
		return false
	})
	for _, id := range ids {
		_, _ = b.jobs.cancelJob(ctx, id)
	}
}

// ResetBackup sets what is shown as a backup's state. A backup that is being made, or
// restored from, is canceled; nothing makes one available that is not.
func (b *blockStorage) ResetBackup(ctx context.Context, id, status string) error {
	x, err := b.backupOf(ctx, id)
	if err != nil {
		return err
	}
	switch catalog.Status(status) {
	case x.Status:
		return notThere(b.cat.ShowBackup(ctx, x.ID, ""), "Backup", id)
	case catalog.Available, catalog.Failed:
	default:
		return cinderapi.Invalid("Invalid backup: Cairn knows the state of its backups: only available and error can be set, not %q", status)
	}
	if l, jerr := b.cat.JobsElsewhere(ctx, x.ID); jerr != nil {
		return jerr
	} else if len(l) > 0 {
		return cinderapi.Invalid("Invalid backup: backup %s has a %s job at host %s: reset it there", x.ID, l[0].Kind, l[0].Host)
	}
	switch x.Status {
	case catalog.Restoring:
		b.cancelJobs(ctx, func(j Job) bool { return j.Kind == catalog.RestoreJob && j.Backup == x.ID })
	case catalog.Creating:
		if catalog.Status(status) == catalog.Failed {
			b.cancelJobs(ctx, func(j Job) bool { return j.Kind == catalog.BackupJob && j.Backup == x.ID })
			return nil
		}
		return cinderapi.Invalid("Invalid backup: backup %s is still being made", x.ID)
	case catalog.Available:
	default:
		return cinderapi.Invalid("Invalid backup: backup %s is in the state %s and cannot become %s%s", x.ID, x.Status, status, inBrackets(x.FailReason))
	}
	shown := catalog.Status(status)
	if shown == catalog.Available {
		shown = ""
	}
	return notThere(b.cat.ShowBackup(ctx, x.ID, shown), "Backup", id)
}

// dropUnwanted deletes the backups that somebody canceled, once their jobs have ended.
func (s *server) dropUnwanted(ctx context.Context) error {
	mine, err := s.settles(ctx)
	if err != nil {
		return err
	}
	all, err := s.cat.Backups(ctx)
	for _, x := range all {
		if !mine(x) || !x.Unwanted || x.Status != catalog.Available && x.Status != catalog.Failed || x.Undecided {
			continue
		}
		if _, busy := s.jobs.using(func(j Job) bool { return j.Backup == x.ID }); !busy {
			err = errors.Join(err, s.drop(ctx, x.ID))
		}
	}
	return err
}

// storedElsewhere says whether another record has the same data in the repository, and
// keeps it: one that is being deleted as well would leave it to this one.
func (s *server) storedElsewhere(ctx context.Context, x Backup) (bool, error) {
	l, err := s.cat.BackupsStoredAs(ctx, x.Stored())
	for _, o := range l {
		if o.ID != x.ID && o.Status != catalog.Deleting {
			return true, err
		}
	}
	return false, err
}
