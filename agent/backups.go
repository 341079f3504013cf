package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/serve"
)

// maxText is the longest name or description of a backup, as Cinder has it.
const maxText = 255

// MaxRetain is the longest retention.
const MaxRetain = 100 * 365 * 24 * time.Hour

// findBackup returns the backup with this ID, or the only one of this name. What looks
// like an ID is one: a project may call a backup anything, also as another's ID is, and
// must not have it taken for that when the other is gone.
func (s *server) findBackup(ctx context.Context, ref string) (Backup, error) {
	if uuid.Validate(ref) == nil {
		b, err := s.cat.Backup(ctx, ref)
		if errors.Is(err, catalog.ErrNotFound) {
			return b, refuse(CodeNotFound, "Backup %s could not be found: \"cairn backup list\" shows what there is.", ref)
		}
		return b, err
	}
	l, err := s.cat.BackupsNamed(ctx, ref)
	if err != nil {
		return Backup{}, err
	}
	switch len(l) {
	case 0:
		return Backup{}, refuse(CodeNotFound, "Backup %s could not be found: \"cairn backup list\" shows what there is.", ref)
	case 1:
		return l[0], nil
	}
	ids := make([]string, len(l))
	for i, b := range l {
		ids[i] = b.ID
	}
	return Backup{}, refuse(CodeConflict, "%d backups are named %q: give the ID of one (%s)", len(l), ref, strings.Join(ids, ", "))
}

// createBackup makes a backup of a volume for whom it belongs to.
func (s *server) createBackup(ctx context.Context, r request) (any, error) {
	var req CreateBackup
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	if err := req.check(); err != nil {
		return nil, err
	}
	vol, err := s.serve.Volume(ctx, req.Volume)
	if err != nil {
		return nil, err
	}
	return s.submitBackup(ctx, newBackup{CreateBackup: req, project: notesOf(vol).Project})
}

// newBackup is a request for a backup, and whose it is to be.
type newBackup struct {
	CreateBackup
	project, user, container string
	metadata                 map[string]string
	limits                   map[string]int64 // of a project for which none were set; nil = no quota counts
}

// submitBackup checks a request and queues its job.
func (s *server) submitBackup(ctx context.Context, req newBackup) (Job, error) {
	vol, err := s.serve.Volume(ctx, req.Volume)
	if err != nil {
		return Job{}, err
	}
	notes := notesOf(vol)
	now := time.Now().UTC()
	rec := Backup{
		ID: uuid.NewString(), Name: req.Name, Description: req.Description, Status: catalog.Creating, Incremental: req.Incremental,
		Volume: vol.Name, VolumeID: vol.ID, Size: vol.Size, Created: now, Updated: now,
		Project: req.project, User: req.user, Container: req.container, Metadata: req.metadata,
	}
	if rec.VolumeNotes, err = notes.ofContent(vol); err != nil {
		return Job{}, err
	}
	var snap Snapshot
	if req.Snapshot != "" {
		if snap, err = s.snapshotOf(ctx, vol, req.Snapshot); err != nil {
			return Job{}, err
		}
		rec.SnapshotID, rec.Size, rec.DataTime = snap.ID, snap.Size, snap.Created
	} else if vol, err = s.mayBackUp(ctx, vol, req.Force); err != nil {
		return Job{}, err
	}
	if _, ierr := s.chooseParent(ctx, vol, snap, req); ierr != nil {
		return Job{}, ierr
	}
	if ierr := fitNotes(rec); ierr != nil {
		return Job{}, ierr
	}
	add := s.cat.PutBackup
	if req.limits != nil {
		add = func(ctx context.Context, b Backup) error { return s.cat.AddBackup(ctx, b, req.limits) }
	}
	if ierr := add(ctx, rec); ierr != nil {
		return Job{}, ierr
	}
	j, err := s.jobs.submit(ctx, Job{
		Kind: catalog.BackupJob, Volume: vol.Name, VolumeID: vol.ID, Snapshot: rec.SnapshotID, Backup: rec.ID, Progress: Progress{Phase: "waiting", Total: rec.Size},
	}, func(ctx context.Context, t *task) (any, error) { return s.runBackup(ctx, t, req, rec) })
	if err != nil {
		return Job{}, errors.Join(err, s.cat.RemoveBackup(context.WithoutCancel(ctx), rec.ID))
	}
	return j, nil
}

func (r *CreateBackup) check() error {
	switch {
	case r.Volume == "":
		return refuse(CodeInvalid, "no volume is named: say which to back up")
	case r.Incremental && r.Auto:
		return refuse(CodeInvalid, "incremental and auto exclude each other: auto is incremental when it can be")
	}
	if err := checkText("backup's name", r.Name); err != nil {
		return err
	}
	if err := checkText("backup's description", r.Description); err != nil {
		return err
	}
	if r.Retain != nil && (*r.Retain < 0 || *r.Retain > int64(MaxRetain/time.Second)) {
		return refuse(CodeInvalid, "a retention of %d seconds makes no sense: it is at most %d, a hundred years", *r.Retain, int64(MaxRetain/time.Second))
	}
	if uuid.Validate(r.Name) == nil {
		return refuse(CodeInvalid, "%q cannot be the name of a backup, as it looks like an ID: choose another", r.Name)
	}
	return nil
}

// checkText refuses what cannot be shown on one line.
func checkText(what, text string) error {
	if len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return refuse(CodeInvalid, "the %s must be at most %d bytes of printable text", what, maxText)
	}
	return nil
}

// mayRead refuses a backup of which there is nothing to read.
func mayRead(b Backup, done string) error {
	if b.Status == catalog.Available || b.Status == catalog.Restoring {
		return nil
	}
	return refuse(CodeConflict, "backup %s cannot be %s, as it is not available but in the state %q%s", b.ID, done, b.Status, inBrackets(b.FailReason))
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// snapshotOf finds a snapshot of a volume by its ID or name.
func (s *server) snapshotOf(ctx context.Context, vol Volume, ref string) (Snapshot, error) {
	l, err := s.serve.Snapshots(ctx, vol.ID)
	if err != nil {
		return Snapshot{}, err
	}
	var found []Snapshot
	for _, x := range l {
		if !x.Temporary && (x.ID == ref || x.Name == ref || vol.Name+"@"+x.Name == ref) {
			found = append(found, x)
		}
	}
	switch {
	case len(found) == 0:
		return Snapshot{}, refuse(CodeNotFound, "Snapshot %s could not be found for volume %s: \"cairn snapshot list\" shows what there is.", ref, vol.Name)
	case len(found) > 1:
		return Snapshot{}, refuse(CodeConflict, "%d snapshots of volume %s are named %q: give the ID of one", len(found), vol.Name, ref)
	case found[0].Status != "available":
		return Snapshot{}, refuse(CodeConflict, "snapshot %s cannot be backed up: %s", ref, found[0].Error)
	}
	return found[0], nil
}

// parent is what an incremental backup starts from.
type parent struct {
	backup     Backup // ID "" = none: the backup is full
	checkpoint string // that tells what changed since; "" = compare everything
	reason     string // why everything is compared
}

// chooseParent finds the backup that this one starts from, of the same project: the
// latest whose checkpoint the volume still has, or else the newest, with which
// everything has to be compared. [ErrConflict]: an incremental one was asked for, and
// there is none. For a snapshot it is the one whose checkpoint is nearest to it, before
// or behind. The date alone never decides what is read: what may differ, the checkpoint
// tells.
func (s *server) chooseParent(ctx context.Context, vol Volume, snap Snapshot, req newBackup) (parent, error) {
	if !req.Incremental && !req.Auto {
		return parent{}, nil
	}
	l, err := s.cat.BackupsOf(ctx, vol.ID)
	if err != nil {
		return parent{}, err
	}
	var newest parent
	position := preference(vol, snap)
	at := 0
	var best parent
	for _, b := range l {
		if b.Undecided || b.Unwanted || b.Shown != "" || b.Project != req.project || b.StoredAs != "" || b.Status != catalog.Available && b.Status != catalog.Restoring {
			continue
		}
		newest = parent{backup: b, reason: fmt.Sprintf("the checkpoint of backup %s is gone", b.ID)}
		if p := position[b.Checkpoint]; p > at {
			at, best = p, parent{backup: b, checkpoint: b.Checkpoint}
		}
	}
	switch {
	case at > 0:
		best.doubt(vol)
		return best, nil
	case newest.backup.ID != "" || req.Auto:
		return newest, nil
	default:
		return parent{}, refuse(CodeConflict, "No backups available to do an incremental backup: make a full backup of volume %s first, or use --auto.", vol.Name)
	}
}

// preference says which checkpoints of a volume make the better starts: the
// higher the better, from 1 on.
func preference(vol Volume, snap Snapshot) map[string]int {
	l := slices.Clone(vol.Checkpoints) // oldest first
	if snap.ID != "" {
		slices.SortStableFunc(l, func(a, b serve.Checkpoint) int {
			return cmp.Compare(b.Created.Sub(snap.Created).Abs(), a.Created.Sub(snap.Created).Abs())
		})
	}
	out := make(map[string]int, len(l))
	for i, c := range l {
		out[c.Name] = i + 1
	}
	return out
}

// doubt gives up the checkpoint if the volume does not vouch for it (any more).
func (p *parent) doubt(vol Volume) {
	if p.checkpoint == "" {
		return
	}
	for _, c := range vol.Checkpoints {
		if c.Name == p.checkpoint {
			if c.Doubt != "" {
				p.checkpoint, p.reason = "", c.Doubt
			}
			return
		}
	}
	p.checkpoint, p.reason = "", fmt.Sprintf("the checkpoint of backup %s is gone", p.backup.ID)
}
