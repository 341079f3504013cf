package agent

import (
	"context"

	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// What hosts do for each other.

// whose says whose a volume, or that of a snapshot, was when somebody was let at it; nil:
// nobody told of it. Its host knows it as of now: it may be somebody else's meanwhile.
type whose struct{ Project *string }

// still refuses a volume that is another project's by now.
func (w whose) still(ctx context.Context, b *blockStorage, id string) error {
	if w.Project == nil {
		return nil
	}
	v, err := b.planeVolume(ctx, id)
	if err == nil && notesOf(v).Project != *w.Project {
		err = cinderapi.NotFound("Volume", id)
	}
	return err
}

// stillSnapshot is still for a snapshot.
func (w whose) stillSnapshot(ctx context.Context, b *blockStorage, id string) error {
	if w.Project == nil {
		return nil
	}
	_, v, err := b.planeSnapshot(ctx, id)
	if err == nil && notesOf(v).Project != *w.Project {
		err = cinderapi.NotFound("Snapshot", id)
	}
	return err
}

type askUpdate struct {
	whose
	ID     string
	Update cinderapi.Update
}

type askState struct {
	whose
	ID, Status string
}

type askSize struct {
	whose
	ID   string
	Size int64
}

type askDelete struct {
	whose
	ID    string
	Force bool
}

type askVolume struct {
	By     Caller
	Volume cinderapi.NewVolume
}

type askSnapshot struct {
	whose
	By       Caller
	Snapshot cinderapi.NewSnapshot
}

type askBackup struct {
	whose
	By     Caller
	Backup cinderapi.NewBackup
}

type askRestore struct {
	whose
	By     Caller
	Backup string
	To     cinderapi.NewRestore
}

type askJob struct{ ID string }

// nothing is the answer of what only succeeds or fails.
type nothing struct{}

var (
	remoteCreateVolume = remote[askVolume, cinderapi.Volume]{"volume.create", func(b *blockStorage, ctx context.Context, q askVolume) (cinderapi.Volume, error) {
		return b.CreateVolume(ctx, q.By, q.Volume)
	}}
	remoteUpdateVolume = remote[askUpdate, cinderapi.Volume]{"volume.update", func(b *blockStorage, ctx context.Context, q askUpdate) (cinderapi.Volume, error) {
		if err := q.still(ctx, b, q.ID); err != nil {
			return cinderapi.Volume{}, err
		}
		return b.UpdateVolume(ctx, q.ID, q.Update)
	}}
	remoteExtendVolume = remote[askSize, nothing]{"volume.extend", func(b *blockStorage, ctx context.Context, q askSize) (nothing, error) {
		if err := q.still(ctx, b, q.ID); err != nil {
			return nothing{}, err
		}
		return nothing{}, b.ExtendVolume(ctx, q.ID, q.Size)
	}}
	remoteResetVolume = remote[askState, nothing]{"volume.reset", func(b *blockStorage, ctx context.Context, q askState) (nothing, error) {
		if err := q.still(ctx, b, q.ID); err != nil {
			return nothing{}, err
		}
		return nothing{}, b.ResetVolume(ctx, q.ID, q.Status)
	}}
	remoteDeleteVolume = remote[askDelete, nothing]{"volume.delete", func(b *blockStorage, ctx context.Context, q askDelete) (nothing, error) {
		if err := q.still(ctx, b, q.ID); err != nil {
			return nothing{}, err
		}
		return nothing{}, b.DeleteVolume(ctx, q.ID, q.Force)
	}}
	remoteCreateSnapshot = remote[askSnapshot, cinderapi.Snapshot]{"snapshot.create", func(b *blockStorage, ctx context.Context, q askSnapshot) (cinderapi.Snapshot, error) {
		if err := q.still(ctx, b, q.Snapshot.VolumeID); err != nil {
			return cinderapi.Snapshot{}, err
		}
		return b.CreateSnapshot(ctx, q.By, q.Snapshot)
	}}
	remoteUpdateSnapshot = remote[askUpdate, cinderapi.Snapshot]{"snapshot.update", func(b *blockStorage, ctx context.Context, q askUpdate) (cinderapi.Snapshot, error) {
		if err := q.stillSnapshot(ctx, b, q.ID); err != nil {
			return cinderapi.Snapshot{}, err
		}
		return b.UpdateSnapshot(ctx, q.ID, q.Update)
	}}
	remoteResetSnapshot = remote[askState, nothing]{"snapshot.reset", func(b *blockStorage, ctx context.Context, q askState) (nothing, error) {
		if err := q.stillSnapshot(ctx, b, q.ID); err != nil {
			return nothing{}, err
		}
		return nothing{}, b.ResetSnapshot(ctx, q.ID, q.Status)
	}}
	remoteDeleteSnapshot = remote[askDelete, nothing]{"snapshot.delete", func(b *blockStorage, ctx context.Context, q askDelete) (nothing, error) {
		if err := q.stillSnapshot(ctx, b, q.ID); err != nil {
			return nothing{}, err
		}
		return nothing{}, b.DeleteSnapshot(ctx, q.ID)
	}}
	remoteCreateBackup = remote[askBackup, cinderapi.Backup]{"backup.create", func(b *blockStorage, ctx context.Context, q askBackup) (cinderapi.Backup, error) {
		if err := q.still(ctx, b, q.Backup.VolumeID); err != nil {
			return cinderapi.Backup{}, err
		}
		return b.CreateBackup(ctx, q.By, q.Backup)
	}}
	remoteDeleteBackup = remote[askDelete, nothing]{"backup.delete", func(b *blockStorage, ctx context.Context, q askDelete) (nothing, error) {
		return nothing{}, b.DeleteBackup(ctx, q.ID, q.Force)
	}}
	remoteResetBackup = remote[askState, nothing]{"backup.reset", func(b *blockStorage, ctx context.Context, q askState) (nothing, error) {
		return nothing{}, b.ResetBackup(ctx, q.ID, q.Status)
	}}
	remoteRestore = remote[askRestore, cinderapi.Restoring]{"backup.restore", func(b *blockStorage, ctx context.Context, q askRestore) (cinderapi.Restoring, error) {
		if err := q.still(ctx, b, q.To.VolumeID); err != nil {
			return cinderapi.Restoring{}, err
		}
		return b.Restore(ctx, q.By, q.Backup, q.To)
	}}
	remoteCancelJob = remote[askJob, Job]{"job.cancel", func(b *blockStorage, ctx context.Context, q askJob) (Job, error) {
		return b.jobs.cancelJob(ctx, q.ID)
	}}
)

// servedCalls are what a host answers, by name.
var servedCalls = func() map[string]servedCall {
	m := map[string]servedCall{}
	for _, r := range []interface{ serve() (string, servedCall) }{
		remoteCreateVolume, remoteUpdateVolume, remoteExtendVolume, remoteResetVolume, remoteDeleteVolume,
		remoteCreateSnapshot, remoteUpdateSnapshot, remoteResetSnapshot, remoteDeleteSnapshot,
		remoteCreateBackup, remoteDeleteBackup, remoteResetBackup, remoteRestore, remoteCancelJob, remoteSight,
	} {
		name, f := r.serve()
		m[name] = f
	}
	return m
}()
