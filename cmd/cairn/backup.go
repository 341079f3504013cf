package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

func backupCommands() *cli.Command {
	return group("backup", "backups of volumes in the repository",
		leaf("create", "VOLUME", "back a volume up, in full unless told otherwise", agentRepoFlags(
			&cli.BoolFlag{Name: "incremental", Usage: "read only what changed since the last backup; refused when there is none to start from"},
			&cli.BoolFlag{Name: "auto", Usage: "incremental when it can be, else full"},
			&cli.BoolFlag{Name: "force", Usage: "also while a guest uses the volume and it is not quiesced: as after a power failure of the guest"},
			&cli.StringFlag{Name: "snapshot", Usage: "back this `snapshot` of the volume up, not its present content"},
			&cli.StringFlag{Name: "name", Usage: "`name` of the backup"},
			&cli.StringFlag{Name: "description", Usage: "`text` to keep with it"},
			&cli.StringFlag{Name: "retain", Usage: "for this `time`, such as 30d, nobody can delete it; 0 = no retention, whatever the agent's default is"},
			noWaitFlag(),
		), withAgent(createBackup)),
		leaf("list", "[VOLUME]", "all backups, or those of a volume", agentRepoFlags(), withAgent(listBackups)),
		leaf("show", "BACKUP", "one backup", agentRepoFlags(), withAgent(showBackup)),
		leaf("delete", "BACKUP", "delete a backup; those that were made from it are complete and stay", agentRepoFlags(), withAgent(deleteBackup)),
		forgetCommand(),
		leaf("trash", "", "deleted backups that no prune has removed yet", agentRepoFlags(), withAgent(listTrash)),
		leaf("undelete", "BACKUP", "take a backup out of the trash", agentRepoFlags(), withAgent(undeleteBackup)),
		leaf("restore", "BACKUP", "restore a backup to a new volume, over an existing one, to a file or to an NBD server", agentRepoFlags(
			&cli.StringFlag{Name: "volume", Usage: "over this existing `volume`: only blocks that differ are written"},
			&cli.StringFlag{Name: "name", Usage: "to a new volume of this `name`"},
			&cli.StringFlag{Name: "file", Usage: "to this `file` of the agent's machine"},
			&cli.StringFlag{Name: "nbd", Usage: "over this export of any NBD server, by its `URI`: only blocks that differ are written"},
			&cli.BoolFlag{Name: "overwrite", Usage: "replace the file if it exists"},
			verifyFlag(), skipDamagedFlag(),
			noWaitFlag(),
		), withAgent(restoreBackup)),
	)
}

func verifyFlag() cli.Flag {
	return &cli.BoolFlag{Name: "verify", Usage: "also read back from the target what was written; what comes from the stores is always verified"}
}

func skipDamagedFlag() cli.Flag {
	return &cli.BoolFlag{Name: "skip-damaged", Usage: "restore all that can be read, say what could not, and exit with 7"}
}

func noWaitFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-wait", Usage: "start the job and leave it: \"cairn job show\" tells how it does"}
}

func createBackup(c *cli.Context, a *agent.Client) error {
	req := agent.CreateBackup{
		Volume: c.Args().First(), Snapshot: c.String("snapshot"), Name: c.String("name"), Description: c.String("description"),
		Incremental: c.Bool("incremental"), Auto: c.Bool("auto"), Force: c.Bool("force"),
	}
	if req.Incremental && req.Auto {
		return usagef("--incremental and --auto exclude each other: --auto is incremental when it can be, --incremental fails when it cannot")
	}
	if c.IsSet("retain") {
		d, err := parseTime(c.String("retain"))
		if err != nil {
			return fmt.Errorf("--retain: %w", err)
		}
		seconds := int64(d / time.Second)
		req.Retain = &seconds
	}
	job, err := a.CreateBackup(c.Context, req)
	if err != nil {
		return err
	}
	if !c.Bool("no-wait") {
		if _, err = wait(c, a, job); err != nil {
			return err
		}
	}
	b, err := a.Backup(c.Context, job.Backup)
	if err != nil {
		return err
	}
	return emit(c, backupWithJob{b, job.ID}, func(t *table) {
		backupFields(t, b)
		if c.Bool("no-wait") {
			t.field("job", job.ID)
		}
	})
}

// backupWithJob is a backup's JSON with the ID of the job that makes it.
type backupWithJob struct {
	backup agent.Backup
	job    string
}

// MarshalJSON puts the job behind the fields of the backup, whose order stays.
func (b backupWithJob) MarshalJSON() ([]byte, error) {
	record, err := json.Marshal(b.backup)
	if err != nil {
		return nil, err
	}
	job, err := json.Marshal(b.job)
	if err != nil {
		return nil, err
	}
	record = append(record[:len(record)-1], `,"job":`...)
	return append(append(record, job...), '}'), nil
}

func backupFields(t *table, b agent.Backup) {
	kind := "full"
	if b.Incremental {
		kind = "incremental, from " + b.Parent
	}
	t.field("id", b.ID)
	t.field("name", b.Name)
	t.field("description", b.Description)
	t.field("status", b.Status)
	t.field("fail reason", b.FailReason)
	t.field("warning", b.Warning)
	t.field("volume", b.Volume)
	t.field("size", exact(b.Size))
	t.field("kind", kind)
	t.field("compared in full because", b.FullCompareReason)
	t.field("created", when(b.Created))
	if b.Quiesced {
		t.field("quiesced", "yes")
	}
	if !b.RetainUntil.IsZero() {
		t.field("retained until", when(b.RetainUntil))
	}
	if b.Status == agent.BackupCreating {
		return
	}
	t.field("took", took(b.Duration))
	t.field("read", exact(b.BytesRead))
	t.field("audited", exact(b.BytesAudited))
	t.field("changed", exact(b.BytesChanged))
	t.field("new", exact(b.BytesNew))
	t.field("stored", exact(b.BytesStored))
	t.field("with parity", exact(b.BytesShards))
}

func listBackups(c *cli.Context, a *agent.Client) error {
	all, err := a.Backups(c.Context)
	if err != nil {
		return err
	}
	backups := all
	if ref := c.Args().First(); ref != "" {
		backups = nil
		for _, b := range all { // a volume that is gone still has backups
			if b.Volume == ref || b.VolumeID == ref {
				backups = append(backups, b)
			}
		}
		if backups == nil {
			if _, err := a.Volume(c.Context, ref); err != nil {
				return err
			}
		}
	}
	return emitBackups(c, backups)
}

func emitBackups(c *cli.Context, backups []agent.Backup) error {
	return emit(c, list(backups), func(t *table) {
		t.row("NAME", "VOLUME", "SIZE", "KIND", "STATUS", "CREATED", "READ", "STORED", "ID")
		for _, b := range backups {
			kind := "full"
			if b.Incremental {
				kind = "incr"
			}
			t.row(dash(b.Name), b.Volume, human(b.Size), kind, b.Status, when(b.Created), human(b.BytesRead), human(b.BytesStored), b.ID)
		}
	})
}

func showBackup(c *cli.Context, a *agent.Client) error {
	b, err := a.Backup(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emit(c, b, func(t *table) { backupFields(t, b) })
}

// deletedBackup is what the deletion of a backup prints.
type deletedBackup struct {
	Deleted string      `json:"deleted"`
	Kind    string      `json:"kind"`
	UsedBy  []agent.Pin `json:"used_by"` // what it holds stays until they end
}

func deleteBackup(c *cli.Context, a *agent.Client) error {
	b, err := a.Backup(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	if err = a.DeleteBackup(c.Context, b.ID); err != nil {
		return err
	}
	// It is deleted, whether or not the stores say who still uses it.
	pins, _ := a.Pins(c.Context)
	users := slices.DeleteFunc(pins, func(p agent.Pin) bool { return p.Backup != b.ID })
	return emit(c, deletedBackup{Deleted: c.Args().First(), Kind: "backup", UsedBy: list(users)}, func(t *table) {
		t.row(fmt.Sprintf("backup %s is deleted", c.Args().First()))
		for _, p := range users {
			t.row(fmt.Sprintf("it is still %s by %s since %s: its data stays until that ends", p.By, p.Agent, when(p.Since)))
		}
	})
}

func listTrash(c *cli.Context, a *agent.Client) error {
	l, err := a.Trash(c.Context)
	if err != nil {
		return err
	}
	return emitBackups(c, l)
}

func undeleteBackup(c *cli.Context, a *agent.Client) error {
	b, err := a.Undelete(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emit(c, b, func(t *table) { backupFields(t, b) })
}

func restoreBackup(c *cli.Context, a *agent.Client) error {
	req := agent.Restore{
		Backup: c.Args().First(), Volume: c.String("volume"), NewVolume: c.String("name"), NBD: c.String("nbd"), Overwrite: c.Bool("overwrite"),
		Verify: c.Bool("verify"), SkipDamaged: c.Bool("skip-damaged"),
	}
	var err error
	if req.File, err = absolute(c.String("file")); err != nil {
		return err
	}
	targets := 0
	for _, s := range []string{req.Volume, req.NewVolume, req.File, req.NBD} {
		if s != "" {
			targets++
		}
	}
	if targets > 1 {
		return usagef("--volume, --name, --file and --nbd exclude each other: restore to one place at a time")
	}
	if req.Overwrite && req.File == "" {
		return usagef("--overwrite goes with --file; an existing volume is named with --volume")
	}
	job, err := a.Restore(c.Context, req)
	if err != nil {
		return err
	}
	if c.Bool("no-wait") {
		return emitJob(c, job)
	}
	if job, err = wait(c, a, job); err != nil {
		return err
	}
	r, err := agent.DecodeRestore(job)
	if err != nil {
		return err
	}
	err = emit(c, r, func(t *table) {
		t.field("backup", r.Backup)
		t.field("volume", r.Volume)
		t.field("file", r.File)
		t.field("nbd", r.NBD)
		t.field("warning", r.Warning)
		t.field("read", exact(r.BytesRead))
		t.field("written", exact(r.BytesWritten))
		t.field("took", took(job.Finished.Sub(job.Started)))
		skippedFields(t, r)
	})
	return errors.Join(err, partial(r))
}

// skippedFields shows what a restore passed over.
func skippedFields(t *table, r agent.RestoreResult) {
	const most = 20
	if r.BytesSkipped == 0 {
		return
	}
	t.field("not restored", exact(r.BytesSkipped))
	for i, s := range r.Skipped {
		if i == most {
			t.field("", fmt.Sprintf("and %d more ranges", len(r.Skipped)-most))
			break
		}
		t.field("", fmt.Sprintf("bytes %d to %d: %s", s.Offset, s.Offset+s.Length, clean(s.Why)))
	}
}

// partial is the error of a restore that passed something over: never a success.
func partial(r agent.RestoreResult) error {
	if r.BytesSkipped == 0 {
		return nil
	}
	return fmt.Errorf("%d bytes of backup %s are lost and were not restored; all others were (%w)", r.BytesSkipped, r.Backup, errDamage)
}

// saved says what holes and dedup spared, for the progress bar.
func saved(p agent.Progress, kind string) string {
	s := ""
	if p.Hole > 0 {
		s += ", holes " + human(p.Hole)
	}
	if same := p.Read - p.New; kind == "backup" && same > 0 && p.Read > 0 {
		s += ", known " + human(same)
	}
	if p.Stored > 0 {
		s += ", stored " + human(p.Stored)
	}
	return s
}
