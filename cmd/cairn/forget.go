package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

// keepFlags name the parts of a retention policy.
var keepFlags = []struct{ name, usage string }{
	{"keep-last", "the newest `N`"},
	{"keep-hourly", "the newest of each of the last `N` hours that have a backup"},
	{"keep-daily", "of each of `N` days"},
	{"keep-weekly", "of each of `N` weeks"},
	{"keep-monthly", "of each of `N` months"},
	{"keep-yearly", "of each of `N` years"},
}

func policyFlags(more ...cli.Flag) []cli.Flag {
	for _, f := range keepFlags {
		more = append(more, &cli.IntFlag{Name: f.name, Usage: f.usage})
	}
	return more
}

func forgetCommand() *cli.Command {
	return leaf("forget", "VOLUME", "delete the backups of a volume that a retention policy does not keep: the one that is given, or else the volume's",
		agentRepoFlags(policyFlags(&cli.BoolFlag{Name: "dry-run", Usage: "only say what would go, and why"})...), withAgent(forget))
}

func policyCommand() *cli.Command {
	return leaf("policy", "VOLUME", "show or set which backups of a volume are kept: the others are deleted behind each new one",
		agentRepoFlags(policyFlags(&cli.BoolFlag{Name: "clear", Usage: "take the policy away: all are kept"})...), withAgent(volumePolicy))
}

// policyOf is the policy that the flags say.
func policyOf(c *cli.Context) (agent.Keep, error) {
	k := agent.Keep{}
	for i, to := range []*int{&k.Last, &k.Hourly, &k.Daily, &k.Weekly, &k.Monthly, &k.Yearly} {
		if *to = c.Int(keepFlags[i].name); *to < 0 {
			return k, usagef("--%s %d is not a number of backups", keepFlags[i].name, *to)
		}
	}
	return k, nil
}

func volumePolicy(c *cli.Context, a *agent.Client) error {
	k, err := policyOf(c)
	if err != nil {
		return err
	}
	volume := c.Args().First()
	switch {
	case c.Bool("clear") && !k.Empty():
		return usagef("--clear takes the policy away: leave the other flags out")
	case c.Bool("clear") || !k.Empty():
		err = a.SetPolicy(c.Context, volume, k)
	default:
		k, err = a.Policy(c.Context, volume)
	}
	if err != nil {
		return err
	}
	return emit(c, k, func(t *table) {
		if k.Empty() {
			t.row(fmt.Sprintf("volume %s has no policy: all its backups are kept", volume))
			return
		}
		for i, n := range []int{k.Last, k.Hourly, k.Daily, k.Weekly, k.Monthly, k.Yearly} {
			if n > 0 {
				t.field(keepFlags[i].name, n)
			}
		}
	})
}

// forgotten is the JSON of one decision.
type forgotten struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created_at"`
	Keep    bool      `json:"keep"`
	Why     string    `json:"why"`
	Deleted bool      `json:"deleted"`
}

func forget(c *cli.Context, a *agent.Client) error {
	k, err := policyOf(c)
	if err != nil {
		return err
	}
	if k.Empty() {
		if k, err = a.Policy(c.Context, c.Args().First()); err != nil && !errors.Is(err, agent.ErrNotFound) {
			return err
		}
	}
	if k.Empty() {
		return usagef("no policy is given, and the volume has none, which would keep nothing: give --keep-last N, --keep-daily N and the like, or set one with \"cairn volume policy\"")
	}
	backups, err := backupsOf(c, a, c.Args().First())
	if err != nil {
		return err
	}
	var out []forgotten
	var errs []error
	for _, d := range k.Decide(backups, time.Local) {
		f := forgotten{ID: d.Backup.ID, Name: d.Backup.Name, Created: d.Backup.Created, Keep: d.Keep, Why: d.Why}
		if !d.Keep && !c.Bool("dry-run") && c.Err() == nil {
			switch failed := a.DeleteBackup(c.Context, d.Backup.ID); {
			case failed == nil:
				f.Deleted = true
			case errors.Is(failed, agent.ErrBusy):
				f.Keep, f.Why = true, failed.Error()
			default:
				errs = append(errs, failed)
			}
		}
		out = append(out, f)
	}
	err = emit(c, list(out), func(t *table) {
		t.row("CREATED", "NAME", "DECISION", "WHY", "ID")
		for _, f := range out {
			decision := "keep"
			switch {
			case f.Deleted:
				decision = "deleted"
			case !f.Keep:
				decision = "delete"
			}
			t.row(when(f.Created), dash(f.Name), decision, f.Why, f.ID)
		}
	})
	return errors.Join(append(errs, err, c.Err())...)
}

// backupsOf returns the backups of one volume, by its name or ID, also of one
// that is gone.
func backupsOf(c *cli.Context, a *agent.Client, ref string) ([]agent.Backup, error) {
	all, err := a.Backups(c.Context)
	if err != nil {
		return nil, err
	}
	var out []agent.Backup
	volumes := make(map[string]bool)
	for _, b := range all {
		if b.Volume == ref || b.VolumeID == ref {
			out = append(out, b)
			volumes[b.VolumeID] = true
		}
	}
	switch {
	case len(volumes) > 1:
		return nil, fmt.Errorf("%d volumes that have backups are or were named %s: name one by its ID, which \"cairn backup list %[2]s -o json\" shows: %w", len(volumes), ref, agent.ErrConflict)
	case out == nil:
		_, err = a.Volume(c.Context, ref)
	}
	return out, err
}
