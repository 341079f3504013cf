package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// commitTimeout is how long a commit may take.
const commitTimeout = 10 * time.Minute

// cleanTimeout is how long cleaning up after a job may take. It is a variable
// for tests.
var cleanTimeout = 30 * time.Second

// errFailed is why a backup that was told failed does not exist.
var errFailed = errors.New("too few stores confirmed the backup, so it was given up: \"cairn status\" shows the stores; make it again when they are back")

// backupRun is one backup job.
//
// The order makes every crash harmless: the record is there before the
// checkpoint, the checkpoint's record before the checkpoint, the session's
// name in the record before its commit, and the checkpoints of older backups
// are dropped only when this one is recorded as available.
type backupRun struct {
	*server
	task   *task
	req    newBackup
	rec    Backup
	vol    Volume
	parent parent
	sess   *repository.Session
	snap   Snapshot
	others sights // right before the snapshot
	log    *slog.Logger

	committing bool  // the commit was begun: only the stores know its outcome
	released   bool  // a part of the snapshot may have been released, and is not to be read again
	told       int64 // percent of progress that a notification told of last
}

// tempSnapshot is the name of the snapshot that a backup reads. It is short, as
// it becomes a part of the path of a socket.
func tempSnapshot(backup string) string {
	return "b" + strings.ReplaceAll(backup, "-", "")[:12]
}

// runBackup is the work of a backup job.
func (s *server) runBackup(ctx context.Context, t *task, req newBackup, rec Backup) (any, error) {
	r := &backupRun{server: s, task: t, req: req, rec: rec, log: s.log.With(slog.String("backup", rec.ID))}
	s.tell(ctx, eventCreateStart, rec, nil)
	defer func() { s.tell(context.WithoutCancel(ctx), eventCreateEnd, r.rec, nil) }()
	outcome, err := r.steps(ctx)
	r.dropSnapshot(ctx)
	// What follows must happen whatever ended ctx.
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if outcome != repository.OutcomeCommitted && r.sess != nil && !r.committing {
		if aerr := r.sess.Abort(clean); aerr != nil {
			r.log.LogAttrs(clean, slog.LevelWarn, "session not aborted: its packs wait for a prune", slog.Any("error", aerr))
		}
	}
	var failed *Error
	r.rec.Updated = time.Now().UTC()
	switch outcome {
	case repository.OutcomeCommitted:
		r.rec.Status, r.rec.Undecided, r.rec.FailReason = catalog.Available, false, ""
	case repository.OutcomeUnknown:
		// The checkpoint stays, as the backup may turn out to exist.
		r.rec.Status, r.rec.Undecided = catalog.Failed, true
		r.rec.FailReason = fmt.Sprintf("it becomes available or fails when the stores answer again, as they did not say whether it was committed: %v", err)
	default:
		failed = failure(ctx, err)
		r.rec.Status, r.rec.FailReason = catalog.Failed, failed.Text
	}
	if outcome != repository.OutcomeUnknown {
		// Whoever sees the end of the backup may go on at once.
		t.update(func(j *Job) { j.Left = true })
	}
	perr := r.put(context.WithoutCancel(ctx))
	if errors.Is(perr, catalog.ErrTaken) {
		return s.settledElsewhere(context.WithoutCancel(ctx), t, rec.ID)
	}
	if perr != nil {
		// Written later; a start before that settles it by the session's verdict.
		s.late.keep(r.rec.ID, r.rec)
		if err != nil && err.Error() == perr.Error() {
			return nil, perr // the same disk is full still
		}
		if outcome == repository.OutcomeCommitted {
			return nil, fmt.Errorf("the backup is committed, and becomes available when that can be recorded: %w", perr)
		}
		return nil, errors.Join(err, perr)
	}
	if outcome == repository.OutcomeUnknown {
		return s.waitDecision(ctx, t, r.rec, err)
	}
	if outcome != repository.OutcomeCommitted {
		return nil, failed
	}
	t.phase("applying the policy")
	s.applyPolicy(context.WithoutCancel(ctx), r.rec.VolumeID, r.log, t.stopping)
	return r.rec, nil
}

// put records how far the backup is, as long as no other host has settled it, which took
// this one to be down: [catalog.ErrTaken], and the backup ends as that says.
func (r *backupRun) put(ctx context.Context) error {
	return r.cat.PutBackupOf(ctx, r.rec)
}

// settledElsewhere is the end of a job whose backup another host has settled: by the
// verdict of the same stores that this one asked.
func (s *server) settledElsewhere(ctx context.Context, t *task, id string) (any, error) {
	t.update(func(j *Job) { j.Left = true })
	b, err := s.cat.Backup(ctx, id)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w, and was deleted: %w", catalog.ErrTaken, err)
	case b.Status == catalog.Available, b.Status == catalog.Restoring:
		return b, nil
	default:
		return nil, refuse(CodeUnavailable, "%v: backup %s is in the state %s%s", catalog.ErrTaken, id, b.Status, inBrackets(b.FailReason))
	}
}

// steps does the backup. With OutcomeFailed or OutcomeUnknown comes an error.
func (r *backupRun) steps(ctx context.Context) (repository.Outcome, error) {
	started := time.Now()
	defer func() { r.rec.Duration = time.Since(started) }()
	if ctx.Err() != nil {
		return repository.OutcomeFailed, context.Cause(ctx)
	}
	if err := r.begin(ctx); err != nil {
		return repository.OutcomeFailed, err
	}
	if err := r.takeSnapshot(ctx); err != nil {
		return repository.OutcomeFailed, err
	}
	root, err := r.copyWatched(ctx)
	if err == nil {
		err = r.stillElsewhere(ctx)
	}
	if err != nil {
		return repository.OutcomeFailed, err
	}
	// Guests pay for a snapshot with each write: it goes as soon as possible.
	r.dropSnapshot(ctx)
	r.rec.Duration = time.Since(started)
	return r.commit(ctx, root)
}

// begin chooses the parent, as of now, and opens the session.
func (r *backupRun) begin(ctx context.Context) error {
	r.task.phase("opening")
	var err error
	if r.vol, err = r.serve.Volume(ctx, r.rec.VolumeID); err != nil {
		return err
	}
	if r.req.Snapshot == "" {
		if r.vol, err = r.mayBackUp(ctx, r.vol, r.req.Force); err != nil {
			return err
		}
	}
	if r.rec.SnapshotID != "" {
		if r.snap, err = r.serve.Snapshot(ctx, r.rec.SnapshotID); err != nil {
			return err
		}
	}
	if r.parent, err = r.chooseParent(ctx, r.vol, r.snap, r.req); err != nil {
		return err
	}
	r.sess, err = r.repo.Begin(ctx, repository.SessionOptions{
		Project: r.rec.Project, VolumeID: r.rec.VolumeID, Volume: r.rec.Volume, ParentBackup: r.parent.backup.ID, Retain: r.retain(),
	})
	if err != nil {
		return fmt.Errorf("open a session in the repository: %w", err)
	}
	if id := r.parent.backup.ID; id != "" && r.sess.Parent() == nil {
		r.parent = parent{reason: fmt.Sprintf("backup %s cannot be started from: %s", id, orElse(r.sess.ParentProblem(), "it is not in the repository any more"))}
	}
	r.rec.Session = r.sess.ID()
	r.rec.Parent, r.rec.Incremental = r.parent.backup.ID, r.parent.backup.ID != ""
	return r.put(ctx)
}

// retain is for how long the backup cannot be deleted.
func (r *backupRun) retain() time.Duration {
	if r.req.Retain != nil {
		return time.Duration(*r.req.Retain) * time.Second
	}
	return r.o.Limits.Retain
}

// takeSnapshot makes what is read stand still, and a checkpoint at the same
// position for later backups to start from.
func (r *backupRun) takeSnapshot(ctx context.Context) error {
	r.task.phase("taking a snapshot")
	r.rec.Checkpoint = r.rec.ID
	var err error
	if r.others, err = r.notOpenElsewhere(ctx, r.vol, "back it up"); err != nil {
		return err
	}
	others, err := r.others.encode()
	if err != nil {
		return err
	}
	if err = r.cat.PutCheckpoint(ctx, catalog.Checkpoint{Name: r.rec.ID, VolumeID: r.vol.ID, Backup: r.rec.ID, Others: others}); err != nil {
		return err
	}
	if r.rec.SnapshotID != "" {
		return r.nameSnapshot(ctx)
	}
	still := r.hub.quiescing(r.vol)
	l, err := r.serve.CreateSnapshots(ctx, serve.CreateSnapshots{
		Volumes: []string{r.vol.ID}, Name: tempSnapshot(r.rec.ID), Temporary: true, Checkpoints: []string{r.rec.ID},
		Force: r.req.Force || still != nil, Fresh: len(r.others) > 0,
	}, still.around())
	if err != nil {
		return err
	}
	if len(l) != 1 {
		return fmt.Errorf("the data plane answered with %d snapshots of one volume", len(l))
	}
	r.snap = l[0]
	r.rec.Size, r.rec.DataTime = r.snap.Size, r.snap.Created
	r.rec.Quiesced = still.done()
	r.rec.Warning = joinSentences(r.rec.Warning, joinSentences(r.snap.Caveat, still.warning()))
	return r.put(ctx)
}

// nameSnapshot adds the backup's checkpoint at the position of the snapshot that
// the caller asked to have backed up. Without it the backup is as good, only no
// incremental can start from it without comparing everything.
func (r *backupRun) nameSnapshot(ctx context.Context) error {
	if err := r.serve.AliasCheckpoint(ctx, r.snap.ID, r.rec.Checkpoint); err != nil {
		if ctx.Err() != nil {
			return err
		}
		r.log.LogAttrs(ctx, slog.LevelWarn, "no checkpoint for the backup of a snapshot", slog.String("snapshot", r.snap.ID), slog.Any("error", err))
		r.rec.Checkpoint = ""
	}
	r.rec.Size, r.rec.Quiesced = r.snap.Size, notesOf(r.vol).Snapshots[r.snap.ID].Quiesced
	return r.put(ctx)
}

// dropSnapshot deletes the temporary snapshot, also when ctx has ended: one that is cut off
// in the middle can be gone for us and still cost the guest. If it fails, the tidying does it.
func (r *backupRun) dropSnapshot(ctx context.Context) {
	if r.rec.SnapshotID != "" || r.snap.ID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if err := r.serve.DeleteSnapshot(ctx, r.snap.ID); err != nil && !errors.Is(err, serve.ErrNotFound) {
		r.log.LogAttrs(ctx, slog.LevelWarn, "snapshot not deleted yet", slog.String("snapshot", r.snap.ID), slog.Any("error", err))
		return
	}
	r.snap.ID = ""
}

// commit makes the backup exist, or finds out that it does not.
func (r *backupRun) commit(ctx context.Context, root repository.Root) (repository.Outcome, error) {
	r.task.phase("committing")
	// From here on a cancel comes too late.
	if err := r.task.commit(); err != nil {
		return repository.OutcomeFailed, err
	}
	r.rec.Undecided = true
	if err := r.put(ctx); err != nil {
		r.rec.Undecided = false
		return repository.OutcomeFailed, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	r.committing = true
	outcome, err := r.sess.Commit(ctx, root)
	st := r.sess.Stored()
	r.rec.BytesShards, r.rec.RetainUntil = st.BytesShards, r.sess.RetainUntil()
	r.warnOwed(st)
	switch {
	case outcome == repository.OutcomeCommitted:
		if err != nil {
			r.log.LogAttrs(ctx, slog.LevelWarn, "committed, with a complaint", slog.Any("error", err))
		}
		return outcome, nil
	case outcome == repository.OutcomeFailed:
		r.rec.Undecided = false
		if err == nil {
			err = errFailed
		}
	case err == nil:
		err = fmt.Errorf("%w answered", repository.ErrTooFewStores)
	}
	return outcome, err
}

// warnOwed says which stores miss a part of the backup.
func (r *backupRun) warnOwed(st repository.SessionStats) {
	var stores []string
	for url, n := range st.Owed {
		if n > 0 {
			stores = append(stores, fmt.Sprintf("%s (%d)", url, n))
		}
	}
	if len(stores) == 0 {
		return
	}
	slices.Sort(stores)
	r.rec.Warning = joinSentences(r.rec.Warning, fmt.Sprintf("shards are owed to the stores %v, and the backup survives fewer losses until they are repaired", stores))
}

func joinSentences(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// reading reads the snapshot, at most as fast as the limit allows.
type reading struct {
	c     *nbd.Client
	limit *throttle
}

// ReadAt waits for its turn and reads.
func (s reading) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := s.limit.wait(ctx, len(p)); err != nil {
		return err
	}
	return planeGone(ctx, s.c.ReadAt(ctx, p, off))
}

// dirtySince returns what the snapshot says to have changed since a
// checkpoint; a checkpoint that is not offered is none.
func dirtySince(ctx context.Context, c *nbd.Client, checkpoint string) ([]blockmap.Extent, bool, error) {
	name := nbd.ContextDirtyBitmap + checkpoint
	if !slices.Contains(c.Contexts(), name) {
		return nil, false, nil
	}
	l, err := c.Map(ctx, name, 0, c.Size())
	if err != nil {
		return nil, false, fmt.Errorf("read what changed since backup %s: %w", checkpoint, err)
	}
	return slices.DeleteFunc(l, func(e blockmap.Extent) bool { return e.State&blockmap.Dirty == 0 }), true, nil
}
