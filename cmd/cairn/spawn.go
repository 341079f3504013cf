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
	"syscall"
	"time"

	"github.com/cairnbackup/cairn/internal/serve"
)

// serveStart bounds how long a data plane that was started may take until it
// answers: it reads the change maps of all volumes first.
const serveStart = 2 * time.Minute

// ensureServe starts a data plane if none answers. It is a process of its own,
// in its own session and with its own log: it outlives the agent, because
// guests hang on it.
func ensureServe(ctx context.Context, s *agentSettings, log *slog.Logger) error {
	client := serve.NewClient(s.Control)
	defer client.Close()
	st, err := client.Status(ctx)
	if err == nil {
		if st.State != s.State {
			return fmt.Errorf("the data plane on %s keeps its volumes in %s, not in %s: give the same --state, or another --control", s.Control, st.State, s.State)
		}
		log.LogAttrs(ctx, slog.LevelInfo, "data plane runs already", slog.Int("pid", st.PID), slog.String("version", st.Version))
		return nil
	}
	if !errors.Is(err, serve.ErrUnreachable) {
		return err
	}
	name := filepath.Join(s.State, "serve.log")
	cmd, err := startServe(s, name)
	if err != nil {
		return fmt.Errorf("start the data plane: %w", err)
	}
	// Waited for as long as this process lives, so that it leaves no zombie.
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := awaitServe(ctx, client, ended, name); err != nil {
		return err
	}
	log.LogAttrs(ctx, slog.LevelInfo, "data plane started", slog.Int("pid", cmd.Process.Pid), slog.String("log", name))
	go func() {
		err := <-ended
		if err == nil {
			log.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "data plane was stopped")
			return
		}
		log.LogAttrs(context.WithoutCancel(ctx), slog.LevelError, "data plane ended: no volume is served until \"cairn serve\" or \"cairn agent\" is started again",
			slog.String("log", name), slog.Any("error", err))
	}()
	return nil
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
	cmd := exec.Command(self, args...) //nolint:noctx // it shall outlive every context
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Dir = "/" // keeps no mount busy
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// Of the agent's environment only what is not the agent's: systemd would
	// take its messages for the agent's.
	for _, e := range os.Environ() {
		if name, _, _ := bytes.Cut([]byte(e), []byte("=")); string(name) != "NOTIFY_SOCKET" && string(name) != "CAIRN_PASSWORD_FILE" {
			cmd.Env = append(cmd.Env, e)
		}
	}
	return cmd, cmd.Start()
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
