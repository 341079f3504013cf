package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repository"
)

func pruneFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "dry-run", Usage: "only say what would go"},
		&cli.BoolFlag{Name: "large", Usage: "also if it is more than a fifth of the repository"},
		&cli.IntFlag{Name: "compact", Value: 50, Usage: "move what is alive of packs of which at least `PERCENT` is dead; 100: of none"},
		&cli.DurationFlag{Name: "silence", Value: repository.DefaultSilence, Usage: "abort backups that made no progress for this `time`: their writers are taken for dead"},
	}
}

// pruneResult is the JSON of a prune.
type pruneResult struct {
	DryRun  bool  `json:"dry_run"`
	Trash   int   `json:"trash"`
	Backups int   `json:"backups_removed"`
	Aborted int   `json:"aborted_removed"`
	Packs   int   `json:"packs_removed"`
	Bytes   int64 `json:"bytes_removed"`
	Kept    int64 `json:"bytes_kept"`
	Fenced  int   `json:"fenced"`
	Waiting int   `json:"packs_waiting"`
	Left    int   `json:"packs_left"` // for the next prune, as the list of this one is full
	Locked  int   `json:"locked"`

	Compacted int      `json:"packs_compacted"`
	Healed    int      `json:"packs_healed"` // of these
	Moved     int64    `json:"bytes_moved"`
	Freed     int64    `json:"bytes_freed_by_compaction"`
	Problems  []string `json:"problems,omitempty"`
}

func repoPrune(c *cli.Context, r *repository.Repository) error {
	bar := newBar(c.App.ErrWriter)
	o := repository.PruneOptions{
		DryRun: c.Bool("dry-run"), Silence: c.Duration("silence"),
		Progress: func(p repository.PruneProgress) { bar.show(p.Step, p.Done, p.Total) },
	}
	if o.Silence <= 0 {
		return usagef("--silence %s is not a time to wait for: give one such as 10m", o.Silence)
	}
	percent := c.Int("compact")
	if percent < 1 || percent > 100 {
		return usagef("--compact %d is not a part of a pack: give a number of percent from 1 to 100", percent)
	}
	o.Compact = float64(percent) / 100
	if c.Bool("large") {
		o.MaxShare = 1
	}
	rep, err := r.Prune(c.Context, o)
	bar.end()
	if err != nil {
		return err
	}
	result := pruneResult{
		DryRun: o.DryRun, Trash: rep.Trash, Backups: rep.Backups, Aborted: rep.Aborted, Packs: rep.Packs,
		Bytes: rep.Bytes, Kept: rep.Kept, Fenced: rep.Fenced, Waiting: rep.Waiting, Left: rep.Left, Locked: rep.Locked,
		Compacted: rep.Compacted, Healed: rep.Healed, Moved: rep.Moved, Freed: rep.Freed, Problems: rep.Problems,
	}
	return emit(c, result, func(t *table) {
		t.field("in the trash", fmt.Sprintf("%d backups; a prune removes those that an earlier prune has seen there", rep.Trash))
		removed := "removed"
		if o.DryRun {
			removed = "would be removed"
		}
		t.field("backups", fmt.Sprintf("%d %s, and the records of %d that were never made", rep.Backups, removed, rep.Aborted))
		t.field("packs", fmt.Sprintf("%d %s", rep.Packs, removed))
		t.field("space", exact(rep.Bytes)+" "+removed)
		if rep.Compacted > 0 {
			moved := "moved out of %d packs, which frees %s"
			if o.DryRun {
				moved = "would be moved out of %d packs, which frees about %s"
			}
			t.field("compacted", fmt.Sprintf("%s "+moved, exact(rep.Moved), rep.Compacted, exact(max(rep.Freed, 0))))
		}
		if rep.Healed > 0 {
			healed := "%d packs were beyond repair, and backups are whole again that needed them"
			if o.DryRun {
				healed = "%d packs are beyond repair, and backups would be whole again that need them"
			}
			t.field("healed", fmt.Sprintf(healed, rep.Healed))
		}
		for _, p := range rep.Problems {
			t.field("problem", p)
		}
		t.field("kept", exact(rep.Kept))
		if rep.Locked > 0 {
			t.field("locked", fmt.Sprintf("%d objects that their stores retain still: a later prune removes them", rep.Locked))
		}
		if rep.Left > 0 {
			t.field("next time", fmt.Sprintf("%d packs that one prune has no room for: prune again", rep.Left))
		}
		if rep.Waiting > 0 {
			t.field("next time", fmt.Sprintf("%d packs of backups that were not decided when it began", rep.Waiting))
		}
	})
}

func repoTrash(c *cli.Context, r *repository.Repository) error {
	l, err := r.Trash(c.Context)
	if err != nil {
		return err
	}
	return emitBackups(c, records(l))
}

func repoUndelete(c *cli.Context, r *repository.Repository) error {
	b, err := r.Undelete(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	result := record(b)
	return emit(c, result, func(t *table) { backupFields(t, result) })
}
