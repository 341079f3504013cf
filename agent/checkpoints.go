package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/serve"
)

// keepCheckpoints is how many checkpoints of a volume stay: with two, deleting
// the newest backup does not cost the next one a full read.
const keepCheckpoints = 2

// tidyCheckpoints drops the agent's checkpoints that no backup will start from.
// Others' are never touched: only what is recorded as the agent's is.
//
// Each repository has checkpoints of its own: what changed since a backup of one
// says nothing about a backup of another. Only a backup that was copied has one
// name, and one checkpoint, in two; that goes with the last of them.
func (s *server) tidyCheckpoints(ctx context.Context) error {
	if l := s.hub.broken; len(l) > 0 { // nobody knows which it needs
		return fmt.Errorf("checkpoints are kept: %w", l[0].err)
	}
	defer s.tidying()()
	ours, err := s.cat.Checkpoints(ctx)
	if err != nil || len(ours) == 0 {
		return err
	}
	vols, err := s.serve.Volumes(ctx)
	if err != nil {
		return err
	}
	byID := map[string]Volume{}
	for _, v := range vols {
		byID[v.ID] = v
	}
	for _, c := range ours {
		v, there := byID[c.VolumeID]
		if there && v.Status == serve.StatusError {
			continue // nobody knows what it has
		}
		keep, kerr := s.keepCheckpoint(ctx, c, v, ours)
		if kerr != nil || keep {
			err = errors.Join(err, kerr)
			continue
		}
		shared, serr := s.sharesCheckpoint(ctx, c)
		if serr != nil {
			err = errors.Join(err, serr)
			continue
		}
		if there && !shared && hasCheckpoint(v, c.Name) {
			if derr := s.serve.DropCheckpoint(ctx, v.ID, c.Name); derr != nil && !errors.Is(derr, serve.ErrNotFound) {
				err = errors.Join(err, derr)
				continue
			}
		}
		err = errors.Join(err, s.cat.RemoveCheckpoint(ctx, c.VolumeID, c.Name))
	}
	return err
}

// sharesCheckpoint says whether the agent has recorded a checkpoint for another
// repository as well, whose tidying drops it.
func (s *server) sharesCheckpoint(ctx context.Context, c catalog.Checkpoint) (bool, error) {
	for _, o := range s.all() {
		if o == s {
			continue
		}
		theirs, err := o.cat.Checkpoints(ctx)
		if err != nil {
			return false, err
		}
		for _, t := range theirs {
			if t.VolumeID == c.VolumeID && t.Name == c.Name {
				return true, nil
			}
		}
	}
	return false, nil
}

func hasCheckpoint(v Volume, name string) bool {
	for _, c := range v.Checkpoints {
		if c.Name == name {
			return true
		}
	}
	return false
}

// keepCheckpoint says whether a checkpoint may be started from, or might be.
func (s *server) keepCheckpoint(ctx context.Context, c catalog.Checkpoint, v Volume, ours []catalog.Checkpoint) (bool, error) {
	// A job of the volume may be reading what changed since.
	if _, busy := s.jobs.pool.using(func(j Job) bool { return j.VolumeID == c.VolumeID }); busy {
		return true, nil
	}
	wanted := func(backup string) (bool, error) {
		b, err := s.cat.Backup(ctx, backup)
		if errors.Is(err, catalog.ErrNotFound) {
			return false, nil
		}
		return b.Undecided || b.Status == catalog.Available || b.Status == catalog.Restoring || b.Status == catalog.Creating, err
	}
	if ok, err := wanted(c.Backup); !ok || err != nil {
		return err != nil, err
	}
	// The newest ones, by position in the volume's history.
	owner := map[string]string{}
	for _, o := range ours {
		if o.VolumeID == c.VolumeID {
			owner[o.Name] = o.Backup
		}
	}
	newer := 0
	for i := len(v.Checkpoints) - 1; i >= 0 && v.Checkpoints[i].Name != c.Name; i-- {
		backup, ok := owner[v.Checkpoints[i].Name]
		if !ok {
			continue
		}
		ok, err := wanted(backup)
		if err != nil {
			return true, err
		}
		if b, berr := s.cat.Backup(ctx, backup); ok && berr == nil && !b.Undecided {
			newer++
		}
	}
	return newer < keepCheckpoints && hasCheckpoint(v, c.Name), nil
}

// tidySnapshots deletes the temporary snapshots of backups that have ended.
func (s *server) tidySnapshots(ctx context.Context) error {
	l, err := s.serve.Snapshots(ctx, "")
	if err != nil {
		return err
	}
	backups, err := s.cat.BackupsListed(ctx, "")
	if err != nil {
		return err
	}
	// One of which no backup is known is another agent's: the data plane
	// drops it when it restarts.
	ours := map[string]string{}
	for _, b := range backups {
		if b.Status == catalog.Creating && !s.own(b) {
			continue
		}
		ours[tempSnapshot(b.ID)] = b.ID
	}
	for _, snap := range l {
		id, ok := ours[snap.Name]
		if !snap.Temporary || !ok {
			continue
		}
		if _, busy := s.jobs.pool.using(func(j Job) bool { return j.Backup == id }); busy {
			continue
		}
		if derr := s.serve.DeleteSnapshot(ctx, snap.ID); derr != nil && !errors.Is(derr, serve.ErrNotFound) {
			err = errors.Join(err, derr)
		}
	}
	return err
}
