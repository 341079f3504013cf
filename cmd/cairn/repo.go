package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/restore"
)

func repoCommands() *cli.Command {
	return group("repo", "the repository itself, straight on its stores: no agent, no catalog",
		repoInitCommand(),
		validateStoreCommand(),
		leaf("backups", "", "all backups that the stores hold", repositoryFlags(), withRepository(repoBackups)),
		leaf("restore", "BACKUP FILE", "restore a backup to a file or a block device", repositoryFlags(
			&cli.BoolFlag{Name: "overwrite", Usage: "replace the file if it exists; a device always needs this"},
			verifyFlag(), skipDamagedFlag(),
		), withRepository(repoRestore)),
		leaf("mount", "DIR", "mount all backups until Ctrl-C or \"cairn umount\"", repositoryFlags(mountFlags()...), withRepository(repoMount)),
		leaf("export", "BACKUP", "serve a backup over NBD, read-only, until Ctrl-C", repositoryFlags(
			&cli.StringFlag{Name: "socket", Usage: "`path` of the unix socket to make"},
		), withRepository(repoExport)),
		leaf("check", "", "prove that every backup can be restored; writes nothing, but for which packs are beyond repair", repositoryFlags(
			readDataFlag(),
			&cli.BoolFlag{Name: "from-start", Usage: "read everything, also what a check that was interrupted had read"},
		), withRepository(repoCheck)),
		leaf("repair", "", "rebuild what stores lost or changed; without --apply only say what", repositoryFlags(
			&cli.BoolFlag{Name: "apply", Usage: "do it"},
			&cli.BoolFlag{Name: "read-data", Usage: "read every byte, to find damage that nothing else shows"},
		), withRepository(repoRepair)),
		repoCopyCommand(),
		leaf("status", "", "the stores of the repository, and what they are owed", repositoryFlags(), withRepository(repoStatus)),
		leaf("replace-store", "LOST NEW", "put the store NEW in the place of the member LOST, by its URL or ID; NEW is empty, and may be where LOST was", repositoryFlags(), withRepository(replaceStore)),
		leaf("add-store", "NEW", "make the empty store NEW a member beside the others; new packs are spread over all", repositoryFlags(), withRepository(addStore)),
		changesCommand(),
		leaf("prune", "", "remove for good what nothing needs; needs every store, and backups may run meanwhile", repositoryFlags(pruneFlags()...), withRepository(repoPrune)),
		keyCommands(),
		leaf("pins", "", "who uses backups: what they hold stays until that ends, also when they are deleted", repositoryFlags(), withRepository(repoPins)),
		leaf("unpin", "PIN", "remove a pin whose user is no more", repositoryFlags(), withRepository(repoUnpin)),
		leaf("trash", "", "deleted backups that no prune has removed yet", repositoryFlags(), withRepository(repoTrash)),
		leaf("undelete", "BACKUP", "take a backup out of the trash", repositoryFlags(), withRepository(repoUndelete)),
	)
}

// record is a backup of the repository as the agent would show it: one shape
// of JSON for both.
func record(b repository.Backup) agent.Backup {
	return agent.Backup{
		ID: b.ID, Name: b.Name, Description: b.Description, Project: b.Project, Status: agent.BackupStatus(b.State),
		Volume: b.Volume, VolumeID: b.VolumeID, Size: b.Size, Incremental: b.Incremental, Parent: b.Parent,
		BytesRead: b.Stats.Read, BytesAudited: b.Stats.Audited, BytesChanged: b.Stats.Changed, BytesNew: b.Stats.New,
		BytesStored: b.Stats.Stored, BytesShards: b.Stats.Shards, Created: b.Created, Session: b.Session, RetainUntil: b.RetainUntil,
	}
}

func repoBackups(c *cli.Context, r *repository.Repository) error {
	backups, err := r.Backups(c.Context)
	if err != nil {
		return err
	}
	return emitBackups(c, records(backups))
}

// records are backups of the repository as the agent would show them.
func records(backups []repository.Backup) []agent.Backup {
	out := make([]agent.Backup, 0, len(backups))
	for _, b := range backups {
		out = append(out, record(b))
	}
	return out
}

// storedBackup is the backup that the first argument names.
func storedBackup(c *cli.Context, r *repository.Repository) (repository.Backup, error) {
	b, err := r.Backup(c.Context, c.Args().First())
	if errors.Is(err, repository.ErrNotFound) {
		err = fmt.Errorf("%w: \"cairn repo backups\" shows what there is", err)
	}
	return b, err
}

func repoRestore(c *cli.Context, r *repository.Repository) (err error) {
	b, err := storedBackup(c, r)
	if err != nil {
		return err
	}
	name, err := absolute(c.Args().Get(1))
	if err != nil {
		return err
	}
	img, err := r.Image(c.Context, b.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	bar := newBar(c.App.ErrWriter)
	o := restore.Options{BlockSize: b.BlockSize, Verify: c.Bool("verify"), Progress: func(p restore.Progress) {
		bar.show("restore"+saved(agent.Progress{Hole: p.Hole}, "restore"), p.Done, p.Total)
	}}
	var skipped agent.Skipped
	if c.Bool("skip-damaged") {
		skipped.Into(&o)
	}
	p, err := restoreTo(c, img, name, o)
	bar.end()
	if errors.Is(err, repository.ErrDamaged) {
		err = fmt.Errorf("%w; --skip-damaged restores all the rest", err)
	}
	if err != nil {
		return err
	}
	result := agent.RestoreResult{Backup: b.ID, File: name, BytesRead: p.Read, BytesWritten: p.Written, BytesSkipped: p.Skipped, Skipped: skipped.Ranges()}
	err = emit(c, result, func(t *table) {
		t.field("backup", b.ID)
		t.field("file", name)
		t.field("read", exact(p.Read))
		t.field("written", exact(p.Written))
		skippedFields(t, result)
	})
	return errors.Join(err, partial(result))
}

// restoreTo restores to a new file, or to a block device in place.
func restoreTo(c *cli.Context, img restore.Image, name string, o restore.Options) (restore.Progress, error) {
	fi, err := os.Stat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return restore.Progress{}, fmt.Errorf("restore to %s: %w", name, err)
	}
	if err == nil && fi.Mode().Type() == fs.ModeDevice {
		if !c.Bool("overwrite") {
			return restore.Progress{}, usagef("%s is a block device: everything on it would be lost; --overwrite does it", name)
		}
		return restore.Device(c.Context, img, name, o)
	}
	return restore.File(c.Context, img, name, restore.FileOptions{Options: o, Overwrite: c.Bool("overwrite")})
}

// oneDevice reports whether all folders are in one file system.
func oneDevice(paths []string) bool {
	devices := make(map[uint64]bool)
	for _, p := range paths {
		var st syscall.Stat_t
		if err := syscall.Stat(p, &st); err != nil {
			return false
		}
		devices[st.Dev] = true
	}
	return len(devices) == 1
}
