package agent

import (
	"context"
	"errors"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
)

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
		return cinderapi.Invalid("Invalid backup: backup %s is in the state %s and cannot become %s%s", x.ID, x.Status, status, inBrackets(withoutPlaces(x.FailReason)))
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
	all, err := s.cat.BackupsListed(ctx, "")
	for _, x := range all {
		if !mine(x) || !x.Unwanted || x.RetainUntil.After(time.Now()) || x.Status != catalog.Available && x.Status != catalog.Failed || x.Undecided {
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
