package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/nbd"
)

func checkpointCommands() *cli.Command {
	return group("checkpoint", "positions in a volume's history, for incrementals of other backup tools",
		leaf("create", "VOLUME NAME", "count changes of a volume from now on, as the NBD context qemu:dirty-bitmap:NAME of the volume and its snapshots", agentFlags(), withAgent(createCheckpoint)),
		leaf("list", "VOLUME", "a volume's checkpoints, whose each is, and how much changed since", agentFlags(), withAgent(listCheckpoints)),
		leaf("delete", "VOLUME NAME", "forget a checkpoint; others stay exact", agentFlags(
			&cli.BoolFlag{Name: "force", Usage: "also one of Cairn's own: the next incremental backup compares everything"},
		), withAgent(deleteCheckpoint)),
	)
}

func createCheckpoint(c *cli.Context, a *agent.Client) error {
	volume, name := c.Args().Get(0), c.Args().Get(1)
	p, err := a.CreateCheckpoint(c.Context, volume, name)
	if err != nil {
		return err
	}
	return emit(c, p, func(t *table) {
		t.field("checkpoint", p.Name)
		t.field("volume", volume)
		t.field("created", when(p.Created))
		t.field("context", nbd.ContextDirtyBitmap+p.Name)
	})
}

func listCheckpoints(c *cli.Context, a *agent.Client) error {
	l, err := a.Checkpoints(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emit(c, list(l), func(t *table) {
		t.row("NAME", "OWNER", "CREATED", "CHANGED SINCE", "NOTE")
		for _, p := range l {
			t.row(p.Name, ownerOf(p), when(p.Created), changedSince(p), p.Doubt+p.Warning)
		}
	})
}

// ownerOf says in a table whose a checkpoint is; Cairn's have the names of backups.
func ownerOf(p agent.Checkpoint) string {
	switch {
	case p.Owner != agent.OwnerCairn:
		return "other"
	case p.Backup == "":
		return "Cairn, of no backup"
	case p.Backup == p.Name:
		return "Cairn, of this backup"
	default:
		return "Cairn, of backup " + p.Backup
	}
}

// changedSince is how much a reader of the bitmap has to read.
func changedSince(p agent.Checkpoint) string {
	switch {
	case p.Doubt != "":
		return "everything"
	case p.DirtyBytes == nil:
		return "-"
	default:
		return human(*p.DirtyBytes)
	}
}

func deleteCheckpoint(c *cli.Context, a *agent.Client) error {
	volume, name := c.Args().Get(0), c.Args().Get(1)
	if err := a.DeleteCheckpoint(c.Context, volume, name, c.Bool("force")); err != nil {
		return err
	}
	return emitDeleted(c, "checkpoint", fmt.Sprintf("%s of volume %s", name, volume))
}
