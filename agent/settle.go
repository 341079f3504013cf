package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
)

// Every so often what could not be cleaned up or decided is tried again.
const (
	tidyEvery  = 30 * time.Second
	tidyAtMost = 5 * time.Minute // of one thing, so that what hangs does not keep the others
	decideWait = time.Minute     // a job waits so long for its session's verdict
	decideStep = 2 * time.Second // and asks this often
)

// errInterrupted is the end of jobs that a stopped agent left behind.
var errInterrupted = errors.New("the agent was stopped or killed meanwhile: start the job again")

// errLeft is the end of jobs of a host that is down, or only cut off.
var errLeft = fmt.Errorf("nothing was heard of its host for %s, so that another one ended it: start the job again when that is back", catalog.DownAfter)

// recover settles, before anything else, what the last agent left: no job
// runs any more, so each record says what its end was. Stores that do not
// answer now are asked again later.
func (s *server) recover(ctx context.Context) error {
	jobs, err := s.cat.UnfinishedJobs(ctx)
	if err != nil {
		return err
	}
	backups, err := s.cat.Backups(ctx)
	if err != nil {
		return err
	}
	for _, b := range backups {
		if !s.own(b) { // its agent may run
			continue
		}
		if err := s.recoverBackup(ctx, b, errInterrupted); err != nil && !errors.Is(err, catalog.ErrTaken) {
			return err
		}
	}
	for _, j := range jobs {
		if err := s.recoverJob(ctx, j, errInterrupted, s.cat.PutJob); err != nil {
			return err
		}
	}
	if err := s.cat.TrimJobs(ctx, keepJobs); err != nil {
		return err
	}
	// Without stores there is nothing to adopt, which is no reason not to start.
	if _, err := s.adopt(ctx); err != nil {
		s.log.LogAttrs(ctx, slog.LevelWarn, "backups that the catalog does not know stay unknown until \"cairn catalog rebuild\" or the next start", slog.Any("error", err))
	}
	s.wakeTidy()
	return nil
}

// recoverBackup settles one record, of this host's or of one that is down, which may go
// on all the same: what it records of the backup from then on is refused. Cause is the
// end of one that was not committed.
func (s *server) recoverBackup(ctx context.Context, b Backup, cause error) error {
	was := b
	switch {
	case b.Status == catalog.Restoring:
		b.Status = catalog.Available
		return s.cat.SettleBackup(ctx, b, was)
	case b.Status == catalog.Creating && b.Session == "":
		b.Status, b.Undecided, b.FailReason = catalog.Failed, false, cause.Error()
		return s.cat.SettleBackup(ctx, b, was)
	case b.Status == catalog.Creating || b.Undecided:
		b.Status, b.Undecided = catalog.Failed, true
		b.FailReason = orElse(b.FailReason, "its agent did not end it, and the stores have not said yet whether it was committed")
		if err := s.cat.SettleBackup(ctx, b, was); err != nil {
			return err
		}
		if _, err := s.decide(ctx, b, cause); err != nil {
			s.log.LogAttrs(ctx, slog.LevelWarn, "backup undecided", slog.String("backup", b.ID), slog.Any("error", err))
		}
	}
	return nil
}

// settleLeft settles what hosts have in hand that are down. It is theirs again when they
// are back: what they find settled then ends as it was settled.
func (s *server) settleLeft(ctx context.Context) error {
	if !s.cat.Shared() {
		return nil
	}
	mine, err := s.settles(ctx)
	if err != nil {
		return err
	}
	backups, err := s.cat.BackupsListed(ctx, "")
	for _, b := range backups {
		if b.Status == catalog.Creating && !s.own(b) && mine(b) {
			s.log.LogAttrs(ctx, slog.LevelWarn, "a host is down that was making a backup", slog.String("host", b.Host), slog.String("backup", b.ID))
			x, rerr := s.cat.Backup(ctx, b.ID)
			if rerr == nil && x.Host == b.Host && x.Status == b.Status {
				rerr = s.recoverBackup(ctx, x, errLeft)
			}
			if !errors.Is(rerr, catalog.ErrTaken) && !errors.Is(rerr, catalog.ErrNotFound) {
				err = errors.Join(err, rerr)
			}
		}
	}
	jobs, jerr := s.cat.JobsLeft(ctx)
	for _, j := range jobs {
		if rerr := s.recoverJob(ctx, j, errLeft, s.cat.EndJob); !errors.Is(rerr, catalog.ErrNotFound) {
			jerr = errors.Join(jerr, rerr)
		}
	}
	return errors.Join(err, jerr)
}

// recoverJob ends the record of a job that no longer runs, or is not to count any more: by
// cause, unless its backup is there.
func (s *server) recoverJob(ctx context.Context, j Job, cause error, put func(context.Context, Job) error) error {
	j.State, j.Error, j.Code = catalog.JobFailed, cause.Error(), string(CodeUnavailable)
	j.Finished, j.Progress.Phase = time.Now().UTC(), ""
	switch j.Kind {
	case catalog.BackupJob:
		if b, err := s.cat.Backup(ctx, j.Backup); err == nil && b.Status == catalog.Available {
			j.State, j.Error, j.Code = catalog.Succeeded, "", ""
		} else if err == nil {
			j.Error = b.FailReason
		}
	case catalog.RestoreJob:
		if where := mixedTarget(j); where != "" {
			j.Error = joinSentences(cause.Error(), where+" holds a mixture of old and new: restore to it again")
		}
	}
	return put(ctx, j)
}

// decide asks the stores whether an undecided backup was committed, and tries
// to have them say no if they have not said yes: cause is then its end. It
// records the answer; an error means that there is none yet.
func (s *server) decide(ctx context.Context, b Backup, cause error) (Backup, error) {
	d, err := s.repo.FenceSession(ctx, b.Session)
	if err != nil {
		return b, err
	}
	switch d {
	case repository.Committed:
		b.Status, b.Undecided, b.FailReason = catalog.Available, false, ""
		if stored, serr := s.repo.Backup(ctx, b.Stored()); serr == nil {
			fillStats(&b, stored.Stats)
			b.RetainUntil = stored.RetainUntil
		}
	case repository.Aborted:
		b.Status, b.Undecided, b.FailReason = catalog.Failed, false, cause.Error()
	default:
		return b, errors.New("too few stores answer to decide it")
	}
	// The stores were asked without anybody having to wait: it may be decided by now, and
	// deleted.
	s.deciding.Lock()
	defer s.deciding.Unlock()
	now, err := s.cat.Backup(ctx, b.ID)
	if err != nil || !now.Undecided {
		return now, err
	}
	if err := s.cat.SettleBackup(ctx, b, now); err != nil {
		return b, err
	}
	s.wakeTidy()
	return b, nil
}

func fillStats(b *Backup, st repository.Stats) {
	b.BytesRead, b.BytesAudited, b.BytesChanged = st.Read, st.Audited, st.Changed
	b.BytesNew, b.BytesStored, b.BytesShards = st.New, st.Stored, st.Shards
}

// waitDecision keeps a job whose commit has an unknown outcome for a while, so
// that whoever waits hears the truth; after that the tidying goes on asking.
func (s *server) waitDecision(ctx context.Context, t *task, b Backup, cause error) (any, error) {
	t.phase("waiting for the stores' verdict")
	// A cancel does not end this: it is what the answer depends on least.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), decideWait)
	defer cancel()
	for {
		got, err := s.decide(ctx, b, cause)
		switch {
		case err == nil && got.Status == catalog.Available:
			return got, nil
		case err == nil:
			return nil, &Error{Code: asError(cause).Code, Text: got.FailReason}
		}
		if stopping := t.stopping(); stopping || !pause(ctx, decideStep) {
			return nil, refuse(CodeUnavailable, "%s", b.FailReason)
		}
	}
}

// stopping says whether the agent wants to end.
func (t *task) stopping() bool {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	return t.e.stopped
}

// pause waits for d; it is false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// adopt records backups that the repository has and the catalog has not: the
// catalog was lost, or another agent made them. It returns how many.
func (s *server) adopt(ctx context.Context) (int, error) {
	l, err := s.repo.Backups(ctx)
	if err != nil {
		return 0, fmt.Errorf("list the repository: %w", err)
	}
	found := 0
	for _, x := range l {
		if x.State != repository.Available {
			continue
		}
		// Also one whose record was deleted while an imported one has the same data.
		have, err := s.cat.BackupsStoredAs(ctx, x.ID)
		if err != nil {
			return found, err
		}
		if len(have) > 0 {
			continue
		}
		// The checkpoint, if the volume is still there and has it, is ours by its name.
		added, err := s.cat.AddFound(ctx, known(x))
		if err != nil {
			return found, err
		}
		if !added { // another host was faster
			continue
		}
		if err := s.cat.PutCheckpoint(ctx, catalog.Checkpoint{Name: x.ID, VolumeID: x.VolumeID, Backup: x.ID}); err != nil {
			return found, err
		}
		if s.cat.Shared() { // another agent may have deleted it since it was listed, and its record before this one came
			if _, gerr := s.repo.Backup(ctx, x.ID); errors.Is(gerr, repository.ErrNotFound) {
				if err := s.cat.RemoveBackup(ctx, x.ID); err != nil {
					return found, err
				}
				continue
			}
		}
		found++
		s.log.LogAttrs(ctx, slog.LevelInfo, "backup found in the repository", slog.String("backup", x.ID), slog.String("volume", x.Volume))
	}
	return found, nil
}

// rebuildCatalog is what an agent does when it starts, on request: records of what was
// made by others, or was not to be read then.
func (s *server) rebuildCatalog(ctx context.Context, _ request) (any, error) {
	unlock, err := s.removing.lock(ctx, "") // against deletions, whose records go last
	if err != nil {
		return nil, err
	}
	defer unlock()
	found, err := s.adopt(ctx)
	return Rebuilt{Found: found}, err
}

// known is a backup of the repository as the catalog has it.
func known(x repository.Backup) Backup {
	b := Backup{
		ID: x.ID, Name: x.Name, Description: x.Description, Project: x.Project, Status: BackupStatus(x.State),
		Volume: x.Volume, VolumeID: x.VolumeID, Size: x.Size, Incremental: x.Incremental, Parent: x.Parent,
		Created: x.Created, Session: x.Session, Checkpoint: x.ID, RetainUntil: x.RetainUntil,
	}
	fillStats(&b, x.Stats)
	takeNotes(&b, x.Attributes)
	return b
}

// wakeTidy has all repositories tidied: a job kept each of them off its volume.
func (h *hub) wakeTidy() {
	h.told.poke()
	for _, s := range h.servers {
		s.wakeTidy()
	}
}

func (s *server) wakeTidy() {
	select {
	case s.tidy <- struct{}{}:
	default: // a wake-up is pending already
	}
}

// reconcile tidies when asked to, and now and then, until ctx ends.
func (s *server) reconcile(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.tidy:
		case <-tick.C:
		}
		s.exports.retry(ctx)
		for what, f := range map[string]func(context.Context) error{
			"records": s.recordLate, "what hosts left that are down": s.settleLeft, "undecided backups": s.decideAll, "deletions": s.deleteAll, "checkpoints": s.tidyCheckpoints, "snapshots": s.tidySnapshots,
			"half-made volumes": s.tidyUnfinished, "restores": s.tidyRestoring, "canceled backups": s.dropUnwanted, "volumes that were restored to": s.tidyRestored, "pins": s.tidyPins,
		} {
			if err := tidyOne(ctx, f); err != nil && ctx.Err() == nil {
				level := slog.LevelWarn
				if errors.Is(err, serve.ErrUnreachable) {
					level = slog.LevelInfo // said by every request that needs it
				}
				s.log.LogAttrs(ctx, level, "not tidied yet", slog.String("what", what), slog.Any("error", err))
			}
		}
	}
}

func tidyOne(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, tidyAtMost)
	defer cancel()
	return f(ctx)
}

// decideAll asks again about the backups that are undecided. Those that a job
// is about to decide are left to it.
func (s *server) decideAll(ctx context.Context) error {
	mine, err := s.settles(ctx)
	if err != nil {
		return err
	}
	l, err := s.cat.UndecidedBackups(ctx)
	for _, b := range l {
		if !mine(b) {
			continue
		}
		if _, busy := s.jobs.using(func(j Job) bool { return j.Backup == b.ID }); busy {
			continue
		}
		_, derr := s.decide(ctx, b, errors.New("its commit was given up when too few stores answered: make it again"))
		err = errors.Join(err, derr)
	}
	return err
}

// deleteAll goes on with deletions that a failure or a restart interrupted.
func (s *server) deleteAll(ctx context.Context) error {
	mine, err := s.settles(ctx)
	if err != nil {
		return err
	}
	l, err := s.cat.BackupsListed(ctx, "")
	for _, b := range l {
		if b.Status == catalog.Deleting && mine(b) {
			err = errors.Join(err, s.finishDelete(ctx, b.ID))
		}
	}
	return err
}
