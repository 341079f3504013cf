package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
)

// agentMemory is where the garbage collector begins to work harder. The budget
// of the process is 192 MiB, of which a session's buffers, outside the heap,
// take about 100.
const agentMemory = 80 << 20

func agentCommand() *cli.Command {
	cmd := leaf("agent", "", "run the agent: backups, restores, exports; starts \"cairn serve\" if none runs, and again if it dies", append([]cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "`file` with the settings of this command in YAML (" + defaultConfig() + " if it is there); flags go before it"},
		stateFlag(),
		socketFlag(),
		controlFlag(),
		nbdDirFlag(),
		storeFlag(),
		passwordFlag(),
		&cli.StringFlag{Name: "catalog", Usage: "`where` the records are: sqlite:FILE, or postgres://USER@HOST/DATABASE, which the agents of several hosts may share; its password is not given here but in a file that PGPASSFILE names (a file in the state folder, if not given)"},
		&cli.StringSliceFlag{Name: "repo", Usage: "`NAME=FILE`: one more repository, which commands mean with --repo NAME; FILE has its stores, password-file and retain, as the settings file; once for each"},
		&cli.StringFlag{Name: "api-listen", Usage: "serve OpenStack's Block Storage API on this `HOST:PORT`"},
		&cli.StringFlag{Name: "api-tls-cert", Usage: "`file` with the certificate of the API in PEM, and those between it and the authority; read again when it is replaced"},
		&cli.StringFlag{Name: "api-tls-key", Usage: "`file` with its key"},
		&cli.StringFlag{Name: "api-url", Usage: "`URL` that clients reach the API by, when it is not the one that they call"},
		usersFlag(),
		&cli.StringFlag{Name: "keystone", Usage: "`URL` of the OpenStack Identity service whose tokens count, besides the users file if there is one"},
		&cli.StringFlag{Name: "keystone-cache", Usage: "believe what Keystone said of a token for this `time` (5m if not given): so long a token still counts that was revoked there, or whose user was disabled; 0 = ask for each request"},
		&cli.StringFlag{Name: "admin-token-file", Usage: "`file` with a token that makes whoever sends it an administrator"},
		&cli.BoolFlag{Name: "api-noauth", Usage: "believe every caller of the API who they are; only on a loopback address"},
		&cli.BoolFlag{Name: "strict-chains", Usage: "refuse to delete a backup from which incremental ones were made, as Cinder does; Cairn does not need them"},
		&cli.StringFlag{Name: "webhook", Usage: "`URL` that gets a POST for what happens to backups"},
		&cli.StringFlag{Name: "host", Usage: "`name` of this machine in the service list (its own, if not given)"},
		&cli.StringFlag{Name: "group", Usage: "`group` that may connect to the NBD sockets of volumes, when this command starts the data plane"},
		&cli.BoolFlag{Name: "init", Usage: "make a repository of six local folders if there is none, also when the state folder is in use already"},
		&cli.IntFlag{Name: "jobs", Usage: "`number` of jobs that run at once (2 if not given); one is kept free for each repository that has none"},
		&cli.StringFlag{Name: "retain", Usage: "for this `time`, such as 30d, nobody can delete a backup, unless \"backup create --retain\" says otherwise"},
		&cli.StringFlag{Name: "scrub", Value: "30d", Usage: "read everything in the stores once in this `time`, 4 % at a time, to find damage early; 0 = never"},
		&cli.StringFlag{Name: "scrub-rate", Value: "10MiB", Usage: "most that the scrub reads in a second, a `size`"},
		&cli.StringFlag{Name: "read-limit", Usage: "most that a backup reads from a volume in a second, a `size` such as 200MiB"},
		&cli.BoolFlag{Name: "no-serve", Usage: "do not start a data plane, nor again one that died; \"cairn serve\" runs elsewhere, or will"},
		&cli.BoolFlag{Name: "keep-priority", Usage: "do not step behind other programs for processor and disk"},
		&cli.StringFlag{Name: "serve-nbd-listen", Usage: "a data plane that this command starts serves volumes and snapshots over TCP, too, on this `HOST:PORT`, with the same four --tls files"},
		&cli.StringFlag{Name: "serve-nbd-url", Usage: "`URL` that clients reach that by, as --nbd-url"},
		logLevelFlag(),
		logFormatFlag(),
	}, tcpFlags("exports of backups")...), runAgent)
	cmd.Description = "With no --store and nothing in the state folder yet, it makes a repository of six\n" +
		"folders there (any four restore everything) and a password file, and says so."
	return cmd
}

func runAgent(c *cli.Context) (err error) {
	s, err := agentSettingsOf(c)
	if err != nil {
		return err
	}
	log, err := newLogger(c.App.ErrWriter, s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(agentMemory)
	}
	in, err := takeInherited()
	if err != nil {
		return err
	}
	plane := serve.NewClient(s.Control)
	defer plane.Close()
	k := &keeper{s: s, log: log, client: plane}
	// What cannot be is refused before anything is made.
	s.Socket = in.path(s.Socket)
	free := s.Socket
	if in.requests != nil {
		free = ""
	}
	if err = agent.Check(c.Context, s.State, free); err != nil {
		return err
	}
	tcp, err := s.tcp(c.Context, in.tcp, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tcp.Close()) }()
	api, err := s.api(c.Context, log)
	if err != nil {
		return err
	}
	if api != nil {
		defer func() { _ = api.Listener.Close() }() // the agent has closed it, unless it never ran
	}
	if !s.NoServe {
		if _, err = k.runs(c.Context); err != nil {
			return err
		}
	}
	if err = firstRun(c, s); err != nil {
		return err
	}
	o := s.options(log)
	o.Serve, o.API, o.TCP, o.Inherited = plane, api, tcp, in.requests
	if o.Open, err = s.opener(log); err != nil {
		return err
	}
	if len(o.Others) == 0 { // nothing to run for without it
		if o.Repository, err = o.Open(c.Context); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, o.Repository.Close()) }()
	}
	if !s.NoServe {
		if err = k.ensure(c.Context); err != nil {
			return err
		}
		watch, stop := context.WithCancel(c.Context)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer stop()
		wg.Go(func() { k.keep(watch) })
	}
	return agent.Run(c.Context, o, func() { ready(c.Context, log) })
}

// options is what the settings say to the agent. One repository of several that
// cannot be opened is in nobody's way: the agent opens them, and goes on trying.
func (s *agentSettings) options(log *slog.Logger) agent.Options {
	o := agent.Options{
		State: s.State, Socket: s.Socket, NBDDir: s.NBDDir, Control: s.Control,
		Logger: log, Version: version, KeepPriority: s.KeepPriority,
		Limits: agent.Limits{ConcurrentJobs: s.Jobs, ReadBytesPerSecond: s.readLimit, Retain: s.retain},
		Scrub:  agent.Scrub{Every: s.scrub, Rate: s.scrubRate},
		Host:   s.Host, Webhook: s.Webhook, Catalog: s.Catalog,
	}
	for _, name := range slices.Sorted(maps.Keys(s.Repositories)) {
		x := s.Repositories[name]
		o.Others = append(o.Others, agent.Repo{Name: name, Retain: x.retain, Open: func(ctx context.Context) (*repository.Repository, error) {
			return x.open(ctx, filepath.Join(s.State, "repositories", name, "cache"), log)
		}})
	}
	return o
}

// firstRun makes the embedded default repository on an empty machine. A state
// folder that is in use and has no repository is more likely one whose disk is
// not mounted: there it takes --init.
func firstRun(c *cli.Context, s *agentSettings) error {
	if len(s.Stores) > 0 {
		return nil
	}
	if _, err := os.Stat(filepath.Join(s.State, "stores")); err == nil {
		return nil
	}
	if !s.Init {
		used, err := inUse(s.State)
		if err != nil {
			return err
		}
		if used != "" {
			return usagef("no store is named, and %s holds %s but no stores: name the stores with --store, mount the disk that they are on, or make new ones there with --init", s.State, used)
		}
	}
	made, err := makeRepository(c.Context, initRequest{
		data: defaultData, parity: defaultParity, passwordFile: s.PasswordFile, state: s.State,
	})
	if err != nil {
		return err
	}
	for _, line := range made.sentences() {
		if err := say(c, "%s", line); err != nil {
			return err
		}
	}
	return nil
}

// inUse returns a name in the state folder that shows that an agent has worked
// there; what the data plane keeps does not count.
func inUse(state string) (string, error) {
	entries, err := os.ReadDir(state)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look at the state folder: %w", err)
	}
	for _, e := range entries {
		if n := e.Name(); n == "catalog.db" || n == "password" || n == agent.HostIDName {
			return n, nil
		}
	}
	return "", nil
}

func (s *agentSettings) makeState() error {
	if err := os.MkdirAll(s.State, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	return nil
}

// opener returns what opens the agent's own repository, with a dedup index. The
// password is read, or asked for, once.
func (s *agentSettings) opener(log *slog.Logger) (agent.Opener, error) {
	names, err := stores(s.Stores, s.State)
	if err != nil {
		return nil, err
	}
	pw, err := password(s.PasswordFile, s.State)
	if err != nil {
		return nil, err
	}
	if err = s.makeState(); err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*repository.Repository, error) {
		r, err := openRepository(ctx, names, repository.Options{
			Password: pw, CacheDir: filepath.Join(s.State, "cache"), Logger: log,
		})
		return r, wrongPassword(err, s.PasswordFile, s.State)
	}, nil
}
