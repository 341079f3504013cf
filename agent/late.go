package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// late are records, by ID, of what has ended and could not be written then: the disk was
// full, or the database away.
type late[T any] struct {
	mu   sync.Mutex
	kept map[string]T
}

func (l *late[T]) keep(id string, x T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == nil {
		l.kept = map[string]T{}
	}
	l.kept[id] = x
}

func (l *late[T]) get(id string) (T, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, ok := l.kept[id]
	return x, ok
}

// write writes them with put and forgets those that it took. Nobody waits for that who
// asks what there is.
func (l *late[T]) write(put func(T) error) error {
	l.mu.Lock()
	kept := maps.Clone(l.kept)
	l.mu.Unlock()
	var errs []error
	for id, x := range kept {
		if err := put(x); err != nil {
			errs = append(errs, err)
			if errors.Is(err, catalog.ErrUnavailable) {
				break // the others would only wait for it as well
			}
			continue
		}
		l.mu.Lock()
		delete(l.kept, id)
		l.mu.Unlock()
	}
	return errors.Join(errs...)
}

// recordLate writes what could not be written when it happened. The jobs go first: their
// ends say what was known then.
func (s *server) recordLate(ctx context.Context) error {
	if err := s.jobs.late.write(func(j Job) error { return s.cat.PutJob(ctx, j) }); err != nil {
		return err
	}
	return s.late.write(func(b Backup) error {
		err := s.cat.PutBackupOf(ctx, b)
		if err != nil && !errors.Is(err, catalog.ErrTaken) { // that is: another host has settled it
			return err
		}
		return s.endAsSettled(ctx, b.ID)
	})
}

// endAsSettled has the job of a backup that is there be one that succeeded: it failed as
// the end could not be recorded.
func (s *server) endAsSettled(ctx context.Context, id string) error {
	if j, ok := s.jobs.using(func(j Job) bool { return j.Kind == catalog.BackupJob && j.Backup == id }); ok {
		return fmt.Errorf("job %s of backup %s has not ended yet", j.ID, id) // its end is what is looked at
	}
	b, err := s.cat.Backup(ctx, id)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return nil // it was deleted since
	case err != nil:
		return err
	case b.Status != catalog.Available && b.Status != catalog.Restoring:
		return nil
	}
	l, err := s.cat.Jobs(ctx, keepJobs)
	if err != nil {
		return err
	}
	for _, j := range l {
		if j.Kind != catalog.BackupJob || j.Backup != id || j.State != catalog.JobFailed {
			continue
		}
		j.State, j.Error, j.Code = catalog.Succeeded, "", ""
		if j.Result, err = json.Marshal(b); err != nil {
			return fmt.Errorf("result of job %s: %w", j.ID, err)
		}
		if err := s.cat.PutJob(ctx, j); err != nil {
			return err
		}
	}
	return nil
}
