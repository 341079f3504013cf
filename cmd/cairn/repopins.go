package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/repository"
)

func repoPins(c *cli.Context, r *repository.Repository) error {
	pins, err := r.Pins(c.Context)
	if err != nil {
		return err
	}
	out := make([]agent.Pin, 0, len(pins))
	for _, p := range pins {
		out = append(out, agent.Pin{ID: p.ID, Backup: p.Backup, Volume: p.Volume, By: p.By, Agent: p.Agent, Since: p.Since})
	}
	return emit(c, out, func(t *table) {
		t.row("BACKUP", "VOLUME", "USE", "AGENT", "SINCE", "ID")
		for _, p := range out {
			t.row(p.Backup, p.Volume, p.By, p.Agent, when(p.Since), p.ID)
		}
	})
}

func repoUnpin(c *cli.Context, r *repository.Repository) error {
	id := c.Args().First()
	if err := r.Unpin(c.Context, id); err != nil {
		if errors.Is(err, repository.ErrNotFound) {
			err = fmt.Errorf("there is no pin %s: \"cairn repo pins\" shows what there is: %w", id, err)
		}
		return err
	}
	return emitDeleted(c, "pin", id)
}
