package agent

import (
	"context"
	"time"
)

// leavePatience is how long a client that has just hung up is waited for, as the data
// plane does: it is noticed late, and what it did not flush has to reach the disk first.
const leavePatience = time.Second

// mayBackUp refuses a volume that cannot be backed up as it is, and returns it as it is
// now. One that is in use needs force, as its backup is as after a power failure, unless
// it is quiesced.
func (s *server) mayBackUp(ctx context.Context, vol Volume, force bool) (Volume, error) {
	force = force || !QuiesceOf(vol).Empty()
	for end := time.Now().Add(leavePatience); vol.InUse && !force && time.Now().Before(end); {
		if !pause(ctx, 20*time.Millisecond) {
			return vol, context.Cause(ctx)
		}
		now, err := s.serve.Volume(ctx, vol.ID)
		if err != nil {
			return vol, err
		}
		vol = now
	}
	if vol.Status == "error" {
		return vol, refuse(CodeConflict, "volume %s cannot be backed up, as it cannot be read: %s", vol.Name, vol.Error)
	}
	if vol.InUse && !force {
		return vol, refuse(CodeBusy, "Backing up an in-use volume must use the force flag: %s is used by %s, and its backup will be as after a power failure; or back up a snapshot, or say how it is quiesced (cairn volume quiesce).", vol.Name, orElse(vol.Writer, "a client"))
	}
	return vol, nil
}
