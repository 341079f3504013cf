package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/priority"
	"github.com/cairnbackup/cairn/internal/serve"
)

// serveStart bounds how long a data plane that was started may take until it
// answers: it reads the change maps of all volumes first.
const serveStart = 2 * time.Minute

// keeper sees to it that a data plane runs. It is a process of its own, in its
// own session and with its own log: it outlives the agent, because guests hang
// on it.
type keeper struct {
	s      *agentSettings
	log    *slog.Logger
	client *serve.Client
	ended  <-chan error // of the one that this process started: how it ended; nil if there is none
}

// runs says whether a data plane answers, and refuses one with another state
// folder.
func (k *keeper) runs(ctx context.Context) (bool, error) {
	st, err := k.client.Status(ctx)
	switch {
	case errors.Is(err, serve.ErrUnreachable):
		return false, nil
	case err != nil:
		return false, err
	case st.State != k.s.State:
		return false, &agent.Error{Code: agent.CodeConflict, Text: fmt.Sprintf(
			"the data plane on %s keeps its volumes in %s, not in %s: give the same --state, or another --control", k.s.Control, st.State, k.s.State)}
	}
	return true, nil
}

// ensure starts a data plane if none answers.
func (k *keeper) ensure(ctx context.Context) error {
	running, err := k.runs(ctx)
	if err != nil {
		return err
	}
	if running {
		k.log.LogAttrs(ctx, slog.LevelInfo, "data plane runs already", slog.String("control", k.s.Control))
		return k.sayNoTCP(ctx)
	}
	return k.start(ctx)
}

// sayNoTCP says so if the data plane that runs already was not started to serve NBD over
// TCP, and that is wanted.
func (k *keeper) sayNoTCP(ctx context.Context) error {
	if k.s.ServeListen == "" {
		return nil
	}
	st, err := k.client.Status(ctx)
	if err == nil && st.NBDListen == "" {
		k.log.LogAttrs(ctx, slog.LevelWarn, "the data plane that runs already does not serve volumes over TCP: stop it, and start the agent again, when no guest uses it", slog.Int("pid", st.PID))
	}
	return err
}

// start starts a data plane and returns when it answers.
func (k *keeper) start(ctx context.Context) error {
	name := filepath.Join(k.s.State, "serve.log")
	cmd, err := startServe(k.s, name)
	if err != nil {
		return fmt.Errorf("start the data plane: %w", err)
	}
	// Waited for as long as this process lives, so that it leaves no zombie.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := awaitServe(ctx, k.client, ended, name); err != nil {
		return err
	}
	k.ended = ended
	k.log.LogAttrs(ctx, slog.LevelInfo, "data plane started", slog.Int("pid", cmd.Process.Pid), slog.String("log", name))
	return nil
}

// How often the data plane is looked after, and how long the first and the
// longest pause is before one that died is started again. A data plane that ran
// for the longest pause counts as well: the next pause is the first again.
const (
	keepEvery = time.Second
	keepFirst = 500 * time.Millisecond
	keepMost  = time.Minute
)

// keep starts the data plane again when it has died, until ctx ends; one that
// was stopped stays so. Of one that this process started its end tells which it
// was. Any other leaves its control socket behind only when it dies.
func (k *keeper) keep(ctx context.Context) {
	pause := keepFirst
	for since := time.Now(); k.died(ctx); since = time.Now() {
		if time.Since(since) >= keepMost {
			pause = keepFirst
		}
		for !k.again(ctx, pause) {
			pause = min(2*pause, keepMost)
		}
		pause = min(2*pause, keepMost)
	}
}

// again starts the data plane after a pause, unless somebody else has. It is
// true when one runs, or ctx has ended.
func (k *keeper) again(ctx context.Context, pause time.Duration) bool {
	k.log.LogAttrs(ctx, slog.LevelError, "data plane died: no volume is served until it is started again", slog.String("pause", pause.String()))
	if !sleep(ctx, pause) {
		return true
	}
	if _, err := k.client.Status(ctx); err == nil {
		return true
	}
	err := k.start(ctx)
	if err == nil || ctx.Err() != nil {
		return true
	}
	k.log.LogAttrs(ctx, slog.LevelError, "data plane not started again", slog.Any("error", err))
	return false
}

// died returns true when the data plane has died, false when ctx has ended.
func (k *keeper) died(ctx context.Context) bool {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	refused := 0
	for refused < 2 { // one that is being stopped may refuse once, just before its socket goes
		select {
		case <-ctx.Done():
			return false
		case err := <-k.ended:
			k.ended = nil
			if err != nil {
				k.log.LogAttrs(ctx, slog.LevelError, "data plane ended", slog.String("log", filepath.Join(k.s.State, "serve.log")), slog.Any("error", err))
				return true
			}
			k.log.LogAttrs(ctx, slog.LevelInfo, "data plane was stopped: no volume is served until \"cairn serve\" or \"cairn agent\" is started again")
		case <-tick.C:
			if k.ended != nil {
				continue
			}
			if _, err := k.client.Status(ctx); errors.Is(err, syscall.ECONNREFUSED) {
				refused++
			} else {
				refused = 0
			}
		}
	}
	return true
}

// sleep waits for d; it is false if ctx ended before.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func startServe(s *agentSettings, logName string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(logName, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	args := []string{"serve", "--state", s.State, "--control", s.Control, "--nbd-dir", s.NBDDir, "--log-level", s.LogLevel, "--log-format", s.LogFormat}
	if s.Group != "" {
		args = append(args, "--group", s.Group)
	}
	args = append(args, s.serveTCP()...)
	cmd := exec.Command(self, args...) //nolint:noctx // it shall outlive every context
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Dir = "/" // keeps no mount busy
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Of the agent's environment only what is not the agent's: systemd would
	// take its messages for the agent's, and the data plane needs no store's keys.
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if name != "NOTIFY_SOCKET" && name != "CAIRN_PASSWORD_FILE" && !strings.HasPrefix(name, "AWS_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	return cmd, priority.InFront(cmd.Start) // guests hang on it, and not on the agent
}

// awaitServe returns when the data plane answers, or why it does not.
func awaitServe(ctx context.Context, client *serve.Client, ended <-chan error, logName string) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(serveStart)
	defer limit.Stop()
	for {
		if _, err := client.Status(ctx); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errInterrupted
		case err := <-ended:
			return fmt.Errorf("the data plane ended at once (%w); its log %s says: %s", err, logName, lastLine(logName))
		case <-limit.C:
			return fmt.Errorf("the data plane does not answer after %s: see its log %s", serveStart, logName)
		}
	}
}

// lastLine is the end of a log.
func lastLine(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if fi, serr := f.Stat(); serr == nil && fi.Size() > 4096 {
		if _, err = f.Seek(-4096, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	b = bytes.TrimSpace(b)
	return string(b[bytes.LastIndexByte(b, '\n')+1:])
}
