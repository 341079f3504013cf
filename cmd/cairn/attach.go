package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/nbd"
)

func attachCommand() *cli.Command {
	return leaf("attach", "EXPORT [DEVICE]", "make a block device, /dev/nbdN, of a volume, a snapshot, an exported backup or an NBD address, until Ctrl-C or \"cairn detach\"; needs root and the kernel's module nbd",
		agentRepoFlags(
			&cli.BoolFlag{Name: "read-only", Usage: "a volume by its export that only reads, which others may write to meanwhile"},
			&cli.IntFlag{Name: "connections", Value: 4, Usage: "`number` of connections, if the server allows more than one"},
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "`time` after which a request is sent again over another connection"},
			&cli.DurationFlag{Name: "wait", Value: 5 * time.Minute, Usage: "`time` for which the device waits for a server that is away, before its users get errors"},
			&cli.BoolFlag{Name: "detach", Usage: "leave the device to the kernel and end: when a connection ends nobody makes another"},
		), withAgent(attach))
}

func detachCommand() *cli.Command {
	return leaf("detach", "DEVICE", "write what is to be written and take /dev/nbdN away, whoever attached it", []cli.Flag{
		&cli.BoolFlag{Name: "force", Usage: "also while it is mounted, and without writing: what was not written is lost"},
		outputFlag(),
	}, func(c *cli.Context) error {
		if _, err := wantsJSON(c); err != nil {
			return err
		}
		path := c.Args().First()
		if err := nbd.DetachKernel(path, c.Bool("force")); err != nil {
			return err
		}
		return emit(c, map[string]string{"detached": path}, func(t *table) { t.row(path + " is detached") })
	})
}

func attach(c *cli.Context, a *agent.Client) error {
	o := nbd.KernelOptions{
		Device: c.Args().Get(1), Conns: c.Int("connections"), RequestTimeout: c.Duration("timeout"), DeadTimeout: c.Duration("wait"),
	}
	switch {
	case o.Conns < 1 || o.Conns > 16:
		return usagef("--connections %d: take 1 to 16", o.Conns)
	case o.RequestTimeout < time.Second:
		return usagef("--timeout %v: the kernel counts in seconds, so take at least one", o.RequestTimeout)
	case o.DeadTimeout < 0:
		return usagef("--wait %v is less than nothing", o.DeadTimeout)
	case c.Bool("detach"):
		o.DeadTimeout = 0 // nobody would come
	}
	uri, err := attachable(c, a)
	if err != nil {
		return err
	}
	if c.Bool("detach") && strings.HasPrefix(uri, "nbds") {
		return usagef("the kernel does not speak TLS, cairn attach does it for it and has to stay: leave --detach out")
	}
	d, err := nbd.AttachKernel(c.Context, uri, o)
	if err != nil {
		return err
	}
	return errors.Join(keepAttached(c, d, uri), d.Close())
}

// attachable is the address of what is to be attached.
func attachable(c *cli.Context, a *agent.Client) (string, error) {
	name := c.Args().First()
	if isURI(name) {
		return name, nil
	}
	// A backup is not exported just for that: who would end it?
	exports, err := a.Exports(c.Context)
	if err != nil {
		return "", err
	}
	for _, e := range exports {
		if e.Name == name {
			return e.URI, nil
		}
	}
	v, err := a.Volume(c.Context, name)
	switch {
	case err == nil && agent.Foreign(v) && c.Bool("read-only"):
		return "", usagef("volume %s of kind %s has no export that only reads, as Cairn does not serve it: leave --read-only out, or attach an export of its server that only reads", v.Name, v.Kind)
	case err == nil && agent.Foreign(v):
		x, xerr := a.Export(c.Context, agent.Export{Ref: v.ID}) // refused, if it has no address
		return x.URI, xerr
	case err == nil && c.Bool("read-only"):
		return nbd.URI(v.Socket, v.Name+"@ro"), nil
	case err == nil:
		return v.URI, nil
	case !errors.Is(err, agent.ErrNotFound):
		return "", err
	}
	s, err := a.Snapshot(c.Context, name)
	if errors.Is(err, agent.ErrNotFound) {
		return "", missingf("there is no volume, snapshot or export %q: \"cairn volume list\" and \"cairn snapshot list\" show what there is, and \"cairn export BACKUP --name NAME\" exports a backup", name)
	}
	return s.URI, err
}

// keepAttached says what the device is called, and stays until the end of it.
func keepAttached(c *cli.Context, d *nbd.KernelDevice, uri string) error {
	stay := !c.Bool("detach")
	err := emit(c, map[string]any{"device": d.Path(), "uri": uri, "size": d.Size(), "read_only": d.ReadOnly()}, func(t *table) {
		end := fmt.Sprintf("\"cairn detach %s\" ends it", d.Path())
		if stay {
			end = "Ctrl-C or " + end
		}
		t.row(fmt.Sprintf("%s is %s; %s", d.Path(), uri, end))
	})
	if err == nil && stay {
		err = notify("READY=1")
	}
	switch {
	case err != nil:
		return errors.Join(err, nbd.DetachKernel(d.Path(), false))
	case stay:
		return untilDetached(c.Context, d)
	}
	return nil
}

// untilDetached brings the device fresh connections until somebody detaches it, or ctx
// ends: then it is detached here, for which the server may be needed again.
func untilDetached(ctx context.Context, d *nbd.KernelDevice) error {
	keeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	kept := make(chan error, 1)
	go func() { kept <- d.Keep(keeping) }()
	select {
	case err := <-kept:
		if errors.Is(err, nbd.ErrDetached) {
			return nil
		}
		return fmt.Errorf("%s stays attached, and what is asked of it fails; \"cairn detach --force %s\" ends it: %w", d.Path(), d.Path(), err)
	case <-ctx.Done():
	}
	err := nbd.DetachKernel(d.Path(), false)
	stop()
	why := <-kept // ErrDetached or nil, or why there was no connection for the flush
	if err != nil {
		return fmt.Errorf("%s stays attached, and gets no fresh connection any more; \"cairn detach %s\" ends it: %w", d.Path(), d.Path(), errors.Join(err, why))
	}
	return nil
}
