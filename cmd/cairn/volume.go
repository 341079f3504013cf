package main

import (
	"fmt"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

func volumeCommands() *cli.Command {
	return group("volume", "the disks that are served and backed up",
		leaf("create", "NAME", "make a volume, or take an existing raw file, block device or NBD export, or the disk of a running qemu, as one", agentFlags(
			&cli.StringFlag{Name: "size", Usage: "a new sparse file of this `size`, such as 4GiB"},
			&cli.StringFlag{Name: "file", Usage: "an existing raw image `file`, which stays where it is"},
			&cli.StringFlag{Name: "device", Usage: "a block `device`"},
			&cli.StringFlag{Name: "nbd", Usage: "an export of any NBD server, by its `URI`: nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH; it stays there and is backed up from there"},
			&cli.StringFlag{Name: "qmp", Usage: "with --node: a disk of the running qemu whose QMP monitor is this `socket`; it stays there and is backed up from there"},
			&cli.StringFlag{Name: "node", Usage: "the `node` name of that disk, or the name of its device"},
			&cli.StringFlag{Name: "id", Usage: "the `UUID` that the volume is to have, such as the one under which another host has the same file or device; without it one is drawn"},
			&cli.BoolFlag{Name: "allow-format", Usage: "take a file that looks like qcow2, VMDK, LUKS… as raw bytes"},
			&cli.StringFlag{Name: "quiesce-agent", Usage: "as volume quiesce --agent"},
			&cli.StringFlag{Name: "quiesce-command", Usage: "as volume quiesce --command"},
			&cli.BoolFlag{Name: "quiesce-try", Usage: "as volume quiesce --try"},
			&cli.StringFlag{Name: "project", Usage: "whose it is, name or ID of a `project`: who may see it through the Block Storage API"}, usersFlag(), stateFlag(),
		), withAgent(createVolume)),
		leaf("list", "", "all volumes", agentFlags(), withAgent(listVolumes)),
		leaf("show", "VOLUME", "one volume, with its checkpoints", agentFlags(), withAgent(showVolume)),
		leaf("extend", "VOLUME", "make a volume larger", agentFlags(
			&cli.StringFlag{Name: "size", Usage: "the new `size`"},
		), withAgent(extendVolume)),
		leaf("reopen", "VOLUME", "open a volume again whose data had gone or whose disk had failed", agentFlags(), withAgent(reopenVolume)),
		policyCommand(), quiesceCommand(),
		leaf("assign", "VOLUME", "say whose a volume is: which project sees it through the Block Storage API; backups that there are stay whose they are", agentFlags(
			&cli.StringFlag{Name: "project", Usage: "name or ID of a `project`"},
			&cli.BoolFlag{Name: "none", Usage: "nobody's but the operator's"}, usersFlag(), stateFlag(),
		), withAgent(assignVolume)),
		leaf("delete", "VOLUME", "forget a volume; a file or device that was given to create stays, backups stay", agentFlags(), withAgent(deleteVolume)),
	)
}

func createVolume(c *cli.Context, a *agent.Client) error {
	given := 0
	for _, f := range []string{"size", "file", "device", "nbd", "qmp"} {
		if c.String(f) != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return usagef("volume create needs one of --size, --file, --device, --nbd and --qmp: a new file of a size, an existing raw file, a block device, an NBD server's export, or a running qemu")
	case (c.String("qmp") == "") != (c.String("node") == ""):
		return usagef("--qmp and --node go together: the socket of the qemu, and which of its disks")
	}
	size, err := positiveSize(c, "size")
	if err != nil && c.String("size") != "" {
		return err
	}
	req := agent.CreateVolume{ID: c.String("id"), Name: c.Args().First(), Size: size, AllowFormat: c.Bool("allow-format"), NBD: c.String("nbd"), Node: c.String("node")}
	if req.File, err = absolute(c.String("file")); err != nil {
		return err
	}
	if req.Device, err = absolute(c.String("device")); err != nil {
		return err
	}
	if req.QMP, err = absolute(c.String("qmp")); err != nil {
		return err
	}
	q, err := quiesceFlags(c, "quiesce-")
	if err != nil {
		return err
	}
	if q != (agent.Quiesce{}) {
		req.Quiesce = &q
	}
	project, err := projectOf(c, a, c.String("project"))
	if err != nil {
		return err
	}
	if project != "" {
		req.Attributes = agent.VolumeOf(project)
	}
	v, err := a.CreateVolume(c.Context, req)
	if err != nil {
		return err
	}
	return emitVolume(c, v)
}

// positiveSize is a size flag that has to be there.
func positiveSize(c *cli.Context, name string) (int64, error) {
	n, err := sizeFlag(c, name)
	if err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, usagef("--%s must be more than nothing, such as 4GiB", name)
	}
	return n, nil
}

// absolute makes a path independent of the agent's working directory.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", path, err)
	}
	return abs, nil
}

func listVolumes(c *cli.Context, a *agent.Client) error {
	vols, err := a.Volumes(c.Context)
	if err != nil {
		return err
	}
	return emit(c, list(vols), func(t *table) {
		t.row("NAME", "SIZE", "USED", "STATUS", "URI", "ID")
		for _, v := range vols {
			used, where := human(v.Allocated), v.URI
			if agent.Foreign(v) {
				used, where = "-", v.Path
			}
			t.row(dash(v.Name), human(v.Size), used, v.Status, where, v.ID)
		}
	})
}

func showVolume(c *cli.Context, a *agent.Client) error {
	v, err := a.Volume(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emitVolume(c, v)
}

func emitVolume(c *cli.Context, v agent.Volume) error {
	return emit(c, v, func(t *table) {
		t.field("name", v.Name)
		t.field("id", v.ID)
		t.field("size", exact(v.Size))
		if !agent.Foreign(v) {
			t.field("used", exact(v.Allocated))
		}
		t.field("status", v.Status)
		t.field("error", v.Error)
		t.field("writer", v.Writer)
		if v.Epoch != nil {
			t.field("epoch", *v.Epoch)
		}
		t.field(v.Kind, v.Path)
		if v.URI != v.Path {
			t.field("uri", v.URI)
		}
		t.field("over TCP", v.TCPURI)
		t.field("socket", v.Socket)
		t.field("created", when(v.Created))
		t.field("quiesced by", quiescedBy(agent.QuiesceOf(v)))
		t.field("snapshots", v.Snapshots)
		for _, p := range v.Checkpoints {
			changed := "nobody knows what changed since"
			if p.DirtyBytes != nil {
				changed = human(*p.DirtyBytes) + " changed since"
			}
			if p.Doubt != "" {
				changed = "everything counts as changed: " + p.Doubt
			}
			t.field("checkpoint", fmt.Sprintf("%s of %s: %s", p.Name, when(p.Created), changed))
		}
	})
}

func extendVolume(c *cli.Context, a *agent.Client) error {
	size, err := positiveSize(c, "size")
	if err != nil {
		return err
	}
	v, err := a.ExtendVolume(c.Context, c.Args().First(), size)
	if err != nil {
		return err
	}
	return emitVolume(c, v)
}

func reopenVolume(c *cli.Context, a *agent.Client) error {
	v, err := a.ReopenVolume(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emitVolume(c, v)
}

func deleteVolume(c *cli.Context, a *agent.Client) error {
	ref := c.Args().First()
	if err := a.DeleteVolume(c.Context, ref); err != nil {
		return err
	}
	return emitDeleted(c, "volume", ref)
}

// emitDeleted says that something is gone.
func emitDeleted(c *cli.Context, kind, ref string) error {
	return emit(c, map[string]string{"deleted": ref, "kind": kind}, func(t *table) {
		t.row(fmt.Sprintf("%s %s is deleted", kind, ref))
	})
}
