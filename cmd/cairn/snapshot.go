package main

import (
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

func snapshotCommands() *cli.Command {
	return group("snapshot", "points in time of volumes, on the same disk",
		leaf("create", "VOLUME ...", "snapshot one volume, or several at one instant", agentFlags(
			&cli.StringFlag{Name: "name", Usage: "`name` of the snapshot"},
			&cli.BoolFlag{Name: "force", Usage: "also while a guest uses the volume: as after a power failure of the guest"},
			&cli.BoolFlag{Name: "quiesce", Usage: "while the volumes are quiesced, each as volume quiesce has it"},
			&cli.StringFlag{Name: "checkpoint", Usage: "`name` of a checkpoint of each volume at the same instant, for the next incremental of a backup tool other than Cairn (see cairn checkpoint)"},
		), withAgent(createSnapshots)),
		leaf("list", "[VOLUME]", "all snapshots, or those of a volume", agentFlags(), withAgent(listSnapshots)),
		leaf("show", "SNAPSHOT", "one snapshot: its ID, its name, or VOLUME@NAME", agentFlags(), withAgent(showSnapshot)),
		leaf("delete", "SNAPSHOT", "delete a snapshot", agentFlags(), withAgent(deleteSnapshot)),
		leaf("revert", "SNAPSHOT", "give its volume the content of a snapshot again", agentFlags(), withAgent(revertVolume)),
	)
}

func createSnapshots(c *cli.Context, a *agent.Client) error {
	req := agent.CreateSnapshots{Volumes: c.Args().Slice(), Name: c.String("name"), Force: c.Bool("force")}
	if name := c.String("checkpoint"); name != "" {
		req.Checkpoints = slices.Repeat([]string{name}, len(req.Volumes))
	}
	create := a.CreateSnapshots
	if c.Bool("quiesce") {
		create = a.CreateQuiescedSnapshots
	}
	snaps, err := create(c.Context, req)
	if err != nil {
		return err
	}
	return emitSnapshots(c, snaps)
}

func listSnapshots(c *cli.Context, a *agent.Client) error {
	snaps, err := a.Snapshots(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emitSnapshots(c, snaps)
}

func emitSnapshots(c *cli.Context, snaps []agent.Snapshot) error {
	return emit(c, list(snaps), func(t *table) {
		t.row("NAME", "VOLUME", "SIZE", "STATUS", "CREATED", "KEPT", "ID")
		for _, s := range snaps {
			t.row(dash(s.Name), s.Volume, human(s.Size), s.Status, when(s.Created), human(s.PreimageBytes), s.ID)
		}
		for _, s := range snaps {
			if s.Caveat != "" {
				t.row("warning: " + s.Caveat)
			}
		}
	})
}

func showSnapshot(c *cli.Context, a *agent.Client) error {
	s, err := a.Snapshot(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emit(c, s, func(t *table) {
		t.field("name", s.Name)
		t.field("id", s.ID)
		t.field("volume", s.Volume)
		t.field("size", exact(s.Size))
		t.field("status", s.Status)
		t.field("error", s.Error)
		t.field("uri", s.URI)
		t.field("over TCP", s.TCPURI)
		t.field("created", when(s.Created))
		t.field("kept for it", exact(s.PreimageBytes))
		if s.Temporary {
			t.field("temporary", "gone when the data plane restarts")
		}
	})
}

func deleteSnapshot(c *cli.Context, a *agent.Client) error {
	ref := c.Args().First()
	if err := a.DeleteSnapshot(c.Context, ref); err != nil {
		return err
	}
	return emitDeleted(c, "snapshot", ref)
}

func revertVolume(c *cli.Context, a *agent.Client) error {
	ref := c.Args().First()
	s, err := a.Snapshot(c.Context, ref)
	if err != nil {
		return err
	}
	if err := a.RevertVolume(c.Context, s.ID); err != nil {
		return err
	}
	return emit(c, map[string]string{"volume": s.Volume, "snapshot": s.ID}, func(t *table) {
		t.row(fmt.Sprintf("volume %s holds the content of snapshot %s again", s.Volume, ref))
	})
}
