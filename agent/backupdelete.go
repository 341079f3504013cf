package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
)

// deleteBackup deletes a backup, if nobody uses it.
func (s *server) deleteBackup(ctx context.Context, r request) (any, error) {
	return nil, s.drop(ctx, r.ref)
}

func (s *server) drop(ctx context.Context, ref string) error {
	b, err := s.beginDrop(ctx, ref)
	if err != nil || b.Status == catalog.Failed {
		return err
	}
	return s.finishDelete(ctx, b.ID)
}

// beginDrop decides that a backup is deleted, which [server.finishDelete] does; one that
// failed is gone at once. No store is asked: whoever else decides does not wait for one.
func (s *server) beginDrop(ctx context.Context, ref string) (Backup, error) {
	s.deciding.Lock()
	defer s.deciding.Unlock()
	b, err := s.findBackup(ctx, ref)
	if err != nil {
		return b, err
	}
	if err := s.unused(ctx, b); err != nil {
		return b, err
	}
	switch b.Status {
	case catalog.Failed:
		// It never was in the repository.
		s.tell(ctx, eventDeleteStart, b, nil)
		return b, s.forget(ctx, b)
	case catalog.Available:
		s.tell(ctx, eventDeleteStart, b, nil)
		return b, s.cat.SetBackupStatus(ctx, b.ID, catalog.Available, catalog.Deleting)
	case catalog.Deleting:
		return b, nil
	default:
		return b, refuse(CodeBusy, "backup %s is %s: wait until that has ended", b.ID, b.Status)
	}
}

// finishDelete puts the tombstone and forgets the record of a backup that is being
// deleted. A failure leaves it so, and the deletion is tried again now and then. They go
// one after the other, and nothing else waits for them.
func (s *server) finishDelete(ctx context.Context, id string) error {
	unlock, err := s.removing.lock(ctx, "")
	if err != nil {
		return fmt.Errorf("backup %s is not deleted yet, which will be tried again: %w", id, err)
	}
	defer unlock()
	b, err := s.cat.Backup(ctx, id)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil // somebody else was faster
	}
	if err != nil || b.Status != catalog.Deleting {
		return err
	}
	shared, err := s.storedElsewhere(ctx, b)
	if err != nil {
		return err
	}
	if shared {
		return s.forget(ctx, b) // the data stay for the other record
	}
	err = s.repo.Delete(ctx, b.Stored())
	if errors.Is(err, repository.ErrRetained) {
		// The catalog did not know.
		return errors.Join(refuse(CodeConflict, "%v", err), s.cat.SetBackupStatus(ctx, b.ID, catalog.Deleting, catalog.Available))
	}
	if err != nil && !errors.Is(err, repository.ErrNotFound) {
		return fmt.Errorf("backup %s is not deleted yet, which will be tried again: %w", b.ID, err)
	}
	err = s.forget(ctx, b)
	if errors.Is(err, catalog.ErrNotFound) {
		err = s.notDeleted(ctx, b)
	}
	return err
}

// notDeleted is for a backup that is being deleted no more when the stores have done it, as
// this host was away for so long that another finished it: whoever took the backup out of
// the trash since has it back.
func (s *server) notDeleted(ctx context.Context, b Backup) error {
	now, err := s.cat.Backup(ctx, b.ID)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	if err != nil || now.Status != catalog.Available && now.Status != catalog.Restoring {
		return err
	}
	s.log.LogAttrs(ctx, slog.LevelWarn, "a backup was undeleted while this host was deleting it", slog.String("backup", b.ID))
	if _, err = s.repo.Undelete(ctx, now.Stored()); errors.Is(err, repository.ErrInvalid) {
		return nil // it is not deleted
	}
	return err
}

// forget removes the record of a backup that is no more.
func (s *server) forget(ctx context.Context, b Backup) error {
	if err := s.cat.RemoveBackupIn(ctx, b.ID, b.Status); err != nil {
		return err
	}
	s.tell(ctx, eventDeleteEnd, b, nil)
	s.wakeTidy()
	return nil
}

// unused refuses a backup that somebody uses. s.deciding is held.
func (s *server) unused(ctx context.Context, b Backup) error {
	if how, ok := s.exports.of(b.ID); ok {
		return refuse(CodeBusy, "backup %s is %s: end that first (\"cairn unexport\" or \"cairn umount\")", b.ID, how)
	}
	if s.claims[b.ID] > 0 {
		return refuse(CodeBusy, "backup %s is about to be restored or exported: wait for that", b.ID)
	}
	if j, ok := s.jobs.using(func(j Job) bool { return j.Backup == b.ID && !j.Left }); ok {
		return refuse(CodeBusy, "backup %s has a %s job (%s): wait for it or cancel it", b.ID, j.Kind, j.ID)
	}
	if err := s.unusedElsewhere(ctx, b); err != nil {
		return err
	}
	if _, ok := s.late.get(b.ID); ok {
		return refuse(CodeBusy, "backup %s has ended, but that could not be recorded yet: see to it that the catalog %s can be written to", b.ID, s.cat.Name())
	}
	if b.RetainUntil.After(time.Now()) {
		return refuse(CodeConflict, "backup %s was made with a retention and cannot be deleted before %s UTC", b.ID, b.RetainUntil.Format(time.DateTime))
	}
	if b.Undecided {
		return refuse(CodeConflict, "backup %s waits for the stores to say whether it was committed: bring them back, then delete it", b.ID)
	}
	return nil
}
