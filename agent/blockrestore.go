package agent

import (
	"context"
	"errors"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// Restore begins to restore a backup.
func (b *blockStorage) Restore(ctx context.Context, by Caller, id string, r cinderapi.NewRestore) (cinderapi.Restoring, error) {
	if r.VolumeID == "" {
		return b.restoreToNew(ctx, by, id, cinderapi.NewVolume{Name: r.Name})
	}
	x, err := b.restorable(ctx, id)
	if err != nil {
		return cinderapi.Restoring{}, err
	}
	v, err := b.planeVolume(ctx, r.VolumeID)
	if err != nil {
		return cinderapi.Restoring{}, err
	}
	n := notesOf(v)
	if status := b.underway().status(v, n); status != "available" {
		return cinderapi.Restoring{}, cinderapi.Invalid("Invalid volume: Volume to be restored to must be available, but the current status is %q.", status)
	}
	if v.Size < x.Size {
		return cinderapi.Restoring{}, cinderapi.Invalid("Invalid volume: volume size %d is too small to restore backup of size %d.", gib(v.Size), gib(x.Size))
	}
	if err = mayHold(n.Type, x); err != nil {
		return cinderapi.Restoring{}, err
	}
	return b.restoreInto(ctx, x, v, func(ctx context.Context) error {
		now, verr := b.planeVolume(ctx, v.ID)
		if verr == nil && b.underway().status(now, notesOf(now)) != "available" {
			verr = cinderapi.Invalid("Invalid volume: Volume to be restored to must be available, but another request was faster.")
		}
		return verr
	})
}

// restorable returns a backup that can be restored.
func (b *blockStorage) restorable(ctx context.Context, id string) (Backup, error) {
	x, err := b.backupOf(ctx, id)
	if err != nil {
		return x, err
	}
	if b.closed() != nil {
		return x, notOpen()
	}
	if status := shownStatus(x); status != string(catalog.Available) {
		return x, cinderapi.Invalid("Invalid backup: Backup status must be available, but the current status is %q.", status)
	}
	return x, nil
}

// mayHold refuses to put the content of an encrypted volume into one that says it is
// not.
func mayHold(volumeType string, x Backup) error {
	was, _ := readNotes(x.VolumeNotes) // none are those of a volume that is not encrypted
	source, _ := typeOf(was.Type)
	target, _ := typeOf(volumeType)
	if source.Encrypted && !target.Encrypted {
		return cinderapi.Invalid("Invalid volume type: The backup is of an encrypted volume: it can be restored only to a volume of an encrypted type.")
	}
	return nil
}

// restoreToNew makes a volume of the caller's and restores to it. What the request leaves
// open is as the volume had it that was backed up.
func (b *blockStorage) restoreToNew(ctx context.Context, by Caller, id string, req cinderapi.NewVolume) (cinderapi.Restoring, error) {
	x, err := b.restorable(ctx, id)
	if err != nil {
		return cinderapi.Restoring{}, err
	}
	n := volumeNotes{Status: noteRestoring}
	if was, ok := readNotes(x.VolumeNotes); ok {
		n.Metadata, n.Bootable = was.Metadata, was.Bootable
		req.Description = orElse(req.Description, was.Description)
		req.Type = orElse(req.Type, was.Type)
	}
	req.Name = orElse(req.Name, "restore_backup_"+x.ID)
	if size := gib(x.Size); req.Size < size {
		if req.Size != 0 {
			return cinderapi.Restoring{}, cinderapi.Invalid("Invalid input received: Volume size '%d' GB cannot be smaller than the backup size %d GB. It must be >= backup size.", req.Size, size)
		}
		req.Size = size
	}
	if err = mayHold(req.Type, x); err != nil {
		return cinderapi.Restoring{}, err
	}
	v, err := b.makeVolume(ctx, by, req, n)
	if err != nil {
		return cinderapi.Restoring{}, err
	}
	out, err := b.restoreInto(ctx, x, v, func(context.Context) error { return nil })
	if err != nil {
		return out, errors.Join(err, b.removeVolume(context.WithoutCancel(ctx), v.ID))
	}
	return out, nil
}

// restoreInto begins to restore to a volume, and notes it there first: whatever happens
// from here on, it is never shown as one that holds what it should. still says whether
// the volume may be restored to, as of now.
func (b *blockStorage) restoreInto(ctx context.Context, x Backup, v Volume, still func(context.Context) error) (cinderapi.Restoring, error) {
	// A client that hangs up must not leave a volume noted as restoring.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
	defer cancel()
	// Of several requests for one backup, or one volume, one is first. The backup must
	// not be deleted between the check and the job.
	for _, id := range []string{x.ID, v.ID} {
		unlock, err := b.targets.lock(ctx, id)
		if err != nil {
			return cinderapi.Restoring{}, fault(err, "")
		}
		defer unlock()
	}
	if _, err := b.restorable(ctx, x.ID); err != nil {
		return cinderapi.Restoring{}, err
	}
	x, release, err := b.claimBackup(ctx, x.ID, "restored")
	if err != nil {
		return cinderapi.Restoring{}, fault(err, "Invalid backup: ")
	}
	defer release()
	if err := still(ctx); err != nil {
		return cinderapi.Restoring{}, err
	}
	set := func(ctx context.Context, status string) error {
		_, err := b.note(ctx, v.ID, func(n *volumeNotes) { n.Status = status })
		return err
	}
	if err := set(ctx, noteRestoring); err != nil {
		return cinderapi.Restoring{}, fault(err, "Invalid volume: ")
	}
	if _, err := b.submitRestore(ctx, Restore{Backup: x.ID, Volume: v.ID}, x); err != nil {
		// If this fails as well, the tidying calls it an error: nobody has to trust it.
		return cinderapi.Restoring{}, errors.Join(fault(err, "Invalid backup: "), set(context.WithoutCancel(ctx), ""))
	}
	n := notesOf(v)
	return cinderapi.Restoring{BackupID: x.ID, VolumeID: v.ID, VolumeName: n.name(v)}, nil
}
