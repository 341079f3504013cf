package main

import (
	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

func quiesceCommand() *cli.Command {
	return leaf("quiesce", "VOLUME", "say how whoever writes to a volume is made to stand still, with all written, for the instant of each backup's snapshot", agentFlags(
		&cli.StringFlag{Name: "agent", Usage: "by the guest agent of the qemu that has it, at this `socket`: its file systems are frozen and thawed"},
		&cli.StringFlag{Name: "command", Usage: "by this `program`, which is called with freeze or thaw and the name of the volume"},
		&cli.BoolFlag{Name: "try", Usage: "where it fails, make the backup without, with a warning; else the backup fails"},
		&cli.BoolFlag{Name: "none", Usage: "not any more"},
	), withAgent(quiesceVolume))
}

func quiesceVolume(c *cli.Context, a *agent.Client) error {
	q, err := quiesceFlags(c, "")
	if err != nil {
		return err
	}
	if c.Bool("none") != q.Empty() {
		return usagef("volume quiesce needs one of --agent, --command and --none: by the guest agent, by a program, or not any more")
	}
	v, err := a.SetQuiesce(c.Context, c.Args().First(), q)
	if err != nil {
		return err
	}
	return emitVolume(c, v)
}

// quiesceFlags reads how a volume is quiesced from flags whose names begin so.
func quiesceFlags(c *cli.Context, prefix string) (q agent.Quiesce, err error) {
	if q.Agent, err = absolute(c.String(prefix + "agent")); err != nil {
		return q, err
	}
	if q.Command, err = absolute(c.String(prefix + "command")); err != nil {
		return q, err
	}
	q.Try = c.Bool(prefix + "try")
	switch {
	case q.Agent != "" && q.Command != "":
		return q, usagef("--%[1]sagent and --%[1]scommand exclude each other: a volume is quiesced in one way", prefix)
	case q.Try && q.Empty():
		return q, usagef("--%[1]stry goes with --%[1]sagent or --%[1]scommand", prefix)
	}
	return q, nil
}

// quiescedBy is how a volume is quiesced, for people.
func quiescedBy(q agent.Quiesce) string {
	how := ""
	switch {
	case q.Agent != "":
		how = "the guest agent at " + q.Agent
	case q.Command != "":
		how = q.Command
	}
	if q.Try {
		how += ", if it can be"
	}
	return how
}
