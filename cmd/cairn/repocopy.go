package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repocopy"
	"github.com/cairnbackup/cairn/internal/repository"
)

func repoCopyCommand() *cli.Command {
	cmd := leaf("copy", "[BACKUP] ...", "copy backups to another repository, without reading their volumes again", repositoryFlags(
		&cli.StringSliceFlag{Name: "to-store", Usage: "`folder` of a store of the other repository, or 's3://BUCKET/PREFIX?…'; once for each store"},
		&cli.StringFlag{Name: "to-password-file", Usage: "`file` with the other repository's password (that of --password-file if not given)"},
		&cli.StringFlag{Name: "volume", Usage: "copy all backups of this `volume`"},
		&cli.BoolFlag{Name: "all", Usage: "copy all backups"},
		&cli.BoolFlag{Name: "older", Usage: "with --volume and --all: also those that are older than the newest of their volume in the other repository"},
		&cli.BoolFlag{Name: "dry-run", Usage: "only say what would be copied, and how much would be read"},
	), withRepository(repoCopy))
	cmd.Description = "A copy keeps the backup's ID, name, times and parent, and is whole in itself: it needs\n" +
		"neither its parent nor the repository that it comes from. What the other repository has\n" +
		"already is skipped, so that the same command from a timer keeps it up to date. Where it\n" +
		"has another backup of the volume, only the blocks that differ are read.\n\n" +
		"--volume and --all bring what is newer than the newest backup of its volume over there:\n" +
		"what was deleted there, by a retention of its own, does not come back. --older brings\n" +
		"everything that is missing; so does the name of a backup, for that one.\n\n" +
		"A backup of which the source has lost something is not copied, the others are. When one\n" +
		"fails for another reason, the later ones of its volume wait for the next run. When too\n" +
		"few stores answer or have room, nothing more is tried. All that is said, and the exit\n" +
		"code is not 0. A backup that is deleted while the command runs is no failure."
	return cmd
}

func repoCopy(c *cli.Context, src *repository.Repository) (err error) {
	wanted, err := copyWanted(c, src)
	if err != nil {
		return err
	}
	dst, err := destination(c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	bar := newBar(c.App.ErrWriter)
	var printed error
	o := repocopy.Options{
		DryRun: c.Bool("dry-run"), Newer: !c.Args().Present() && !c.Bool("older"), By: "\"cairn repo copy\"",
		Progress: func(p repocopy.Progress) { bar.show("copy "+p.Backup.Volume, p.Done, p.Total) },
		Done: func(r repocopy.Result) {
			bar.end()
			printed = errors.Join(printed, say(c, "%s", clean(copyLine(r, c.Bool("dry-run")))))
		},
	}
	results, err := repocopy.Run(c.Context, src, dst, wanted, o)
	bar.end()
	if len(results) == 0 && err != nil {
		return err
	}
	sum := copySum(results)
	sum.DryRun, sum.Repository = o.DryRun, dst.Info().ID
	printed = errors.Join(printed, emit(c, sum, func(t *table) { copySumFields(t, sum) }))
	if err == nil {
		err = notCopied(results, c.Args().Present())
	}
	return errors.Join(err, printed)
}

// copyWanted is what of the source is asked for.
func copyWanted(c *cli.Context, src *repository.Repository) ([]repository.Backup, error) {
	ways := 0
	for _, given := range []bool{c.Args().Present(), c.IsSet("volume"), c.Bool("all")} {
		if given {
			ways++
		}
	}
	switch {
	case ways != 1:
		return nil, usagef("say what to copy: the names or IDs of backups, or --volume VOLUME, or --all")
	case c.Bool("older") && c.Args().Present():
		return nil, usagef("--older is for --volume and --all: a backup that is named is copied whatever its age")
	case len(c.StringSlice("to-store")) == 0:
		return nil, usagef("--to-store is missing: name each store of the repository that is copied to")
	}
	l, err := src.Backups(c.Context)
	if err != nil || c.Bool("all") {
		return l, err
	}
	if c.IsSet("volume") {
		return backupsOfVolume(l, c.String("volume"))
	}
	var wanted []repository.Backup
	for _, ref := range c.Args().Slice() {
		b, err := backupNamed(l, ref)
		if err != nil {
			return nil, err
		}
		wanted = append(wanted, b)
	}
	return wanted, nil
}

func backupNamed(l []repository.Backup, ref string) (repository.Backup, error) {
	var named []repository.Backup
	for _, b := range l {
		if b.ID == ref {
			return b, nil
		}
		if b.Name == ref {
			named = append(named, b)
		}
	}
	switch len(named) {
	case 0:
		return repository.Backup{}, fmt.Errorf("backup %q: %w: \"cairn repo backups\" shows what there is", ref, repository.ErrNotFound)
	case 1:
		return named[0], nil
	}
	return repository.Backup{}, fmt.Errorf("%d backups are called %q: name one by its ID: %w", len(named), ref, repository.ErrAmbiguous)
}

func backupsOfVolume(l []repository.Backup, ref string) ([]repository.Backup, error) {
	var found []repository.Backup
	volumes := map[string]bool{}
	for _, b := range l {
		if b.VolumeID == ref || b.Volume == ref {
			found = append(found, b)
			volumes[b.VolumeID] = true
		}
	}
	switch len(volumes) {
	case 0:
		return nil, missingf("there is no backup of a volume %q: \"cairn repo backups\" shows what there is", ref)
	case 1:
		return found, nil
	}
	return nil, fmt.Errorf("%d volumes are called %q: give the ID of one, as \"cairn repo backups -o json\" shows it: %w", len(volumes), ref, repository.ErrAmbiguous)
}

// destination opens the repository that is copied to. Its dedup index is beside
// those of the agent: one that the agent uses now is done without.
func destination(c *cli.Context) (*repository.Repository, error) {
	var o repository.Options
	var err error
	named := c.String("to-password-file")
	if named != "" {
		o.Password, err = readPassword(named)
	} else {
		o.Password, err = password(c.String("password-file"), c.String("state"))
	}
	if err != nil {
		return nil, fmt.Errorf("the repository that is copied to: %w", err)
	}
	if !c.Bool("dry-run") {
		o.CacheDir = filepath.Join(c.String("state"), "cache")
	}
	r, err := openRepository(c.Context, c.StringSlice("to-store"), o)
	switch {
	case err == nil:
		return r, nil
	case errors.Is(err, repository.ErrPassword) && named != "":
		err = fmt.Errorf("%w in %s: name another with --to-password-file", err, named)
	case errors.Is(err, repository.ErrPassword):
		err = fmt.Errorf("%w: name its password's file with --to-password-file", err)
	}
	return nil, fmt.Errorf("the repository that is copied to: %w", err)
}
