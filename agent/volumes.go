package agent

import (
	"context"
	"log/slog"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// validName is what volumes, snapshots and exports may be called: it becomes
// the name of a socket.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// checkName refuses names that cannot be a socket's, or look like an ID.
func checkName(what, name string) error {
	if !validName.MatchString(name) {
		return refuse(CodeInvalid, "%q cannot be the name of %s: use up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit", clip(name), what)
	}
	if uuid.Validate(name) == nil {
		return refuse(CodeInvalid, "%q cannot be the name of %s, as it looks like an ID: choose another", name, what)
	}
	return nil
}

// clip keeps what somebody typed from filling the screen.
func clip(name string) string {
	if len(name) <= 80 {
		return name
	}
	return strings.ToValidUTF8(name[:80], "") + "…"
}

func (s *server) volumes(ctx context.Context) (any, error) {
	return list(s.serve.Volumes(ctx))
}

func (s *server) volume(ctx context.Context, r request) (any, error) {
	return s.serve.Volume(ctx, r.ref)
}

func (s *server) createVolume(ctx context.Context, r request) (any, error) {
	var req CreateVolume
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	if err := s.freeVolumeName(req.Name); err != nil {
		return nil, err
	}
	if req.File != "" {
		if err := s.outside(realPath(req.File)); err != nil {
			return nil, err
		}
	}
	if req.Quiesce != nil {
		if err := req.Quiesce.check(Volume{Name: req.Name, Kind: req.kind()}); err != nil {
			return nil, err
		}
	}
	if err := req.noteQuiesce(); err != nil {
		return nil, err
	}
	if !req.foreign() {
		return s.serve.CreateVolume(ctx, req.plane())
	}
	x, err := req.record()
	if err != nil {
		return nil, err
	}
	return s.hub.foreign.create(ctx, x)
}

// freeVolumeName refuses a volume's name that is not one or that an export
// has: both would want the same socket.
func (s *server) freeVolumeName(name string) error {
	if err := checkName("a volume", name); err != nil {
		return err
	}
	for _, o := range s.all() {
		if _, ok := o.exports.get(name); ok {
			return refuse(CodeConflict, "a backup is exported as %s: unexport it or name the volume otherwise", name)
		}
	}
	return nil
}

func (s *server) extendVolume(ctx context.Context, r request) (any, error) {
	var req extendVolume
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	v, err := s.idleVolume(ctx, r.ref, "extend it")
	if err != nil {
		return nil, err
	}
	return s.serve.ExtendVolume(ctx, v.ID, req.Size)
}

func (s *server) reopenVolume(ctx context.Context, r request) (any, error) {
	v, err := s.idleVolume(ctx, r.ref, "reopen it")
	if err != nil {
		return nil, err
	}
	return s.serve.ReopenVolume(ctx, v.ID)
}

func (s *server) deleteVolume(ctx context.Context, r request) (any, error) {
	return nil, s.removeVolume(ctx, r.ref)
}

// removeVolume deletes a volume that no job works on.
func (s *server) removeVolume(ctx context.Context, ref string) error {
	v, err := s.idleVolume(ctx, ref, "delete it")
	if err != nil {
		return err
	}
	if err := s.serve.DeleteVolume(ctx, v.ID); err != nil {
		return err
	}
	// Its checkpoints went with it.
	for _, o := range s.all() {
		o.wakeTidy()
		if err := o.cat.SetSetting(ctx, policyKey(v.ID), ""); err != nil {
			// No other volume will have this ID: what is left harms nobody.
			o.log.LogAttrs(ctx, slog.LevelWarn, "policy of a deleted volume not forgotten", slog.String("volume", v.Name), slog.Any("error", err))
		}
	}
	return nil
}

// idleVolume finds a volume that no job works on.
func (s *server) idleVolume(ctx context.Context, ref, what string) (Volume, error) {
	v, err := s.serve.Volume(ctx, ref)
	if err != nil {
		return v, err
	}
	if j, ok := s.jobs.pool.using(func(j Job) bool { return j.VolumeID == v.ID && !j.Left }); ok {
		return v, refuse(CodeBusy, "volume %s has a %s job (%s): wait for it or cancel it, then %s", v.Name, j.Kind, j.ID, what)
	}
	return v, nil
}

func (s *server) snapshots(ctx context.Context, r request) (any, error) {
	return list(s.serve.Snapshots(ctx, r.value("volume")))
}

func (s *server) snapshot(ctx context.Context, r request) (any, error) {
	return s.serve.Snapshot(ctx, r.ref)
}

func (s *server) deleteSnapshot(ctx context.Context, r request) (any, error) {
	snap, err := s.serve.Snapshot(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	if err := s.unreadSnapshot(ctx, snap); err != nil {
		return nil, err
	}
	return nil, s.serve.DeleteSnapshot(ctx, snap.ID)
}

// unreadSnapshot refuses a snapshot from which a job reads or will read.
func (s *server) unreadSnapshot(ctx context.Context, snap Snapshot) error {
	for _, o := range s.all() {
		backups, err := o.cat.BackupsOf(ctx, snap.VolumeID)
		if err != nil {
			return err
		}
		for _, b := range backups {
			if b.Status == catalog.Creating && (b.SnapshotID == snap.ID || tempSnapshot(b.ID) == snap.Name) {
				return refuse(CodeBusy, "backup %s reads snapshot %s: wait for it or cancel its job", b.ID, snap.Name)
			}
		}
	}
	return nil
}

func (s *server) revertVolume(ctx context.Context, r request) (any, error) {
	snap, err := s.serve.Snapshot(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	if _, err := s.idleVolume(ctx, snap.VolumeID, "revert it"); err != nil {
		return nil, err
	}
	return nil, s.serve.RevertVolume(ctx, snap.ID)
}
