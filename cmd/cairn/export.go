package main

import (
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

func exportCommand() *cli.Command {
	return leaf("export", "[VOLUME|SNAPSHOT|BACKUP]", "print the NBD addresses of a volume, a snapshot or a backup: of its socket and, if there is a door for that, over TCP; without one, list what is exported", agentRepoFlags(
		&cli.BoolFlag{Name: "overlay", Usage: "a backup, writable: what is written lies over it and is discarded by unexport"},
		&cli.StringFlag{Name: "name", Usage: "`name` of a backup's export, its ID otherwise"},
	), withAgent(export))
}

func unexportCommand() *cli.Command {
	return leaf("unexport", "NAME", "stop to export a backup; what was written to an overlay is discarded", agentRepoFlags(
		&cli.BoolFlag{Name: "force", Usage: "also while a guest uses an overlay: what it wrote is lost"},
	), withAgent(
		func(c *cli.Context, a *agent.Client) error {
			name := c.Args().First()
			unexport := a.Unexport
			if c.Bool("force") {
				unexport = a.ForceUnexport
			}
			if err := unexport(c.Context, name); err != nil {
				return err
			}
			return emit(c, map[string]string{"unexported": name}, func(t *table) {
				t.row(name + " is no longer exported")
			})
		}))
}

func export(c *cli.Context, a *agent.Client) error {
	ref := c.Args().First()
	if ref == "" {
		if c.Bool("overlay") || c.String("name") != "" {
			return usagef("say which VOLUME, SNAPSHOT or BACKUP to export")
		}
		return listExports(c, a)
	}
	e, err := a.Export(c.Context, agent.Export{Ref: ref, Name: c.String("name"), Overlay: c.Bool("overlay")})
	if err != nil {
		return err
	}
	return emit(c, e, func(t *table) {
		t.row(e.URI)
		if e.TCPURI != "" {
			t.row(e.TCPURI)
		}
	})
}

func listExports(c *cli.Context, a *agent.Client) error {
	exports, err := a.Exports(c.Context)
	if err != nil {
		return err
	}
	return emit(c, list(exports), func(t *table) {
		t.row("NAME", "KIND", "SIZE", "OVERLAY", "CLIENTS", "URI", "ERROR")
		for _, e := range exports {
			overlay := "no"
			if e.Overlay {
				overlay = "yes"
			}
			t.row(e.Name, e.Kind, human(e.Size), overlay, e.Clients, strings.TrimSpace(e.URI+" "+e.TCPURI), e.Error)
		}
	})
}
