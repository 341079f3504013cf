package agent

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/serve"
)

// Values of Checkpoint.Owner.
const (
	OwnerCairn = "cairn" // made for a backup, whose ID is its name
	OwnerOther = "other" // made for whoever asked for it by a name
)

// Checkpoint is a position in a volume's history of changes. NBD clients of the
// volume, and of its snapshots, read what changed since as "qemu:dirty-bitmap:NAME".
type Checkpoint struct {
	serve.Checkpoint

	Owner string `json:"owner"`
	// Backup is the ID of the backup that a checkpoint of Cairn's is for; empty: of
	// none that the agent has recorded, and nothing starts from it.
	Backup string `json:"backup,omitempty"`
	// Warning says why others' checkpoints may miss changes; Cairn knows of its own.
	Warning string `json:"warning,omitempty"`
}

// newCheckpoint is the body of a request for a checkpoint.
type newCheckpoint struct {
	Name string `json:"name"`
}

// checkpoints lists a volume's checkpoints, oldest first, with what changed since.
func (s *server) checkpoints(ctx context.Context, r request) (any, error) {
	v, err := s.serve.Volume(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	recorded, err := s.backupsOfCheckpoints(ctx, v.ID)
	if err != nil {
		return nil, err
	}
	warning, err := s.unseenWriters(ctx, v)
	if err != nil {
		return nil, err
	}
	l := make([]Checkpoint, len(v.Checkpoints))
	for i, c := range v.Checkpoints {
		l[i] = Checkpoint{Checkpoint: c, Owner: OwnerCairn, Backup: recorded[c.Name]}
		if !ofCairn(c.Name) {
			l[i].Owner, l[i].Warning = OwnerOther, warning
		}
	}
	return l, nil
}

// createCheckpoint makes a checkpoint for somebody else's backups. The tidying never
// touches it, as it is in no catalog.
func (s *server) createCheckpoint(ctx context.Context, r request) (any, error) {
	var req newCheckpoint
	if err := r.decode(&req); err != nil {
		return nil, err
	}
	if err := checkName("a checkpoint", req.Name); err != nil {
		return nil, err
	}
	v, err := s.serve.Volume(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	if err = s.seesAllWrites(ctx, v); err != nil {
		return nil, err
	}
	c, err := s.serve.CreateCheckpoint(ctx, v.ID, req.Name)
	return Checkpoint{Checkpoint: c, Owner: OwnerOther}, err
}

// deleteCheckpoint forgets a checkpoint; one of Cairn's own only with force.
func (s *server) deleteCheckpoint(ctx context.Context, r request) (any, error) {
	force, err := strconv.ParseBool(orElse(r.value("force"), "false"))
	if err != nil {
		return nil, refuse(CodeInvalid, "force %q is neither true nor false", clip(r.value("force")))
	}
	v, err := s.serve.Volume(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	if !ofCairn(r.name) || !hasCheckpoint(v, r.name) {
		return nil, s.serve.DropCheckpoint(ctx, v.ID, r.name)
	}
	if !force {
		return nil, refuse(CodeConflict, "checkpoint %s is Cairn's own, and incrementals of volume %s start from it: it goes by itself when the backup is deleted; with --force it goes now, and an incremental that would have started there compares everything", r.name, v.Name)
	}
	// A job may be about to read what changed since.
	if v, err = s.idleVolume(ctx, v.ID, "delete the checkpoint"); err != nil {
		return nil, err
	}
	defer s.wakeAllTidy()
	return nil, s.serve.DropCheckpoint(ctx, v.ID, r.name)
}

// wakeAllTidy has every repository forget what of its records is gone.
func (s *server) wakeAllTidy() {
	for _, o := range s.all() {
		o.wakeTidy()
	}
}

// ofCairn says whose a checkpoint is: Cairn names its own by the backup's ID, and no
// other gets such a name. So it is also known of those that are in no catalog any more.
func ofCairn(name string) bool { return uuid.Validate(name) == nil }

// backupsOfCheckpoints returns the backups that the agent has recorded for a volume's
// checkpoints, by name.
func (s *server) backupsOfCheckpoints(ctx context.Context, volumeID string) (map[string]string, error) {
	recorded := map[string]string{}
	for _, o := range s.all() {
		l, err := o.cat.Checkpoints(ctx)
		if err != nil {
			return nil, err
		}
		for _, c := range l {
			if c.VolumeID == volumeID {
				recorded[c.Name] = c.Backup
			}
		}
	}
	return recorded, nil
}

// seesAllWrites refuses a checkpoint that would miss changes: what another host writes
// to a medium of several hosts is in its own data plane's record. Cairn's backups ask
// those hosts; who reads the bitmap by NBD cannot.
func (s *server) seesAllWrites(ctx context.Context, v Volume) error {
	why, err := s.unseenWriters(ctx, v)
	if err == nil && why != "" {
		err = refuse(CodeConflict, "a checkpoint of volume %s could miss changes, as %s: make full copies, or let cairn backup create make incrementals, which asks that host", v.Name, why)
	}
	return err
}

// unseenWriters says which other host may write to a volume; "" is none.
func (s *server) unseenWriters(ctx context.Context, v Volume) (string, error) {
	l, err := s.alsoHave(ctx, v.ID)
	if err != nil {
		return "", err
	}
	l = slices.DeleteFunc(l, func(v catalog.Volume) bool { return v.Kind == catalog.GoneKind })
	if len(l) == 0 {
		return "", nil
	}
	hosts := make([]string, len(l))
	for i, v := range l {
		hosts[i] = v.Host
	}
	slices.Sort(hosts)
	return fmt.Sprintf("host %s has the volume too and what it writes is not recorded here", strings.Join(hosts, ", ")), nil
}

// pairable refuses checkpoints that cannot be made with a snapshot of these volumes.
func (s *server) pairable(ctx context.Context, req CreateSnapshots) error {
	for i, name := range req.Checkpoints {
		if name == "" || i >= len(req.Volumes) {
			continue
		}
		if err := checkName("a checkpoint", name); err != nil {
			return err
		}
		// A volume that there is not is refused by the data plane.
		if v, err := s.serve.Volume(ctx, req.Volumes[i]); err == nil {
			if err := s.seesAllWrites(ctx, v); err != nil {
				return err
			}
		}
	}
	return nil
}
