package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/restore"
	"github.com/cairnbackup/cairn/internal/serve"
)

// createTimeout is how long making a volume may take.
const createTimeout = time.Minute

// createRestore checks a request and queues its job.
func (s *server) createRestore(ctx context.Context, r request) (any, error) {
	var req Restore
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	b, release, err := s.claimBackup(ctx, req.Backup, "restored")
	if err != nil {
		return nil, err
	}
	defer release()
	return s.submitRestore(ctx, req, b)
}

// claimBackup keeps a backup from being deleted until it is released, so that nobody
// else has to wait while what it is to be used for is looked at.
func (s *server) claimBackup(ctx context.Context, ref, use string) (b Backup, release func(), err error) {
	s.deciding.Lock()
	defer s.deciding.Unlock()
	if b, err = s.findBackup(ctx, ref); err != nil {
		return b, nil, err
	}
	if err = mayRead(b, use); err != nil {
		return b, nil, err
	}
	s.claims[b.ID]++
	return b, func() {
		s.deciding.Lock()
		defer s.deciding.Unlock()
		if s.claims[b.ID]--; s.claims[b.ID] == 0 {
			delete(s.claims, b.ID)
		}
	}, nil
}

// submitRestore checks where a claimed backup is to go and queues its job.
func (s *server) submitRestore(ctx context.Context, req Restore, b Backup) (Job, error) {
	j, err := s.restoreTarget(ctx, &req, b)
	if err != nil {
		return Job{}, err
	}
	s.deciding.Lock()
	defer s.deciding.Unlock()
	if b, err = s.findBackup(ctx, b.ID); err != nil { // its state may be another by now
		return Job{}, err
	}
	if err = s.unusedTarget(req); err != nil {
		return Job{}, err
	}
	if b.Status == catalog.Available {
		if ierr := s.cat.SetBackupStatus(ctx, b.ID, catalog.Available, catalog.Restoring); ierr != nil {
			return Job{}, ierr
		}
	}
	queued, err := s.jobs.submit(ctx, j, func(ctx context.Context, t *task) (any, error) { return s.runRestore(ctx, t, req, b) })
	if err != nil {
		return Job{}, errors.Join(err, s.notRestoring(context.WithoutCancel(ctx), b.ID))
	}
	return queued, nil
}

// inWords is what a thing is and its name, "" without one.
func inWords(what, name string) string {
	if name == "" {
		return ""
	}
	return what + " " + name
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// runRestore is the work of a restore job.
func (s *server) runRestore(ctx context.Context, t *task, req Restore, b Backup) (any, error) {
	clean := context.WithoutCancel(ctx)
	target := map[string]any{"restore_target": orElse(t.volumeID(), orElse(req.File, req.NBD))}
	s.tell(ctx, eventRestoreStart, b, target)
	res, err := s.restoreTo(ctx, t, req, b)
	ended := b
	if err != nil {
		ended.FailReason = failure(ctx, err).Text
	}
	s.tell(clean, eventRestoreEnd, ended, target)
	var nerr error
	if req.Volume != "" {
		state := ""
		switch {
		case err == nil:
		case errors.Is(context.Cause(ctx), errCanceled):
			state = noteError
		default:
			state = noteErrorRestore
		}
		nerr = s.restoreEnded(clean, t.volumeID(), b, res, state)
	}
	nerr = errors.Join(nerr, s.leaveRestored(clean, t, b.ID))
	if nerr != nil {
		s.log.LogAttrs(clean, slog.LevelError, "end of a restore not recorded", slog.String("backup", b.ID), slog.Any("error", nerr))
	}
	if err == nil {
		return res, nil
	}
	failed := failure(ctx, err)
	if errors.Is(err, repository.ErrDamaged) {
		failed.Text = joinSentences(failed.Text, "--skip-damaged restores all the rest")
	}
	if where := orElse(inWords("volume", res.Volume), req.NBD); res.BytesWritten > 0 && (req.Volume != "" || req.NBD != "") {
		failed.Text = joinSentences(failed.Text, where+" holds a mixture of old and new: restore to it again")
	}
	return res, failed
}

// restoreTo restores to the target that is asked for.
func (s *server) restoreTo(ctx context.Context, t *task, req Restore, b Backup) (res RestoreResult, err error) {
	res = RestoreResult{Backup: b.ID, File: req.File, NBD: req.NBD}
	if ctx.Err() != nil {
		return res, context.Cause(ctx)
	}
	t.phase("opening")
	img, err := s.repo.Image(ctx, b.Stored())
	if err != nil {
		return res, fmt.Errorf("open backup %s: %w", b.ID, err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	o := restore.Options{
		BlockSize: s.repo.Info().BlockSize, Workers: s.o.Limits.RestoreWorkers, Verify: req.Verify,
		Progress: func(p restore.Progress) { t.update(func(j *Job) { j.Progress = restoreProgress(p) }) },
	}
	var skipped Skipped
	if req.SkipDamaged {
		skipped.Into(&o)
	}
	var p restore.Progress
	switch {
	case req.File != "":
		p, err = restore.File(ctx, img, req.File, restore.FileOptions{Options: o, Overwrite: req.Overwrite})
	case req.Volume != "":
		var v Volume
		if v, err = s.serve.Volume(ctx, t.volumeID()); err != nil {
			return res, err
		}
		if err = mayRestoreTo(v, b); err != nil {
			return res, err
		}
		res.Volume, res.VolumeID = v.Name, v.ID
		p, res.Warning, err = toExport(ctx, img, "volume "+v.Name, v.URI, o)
	case req.NBD != "":
		p, res.Warning, err = toExport(ctx, img, req.NBD, req.NBD, o)
	default:
		res.Volume = req.NewVolume
		p, err = s.toNewVolume(ctx, t, img, &res, o)
	}
	res.BytesRead, res.BytesWritten, res.BytesSkipped, res.Skipped = p.Read, p.Written, p.Skipped, skipped.Ranges()
	return res, err
}

func restoreProgress(p restore.Progress) Progress {
	return Progress{Phase: "restoring", Total: p.Total, Done: p.Done, Read: p.Read, Written: p.Written, Hole: p.Hole + p.Same}
}

// toNewVolume makes a volume and restores to it. A failure deletes the volume.
func (s *server) toNewVolume(ctx context.Context, t *task, img restore.Image, res *RestoreResult, o restore.Options) (restore.Progress, error) {
	// The records must be written whatever ends ctx, however long the copy takes.
	clean := context.WithoutCancel(ctx)
	// Recorded before it is made, so that neither a kill nor a lost answer leaves
	// half a volume.
	id := uuid.NewString()
	if err := s.cat.PutUnfinished(clean, id, t.id()); err != nil {
		return restore.Progress{}, err
	}
	p, err := s.fillNewVolume(ctx, t, img, serve.CreateVolume{ID: id, Name: res.Volume, Size: img.Size()}, o)
	if err == nil {
		res.VolumeID = id
		return p, s.cat.RemoveUnfinished(clean, id)
	}
	clean, cancel := context.WithTimeout(clean, cleanTimeout)
	defer cancel()
	return p, errors.Join(err, s.dropUnfinished(clean, id))
}

// fillNewVolume makes a volume and restores to it; a failure may leave it.
func (s *server) fillNewVolume(ctx context.Context, t *task, img restore.Image, req serve.CreateVolume, o restore.Options) (restore.Progress, error) {
	// Not given up halfway: a request on its way would be overtaken by the one
	// that deletes what comes of it.
	create, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	v, err := s.serve.CreateVolume(create, req)
	if err != nil {
		return restore.Progress{}, err
	}
	t.update(func(j *Job) { j.VolumeID = v.ID })
	o.Fresh = true
	p, _, err := toExport(ctx, img, "volume "+v.Name, v.URI, o)
	return p, err
}

// dropUnfinished deletes a new volume whose restore did not end well. The data
// plane may see the end of the restore's connections late: it is asked again
// for a few seconds.
func (s *server) dropUnfinished(ctx context.Context, volumeID string) error {
	err := s.serve.DeleteVolume(ctx, volumeID)
	for range 50 {
		if !errors.Is(err, serve.ErrBusy) || !pause(ctx, 100*time.Millisecond) {
			break
		}
		err = s.serve.DeleteVolume(ctx, volumeID)
	}
	if err != nil && !errors.Is(err, serve.ErrNotFound) {
		return fmt.Errorf("the half-made volume is not deleted yet: %w", err)
	}
	return s.cat.RemoveUnfinished(ctx, volumeID)
}

// tidyUnfinished deletes the new volumes of restores that no longer run.
func (s *server) tidyUnfinished(ctx context.Context) error {
	l, err := s.cat.Unfinished(ctx)
	for volume, job := range l {
		if _, _, live := s.jobs.live(job); !live {
			err = errors.Join(err, s.dropUnfinished(ctx, volume))
		}
	}
	return err
}

// tidyRestoring makes the backups available again that no job restores any
// more: of two that ended at once each left it to the other, or it failed.
func (s *server) tidyRestoring(ctx context.Context) error {
	s.deciding.Lock() // against a restore that is about to be queued
	defer s.deciding.Unlock()
	mine, err := s.settles(ctx)
	if err != nil {
		return err
	}
	l, err := s.cat.BackupsListed(ctx, "")
	for _, b := range l {
		if b.Status == catalog.Restoring && mine(b) {
			err = errors.Join(err, s.notRestoring(ctx, b.ID))
		}
	}
	return err
}

// leaveRestored is the end of a job's use of a backup. Of two that leave it at the same time the
// later one finds that the other has.
func (s *server) leaveRestored(ctx context.Context, t *task, backup string) error {
	t.update(func(j *Job) { j.Left = true })
	return s.notRestoring(ctx, backup)
}

// notRestoring makes a backup available again when no job restores it any more.
func (s *server) notRestoring(ctx context.Context, backup string) error {
	if _, busy := s.jobs.using(func(j Job) bool { return j.Kind == catalog.RestoreJob && j.Backup == backup && !j.Left }); busy {
		return nil
	}
	if busy, err := s.restoredElsewhere(ctx, backup); busy || err != nil {
		return err
	}
	err := s.cat.SetBackupStatus(ctx, backup, catalog.Restoring, catalog.Available)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil
	}
	return err
}

// id is the job's ID, which never changes.
func (t *task) id() string { return t.job.ID }

// volumeID is the job's volume as it was asked for.
func (t *task) volumeID() string {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	return t.job.VolumeID
}
