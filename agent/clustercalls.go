package agent

import (
	"context"
	"errors"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// CreateVolume makes a volume, at this host if it takes any.
func (c cluster) CreateVolume(ctx context.Context, by Caller, v cinderapi.NewVolume) (cinderapi.Volume, error) {
	host, err := c.place(ctx)
	if err != nil {
		return cinderapi.Volume{}, err
	}
	return remoteCreateVolume.at(ctx, c.blockStorage, host, askVolume{by, v})
}

// UpdateVolume changes a volume at its host.
func (c cluster) UpdateVolume(ctx context.Context, id string, u cinderapi.Update) (cinderapi.Volume, error) {
	host, of, err := c.volumeHost(ctx, id)
	if err != nil {
		return cinderapi.Volume{}, err
	}
	return remoteUpdateVolume.at(ctx, c.blockStorage, host, askUpdate{of, id, u})
}

// ExtendVolume enlarges a volume at its host.
func (c cluster) ExtendVolume(ctx context.Context, id string, size int64) error {
	host, of, err := c.volumeHost(ctx, id)
	if err == nil {
		_, err = remoteExtendVolume.at(ctx, c.blockStorage, host, askSize{of, id, size})
	}
	return err
}

// ResetVolume sets a volume's state at its host.
func (c cluster) ResetVolume(ctx context.Context, id, status string) error {
	host, of, err := c.volumeHost(ctx, id)
	if err == nil {
		_, err = remoteResetVolume.at(ctx, c.blockStorage, host, askState{of, id, status})
	}
	return err
}

// DeleteVolume deletes a volume at its host.
func (c cluster) DeleteVolume(ctx context.Context, id string, force bool) error {
	host, of, err := c.volumeHost(ctx, id)
	if err == nil {
		_, err = remoteDeleteVolume.at(ctx, c.blockStorage, host, askDelete{of, id, force})
	}
	return err
}

// CreateSnapshot takes a snapshot at the volume's host.
func (c cluster) CreateSnapshot(ctx context.Context, by Caller, s cinderapi.NewSnapshot) (cinderapi.Snapshot, error) {
	host, of, err := c.volumeHost(ctx, s.VolumeID)
	if err != nil {
		return cinderapi.Snapshot{}, err
	}
	return remoteCreateSnapshot.at(ctx, c.blockStorage, host, askSnapshot{of, by, s})
}

// UpdateSnapshot changes a snapshot at its host.
func (c cluster) UpdateSnapshot(ctx context.Context, id string, u cinderapi.Update) (cinderapi.Snapshot, error) {
	host, of, err := c.snapshotHost(ctx, id)
	if err != nil {
		return cinderapi.Snapshot{}, err
	}
	return remoteUpdateSnapshot.at(ctx, c.blockStorage, host, askUpdate{of, id, u})
}

// ResetSnapshot sets a snapshot's state at its host.
func (c cluster) ResetSnapshot(ctx context.Context, id, status string) error {
	host, of, err := c.snapshotHost(ctx, id)
	if err == nil {
		_, err = remoteResetSnapshot.at(ctx, c.blockStorage, host, askState{of, id, status})
	}
	return err
}

// DeleteSnapshot deletes a snapshot at its host.
func (c cluster) DeleteSnapshot(ctx context.Context, id string) error {
	host, of, err := c.snapshotHost(ctx, id)
	if err == nil {
		_, err = remoteDeleteSnapshot.at(ctx, c.blockStorage, host, askDelete{whose: of, ID: id})
	}
	return err
}

// CreateBackup begins a backup at the volume's host.
func (c cluster) CreateBackup(ctx context.Context, by Caller, n cinderapi.NewBackup) (cinderapi.Backup, error) {
	host, of, err := c.volumeHost(ctx, n.VolumeID)
	if err != nil {
		return cinderapi.Backup{}, err
	}
	return remoteCreateBackup.at(ctx, c.blockStorage, host, askBackup{of, by, n})
}

// Restore begins to restore: at the host of the volume, or, to a new one, at this host
// if it takes any. Any host can read any backup.
func (c cluster) Restore(ctx context.Context, by Caller, id string, to cinderapi.NewRestore) (cinderapi.Restoring, error) {
	var host string
	var of whose
	var err error
	if to.VolumeID == "" {
		host, err = c.place(ctx)
	} else {
		host, of, err = c.volumeHost(ctx, to.VolumeID)
	}
	if err != nil {
		return cinderapi.Restoring{}, err
	}
	return remoteRestore.at(ctx, c.blockStorage, host, askRestore{of, by, id, to})
}

// DeleteBackup deletes a backup. One that is being made is canceled where that is.
func (c cluster) DeleteBackup(ctx context.Context, id string, force bool) error {
	host, err := c.maker(ctx, id)
	if err == nil {
		_, err = remoteDeleteBackup.at(ctx, c.blockStorage, host, askDelete{ID: id, Force: force})
	}
	return err
}

// maker is the host that makes a backup, if it is being made and that is up, or else this
// one.
func (c cluster) maker(ctx context.Context, id string) (string, error) {
	x, err := c.backupOf(ctx, id)
	if err != nil || x.Status != catalog.Creating || x.Host == c.host {
		return c.host, err
	}
	err = c.upHost(ctx, x.Host)
	if isUnavailable(err) {
		return c.host, nil
	}
	return x.Host, err
}

// ResetBackup sets a backup's state. Who works on it is canceled, wherever that is.
func (c cluster) ResetBackup(ctx context.Context, id, status string) error {
	l, err := c.cat.JobsElsewhere(ctx, id)
	if err != nil {
		return err
	}
	asked := map[string]bool{}
	for _, j := range l {
		if asked[j.Host] {
			continue
		}
		asked[j.Host] = true
		if _, rerr := remoteResetBackup.at(ctx, c.blockStorage, j.Host, askState{ID: id, Status: status}); rerr != nil {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return err
	}
	if x, xerr := c.backupOf(ctx, id); xerr != nil {
		return xerr
	} else if len(asked) > 0 && x.Status == catalog.Creating {
		return nil // its host does it
	}
	return c.blockStorage.ResetBackup(ctx, id, status)
}
