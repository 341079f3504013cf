package agent

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/backup"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/nbd"
)

// sourceConns is how many connections read a snapshot: each is served by one
// thread of the data plane at a time.
const sourceConns = 2

// copyWatched is copy, and sees to it that what was read is good. That the snapshot had to
// be ended meanwhile ends it, and is its error.
func (r *backupRun) copyWatched(ctx context.Context) (root repository.Root, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watching, stop := context.WithCancel(ctx)
	ended, id := make(chan error, 1), r.snap.ID // one that is watched is never taken anew
	go func() {
		werr := r.serve.WatchSnapshot(watching, id)
		if werr != nil {
			cancel(werr)
		}
		ended <- werr
	}()
	if root, err = r.copy(ctx); err == nil {
		err = r.serve.VerifySnapshot(ctx, r.snap.ID)
	}
	stop()
	if werr := <-ended; err != nil && werr != nil {
		err = werr
	}
	return root, err
}

// copy reads the snapshot into the session and returns what is to be committed.
func (r *backupRun) copy(ctx context.Context) (root repository.Root, err error) {
	if err = r.doubtElsewhere(ctx); err != nil {
		return root, err
	}
	res, g, err := r.read(ctx, false)
	if err != nil {
		return root, err
	}
	if n := res.Mismatches; n > 0 {
		first := res
		if res, g, err = r.readAgain(ctx, n); err != nil {
			return root, err
		}
		// What the first run cost was read and stored, too.
		res.BytesRead += first.BytesRead
		res.BytesAudited += first.BytesAudited
		res.BytesNew += first.BytesNew
	}
	if res.Healed+res.Reread > 0 {
		r.log.LogAttrs(ctx, slog.LevelInfo, "damaged parts of the parent read from the volume and stored again",
			slog.Int64("blocks", res.Healed), slog.Int64("leaves", res.Reread))
	}
	r.rec.FullCompareReason = r.parent.reason
	r.rec.BytesRead, r.rec.BytesAudited, r.rec.BytesChanged = res.BytesRead, res.BytesAudited, res.BytesChanged
	r.rec.BytesNew, r.rec.BytesStored = res.BytesNew, r.sess.Stored().BytesStored
	// Its texts may have been changed meanwhile.
	now, err := r.cat.Backup(ctx, r.rec.ID)
	if err != nil {
		return root, err
	}
	r.rec.Name, r.rec.Description, r.rec.Metadata = now.Name, now.Description, now.Metadata
	notes, err := notesForRoot(r.rec)
	if err != nil {
		return root, err
	}
	return repository.Root{
		Attributes: notes,
		BackupID:   r.rec.ID, Name: r.rec.Name, Description: r.rec.Description, Created: r.rec.Created, Geometry: g, Top: res.Top,
		Stats: repository.Stats{
			Read: res.BytesRead, Audited: res.BytesAudited, Changed: res.BytesChanged, New: res.BytesNew, Stored: r.rec.BytesStored, Hole: res.BytesHole,
		},
	}, nil
}

// read reads of the snapshot what has to be, or all, and returns its geometry too.
func (r *backupRun) read(ctx context.Context, all bool) (res backup.Result, g blockmap.Geometry, err error) {
	r.task.phase("reading")
	contexts := []string{nbd.ContextAllocation}
	if r.parent.checkpoint != "" {
		contexts = append(contexts, nbd.ContextDirtyBitmap+r.parent.checkpoint)
	}
	c, err := nbd.Dial(ctx, r.snap.URI, nbd.ClientOptions{Contexts: contexts, Conns: sourceConns})
	if err != nil {
		return res, g, fmt.Errorf("read the snapshot of volume %s: %w", r.vol.Name, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	plan, err := r.plan(ctx, c)
	if err != nil {
		return res, g, err
	}
	plan.Compare = plan.Compare || all
	res, err = r.run(ctx, c, plan)
	return res, plan.Geometry, err
}

// plan says what of the snapshot is read.
func (r *backupRun) plan(ctx context.Context, c *nbd.Client) (backup.Plan, error) {
	p := backup.Plan{
		Geometry:  blockmap.Geometry{Size: c.Size(), BlockSize: r.repo.Info().BlockSize},
		AuditSeed: auditSeed(r.rec.ID),
		Bad:       r.sess.Bad(),
	}
	if c.Size() != r.rec.Size {
		return p, fmt.Errorf("the snapshot of volume %s has %d bytes over NBD and had %d when it was made", r.vol.Name, c.Size(), r.rec.Size)
	}
	var err error
	if p.Allocated, err = allocation(ctx, c, 0, c.Size()); err != nil {
		return p, fmt.Errorf("read the allocation of volume %s: %w", r.vol.Name, err)
	}
	if r.parent.backup.ID == "" {
		return p, nil
	}
	if err := r.readDirty(ctx, c, &p); err != nil {
		return p, err
	}
	p.Compare = r.parent.checkpoint == ""
	return p, nil
}

// readDirty takes what changed since the parent from the snapshot, unless the
// data plane has come to doubt it. That is asked last, so that no doubt slips
// in between.
func (r *backupRun) readDirty(ctx context.Context, c *nbd.Client, p *backup.Plan) error {
	if r.parent.checkpoint == "" {
		return nil
	}
	dirty, ok, err := dirtySince(ctx, c, r.parent.checkpoint)
	if err != nil {
		return err
	}
	vol, err := r.serve.Volume(ctx, r.vol.ID)
	if err != nil {
		return err
	}
	r.parent.doubt(vol)
	if !ok && r.parent.checkpoint != "" {
		r.parent.checkpoint, r.parent.reason = "", "nobody says what changed since backup "+r.parent.backup.ID
	}
	if r.parent.checkpoint != "" {
		if dirty == nil {
			dirty = []blockmap.Extent{} // nothing changed: nil would mean that nobody knows
		}
		p.Dirty = dirty
	}
	return nil
}

// run reads what the plan says.
func (r *backupRun) run(ctx context.Context, c *nbd.Client, p backup.Plan) (backup.Result, error) {
	limit, done := r.hub.reads.of(r.vol.ID)
	defer done()
	release, stop := r.releasing(ctx)
	defer stop()
	res, err := backup.Run(ctx, reading{c, limit}, session{r.sess}, p, func(g backup.Progress) {
		p := backupProgress(g)
		r.task.update(func(j *Job) { j.Progress = p })
		r.tellProgress(ctx, p)
		release(g.Settled)
	})
	if err != nil {
		return res, r.explain(ctx, err)
	}
	return res, nil
}

// tellProgress tells of every tenth part.
func (r *backupRun) tellProgress(ctx context.Context, p Progress) {
	if p.Total <= 0 {
		return
	}
	if percent := p.Done * 100 / p.Total; percent >= r.told+10 {
		r.told = percent - percent%10
		r.tell(ctx, eventProgress, r.rec, map[string]any{"backup_percent": r.told})
	}
}

// explain adds why, if the data plane knows: a snapshot that broke, for want
// of room, answers reads with a bare I/O error.
func (r *backupRun) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if snap, serr := r.serve.Snapshot(ctx, r.snap.ID); serr == nil && snap.Error != "" {
		return fmt.Errorf("the snapshot broke: %s (%w)", snap.Error, err)
	}
	return fmt.Errorf("back up volume %s: %w", r.vol.Name, err)
}

// readAgain compares everything, as the audit found blocks that changed
// without being marked; the backups since the parent may lack others. What is read is
// another snapshot if of the backup's own a part was released.
func (r *backupRun) readAgain(ctx context.Context, n int64) (res backup.Result, g blockmap.Geometry, err error) {
	// A snapshot that broke shows newer content, and nothing was missed then.
	if err = r.serve.VerifySnapshot(ctx, r.snap.ID); err != nil {
		return res, g, err
	}
	found := fmt.Sprintf("the audit found %d blocks that changed since backup %s without being marked", n, r.parent.backup.ID)
	r.log.LogAttrs(ctx, slog.LevelError, "changes of a volume were missed", slog.String("volume", r.vol.Name), slog.Int64("blocks", n))
	retake := r.released
	if retake {
		r.rec.Warning = "" // it is that of the snapshot which goes
	}
	if err = r.flagEarlier(ctx); err != nil {
		return res, g, err
	}
	if retake {
		if err = r.retakeSnapshot(ctx); err != nil {
			return res, g, fmt.Errorf("%s, and another snapshot, to compare everything, cannot be taken: %w", found, err)
		}
	}
	res, g, err = r.read(ctx, true)
	r.parent.reason = found
	return res, g, err
}

// missedChanges begins the warning of backups that may lack something.
const missedChanges = "changes of the volume may be missing"

// flagEarlier warns of the incremental backups of this volume, in all repositories:
// the change map is one. Where another's catalog does not take the warning, this
// backup has it, and does not fail for it.
func (r *backupRun) flagEarlier(ctx context.Context) error {
	if err := r.flagIn(ctx, r.server); err != nil {
		return err
	}
	for _, o := range r.all() {
		if o == r.server {
			continue
		}
		if err := r.flagIn(ctx, o); err != nil {
			r.notFlagged(ctx, o.name, err)
		}
	}
	for _, x := range r.hub.broken {
		r.notFlagged(ctx, x.name, x.err)
	}
	return nil
}

func (r *backupRun) notFlagged(ctx context.Context, repo string, err error) {
	r.log.LogAttrs(ctx, slog.LevelError, "backups of another repository not flagged", slog.String("other", repo), slog.Any("error", err))
	r.rec.Warning = joinSentences(r.rec.Warning, fmt.Sprintf("changes may be missing in the incremental backups of the volume that repository %s has, which could not be recorded there: %v", repo, err))
}

// flagIn warns of the incremental backups that a repository has of this volume. They
// may be restored or deleted meanwhile: only their warnings are written.
func (r *backupRun) flagIn(ctx context.Context, o *server) error {
	l, err := o.cat.BackupsOf(ctx, r.vol.ID)
	if err != nil {
		return err
	}
	for _, b := range l {
		if b.ID == r.rec.ID || !b.Incremental || b.FullCompareReason != "" || strings.Contains(b.Warning, missedChanges) {
			continue
		}
		if err := o.cat.WarnBackup(ctx, b.ID, fmt.Sprintf("%s: backup %s found unmarked ones", missedChanges, r.rec.ID)); err != nil {
			return err
		}
	}
	return nil
}

// auditSeed makes each backup audit other blocks.
func auditSeed(id string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id)) // a hash takes everything
	return h.Sum64()
}

// session lets backup.Run write to the repository.
type session struct{ *repository.Session }

// Worker opens a worker for one goroutine.
func (s session) Worker() (backup.Worker, error) { return s.Session.Worker() }

func backupProgress(g backup.Progress) Progress {
	return Progress{Phase: "reading", Total: g.Total, Done: g.Done, Read: g.Read, New: g.New, Stored: g.Stored}
}
