package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/internal/repository"
)

// repairResult is the JSON of a repair.
type repairResult struct {
	OK      bool          `json:"ok"`
	Applied bool          `json:"applied"`
	Stores  []repairStore `json:"stores"`
	Lost    []string      `json:"lost"`
	Backups []checkBackup `json:"backups"` // those that need what is lost
	Unread  []string      `json:"unread,omitempty"`

	Beyond      int    `json:"packs_beyond_repair"`
	Unpublished string `json:"unpublished,omitempty"`
}

type repairStore struct {
	URL     string `json:"url"`
	ID      string `json:"id"`
	State   string `json:"state"`
	Error   string `json:"error,omitempty"`
	Missing int    `json:"missing"`
	Damaged int    `json:"damaged"`
	Mended  int    `json:"mended"`
}

// repoRepair gives stores what they lack. Something that is left to mend, or
// cannot be, is the exit code 7.
func repoRepair(c *cli.Context, r *repository.Repository) error {
	bar := newBar(c.App.ErrWriter)
	o := repository.RepairOptions{
		Apply: c.Bool("apply"), ReadData: c.Bool("read-data"),
		Progress: func(p repository.CheckProgress) { bar.show(p.Phase, p.Done, p.Total) },
	}
	rep, err := r.Repair(c.Context, o)
	bar.end()
	if err != nil {
		return err
	}
	result := repairResult{OK: rep.OK(), Applied: o.Apply, Stores: []repairStore{}, Lost: list(rep.Lost), Backups: []checkBackup{}, Unread: rep.Unread, Beyond: rep.Beyond, Unpublished: rep.Unpublished}
	for _, b := range rep.Backups {
		result.Backups = append(result.Backups, checkBackupOf(b))
	}
	for _, s := range rep.Stores {
		result.Stores = append(result.Stores, repairStore{
			URL: s.Status.URL, ID: s.Status.ID, State: string(s.Status.State), Error: s.Status.Error,
			Missing: s.Missing, Damaged: s.Damaged, Mended: s.Mended,
		})
	}
	err = emit(c, result, func(t *table) {
		t.row("STORE", "STATE", "MISSING", "DAMAGED", "MENDED")
		for _, s := range result.Stores {
			t.row(dash(s.URL), s.State, s.Missing, s.Damaged, s.Mended)
		}
		if len(result.Backups) > 0 {
			t.row()
			checkBackupRows(t, result.Backups)
		}
	})
	switch {
	case err != nil || result.OK:
		return err
	case len(result.Lost) > 0:
		return fmt.Errorf("%d packs or records cannot be rebuilt from what the stores have, such as: %s: %d backups need them: bring back the stores that are down%s (%w)",
			len(result.Lost), result.Lost[0], len(result.Backups), healing(result.Beyond, result.Unpublished), errDamage)
	case len(result.Backups) > 0:
		return fmt.Errorf("%d backups cannot be restored in full%s (%w)", len(result.Backups), healing(result.Beyond, result.Unpublished), errDamage)
	case len(result.Unread) > 0:
		return fmt.Errorf("%d shards were not read, as their stores did not answer, such as: %s: repair again when they do (%w)", len(result.Unread), result.Unread[0], errDamage)
	case !o.Apply:
		return fmt.Errorf("nothing was changed: --apply mends what is listed (%w)", errDamage)
	default:
		return fmt.Errorf("not everything is mended: repair again when all stores are up and take what is written (%w)", errDamage)
	}
}
