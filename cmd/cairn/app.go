package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

const description = `Cairn serves volumes over NBD, tracks what guests change, writes incremental
backups as erasure-coded shards to several stores, and gives them back as
mounts, NBD exports and restored volumes.

First steps on a fresh machine:
  cairn agent &                                # makes a repository in local folders and says so
  cairn volume create web --size 4GiB          # prints the NBD address for the guest
  cairn backup create web                      # the first is full
  cairn backup create web --auto               # the next reads only what changed
  mkdir /mnt/backups && cairn mount /mnt/backups

Flags may stand before, between and behind other arguments; "--" ends them.
Volumes, snapshots, backups and jobs go by name or ID; a name that several
share is refused. Sizes are 512MiB, 4GiB, 1.5T (1 KiB is 1024 bytes).

STORES:
  /mnt/a               a folder
  's3://BUCKET/PREFIX?endpoint=https://HOST:PORT&region=R'
                       a bucket that exists, without endpoint at Amazon. More
                       parameters: style=path|host|auto, profile=P, ca=/FILE.pem,
                       bandwidth=50MiB and requests=100 (most in a second).
                       Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY,
                       or a profile of the shared credentials file; never a URL.

ENVIRONMENT:
  CAIRN_SOCKET         the agent's socket, in place of --socket
  CAIRN_PASSWORD_FILE  the repository's password, in place of --password-file
  CAIRN_STATE, CAIRN_CONTROL, CAIRN_NBD_DIR
                       in place of --state, --control and --nbd-dir

EXIT CODES:
  0    done
  1    failed; the sentence on standard error says what and why
  2    wrong usage: an unknown command or flag, a bad value
  3    there is no such volume, snapshot, backup, job, export, project or user
  4    busy, or against the state of things: later or with another flag it may work
  5    refused because of the repository: wrong password, another version,
       a store of another repository, too few stores
  6    no agent answers; or no data plane, or too few stores, answer the agent
  7    cairn repo check found damage, or stores that it could not ask; or a restore
       or a copy met damage
  130  interrupted, or the job was canceled`

// helpTemplate is the library's with the commands before the description.
const helpTemplate = `{{.Name}}: {{.Usage}}

USAGE:
   {{.UsageText}}

COMMANDS:{{template "visibleCommandCategoryTemplate" .}}

{{.Description}}

"cairn help COMMAND" tells more about each.
`

// run is the program: arguments in, exit code out.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	for _, name := range []string{"CAIRN_SOCKET", "CAIRN_STATE", "CAIRN_CONTROL", "CAIRN_NBD_DIR", "CAIRN_PASSWORD_FILE"} {
		if os.Getenv(name) == "" { // set to nothing is not set
			if err := os.Unsetenv(name); err != nil {
				return complain(stderr, err)
			}
		}
	}
	app := newApp(stdout, stderr)
	if len(args) == 0 || args[len(args)-1] != "--generate-bash-completion" {
		ordered, err := arrange(app, args)
		if err != nil {
			return complain(stderr, err)
		}
		args = ordered
	}
	return complain(stderr, app.RunContext(ctx, args))
}

// complain prints an error as a sentence and returns its exit code.
func complain(stderr io.Writer, err error) int {
	if err == nil {
		return 0
	}
	code := exitCode(err)
	// What was joined came from several causes; a line each.
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(stderr, "cairn: %s\n", line)
		}
	}
	return code
}

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:                      "cairn",
		Usage:                     "block-level backups of disks, held by several stores",
		UsageText:                 "cairn COMMAND [ARGUMENT ...] [--flag ...]",
		Description:               description,
		HideVersion:               true,
		HideHelpCommand:           true,
		EnableBashCompletion:      true,
		DisableSliceFlagSeparator: true, // a comma may be part of a path
		Writer:                    stdout,
		ErrWriter:                 stderr,
		ExitErrHandler:            func(*cli.Context, error) {}, // only main exits
		Commands: []*cli.Command{
			agentCommand(),
			serveCommand(),
			repoCommands(),
			volumeCommands(),
			snapshotCommands(),
			checkpointCommands(),
			backupCommands(),
			jobCommands(),
			exportCommand(),
			unexportCommand(),
			mountCommand(),
			umountCommand(),
			attachCommand(),
			detachCommand(),
			projectCommands(),
			quotaCommands(),
			serviceCommands(),
			catalogCommands(),
			userCommands(),
			copyCommand(),
			statusCommand(),
			versionCommand(),
			completionCommand(),
		},
		Action:                func(c *cli.Context) error { return cli.ShowAppHelp(c) },
		CustomAppHelpTemplate: helpTemplate,
	}
	plainFlags(app.Commands)
	return app
}

// plainFlags keeps "(default: false)" out of the help.
func plainFlags(commands []*cli.Command) {
	for _, c := range commands {
		for _, f := range c.Flags {
			if b, ok := f.(*cli.BoolFlag); ok {
				b.DisableDefaultText = true
			}
		}
		plainFlags(c.Subcommands)
	}
}

// group is a noun: a command that only has commands.
func group(name, usage string, subs ...*cli.Command) *cli.Command {
	names := make([]string, len(subs))
	for i, s := range subs {
		names[i] = s.Name
	}
	return &cli.Command{
		Name: name, Usage: usage, Subcommands: subs, HideHelpCommand: true,
		Action: func(c *cli.Context) error {
			return usagef("%s needs one of the commands %s", c.Command.HelpName, strings.Join(names, ", "))
		},
	}
}

// leaf is a command that does something. Its arguments are described as in
// "BACKUP [FILE]" or "VOLUME ...", and counted by that description.
func leaf(name, argsUsage, usage string, flags []cli.Flag, action func(*cli.Context) error) *cli.Command {
	return &cli.Command{
		Name: name, Usage: usage, ArgsUsage: argsUsage, Flags: flags, HideHelpCommand: true,
		Action: func(c *cli.Context) error {
			if err := countArgs(c, argsUsage); err != nil {
				return err
			}
			return action(c)
		},
		OnUsageError: func(c *cli.Context, err error, _ bool) error {
			text := strings.Replace(err.Error(), "for flag -", "for flag --", 1)
			return usagef("%s (see %s --help)", text, c.Command.HelpName)
		},
	}
}

func countArgs(c *cli.Context, argsUsage string) error {
	words := strings.Fields(argsUsage)
	least, most := 0, len(words)
	for _, w := range words {
		switch {
		case w == "...":
			most = c.Args().Len()
		case !strings.HasPrefix(w, "["):
			least++
		}
	}
	full := strings.TrimSpace(c.Command.HelpName + " " + argsUsage)
	if i := slices.Index(c.Args().Slice(), ""); i >= 0 { // as from a script's variable that is not set
		return usagef("argument %d is empty: the usage is %s", i+1, full)
	}
	switch n := c.Args().Len(); {
	case n < least:
		missing := slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "..." || strings.HasPrefix(w, "[") })[n]
		return usagef("%s is missing: the usage is %s", missing, full)
	case n > most:
		return usagef("%q is one argument too many: the usage is %s", c.Args().Get(most), full)
	}
	return nil
}

// usageError is a mistake in what was typed.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

func isUsage(err error) bool {
	_, ok := errors.AsType[*usageError](err)
	return ok
}
