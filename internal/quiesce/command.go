package quiesce

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/cairnbackup/cairn/internal/priority"
)

// Command is a program that is called as "PATH freeze VOLUME" and "PATH thaw VOLUME"
// and exits with 0 when that is done. It gets no input.
type Command struct {
	Path   string // absolute
	Volume string
	Limit  time.Duration // of each call; 0 is DefaultLimit
}

var _ Hook = Command{}

const (
	// maxOutput is how much of what a program prints goes into an error: its end.
	maxOutput = 1024
	// pipeDelay is how long to wait for output after a program has ended, should it
	// have left something running that holds the pipe.
	pipeDelay = time.Second
)

// Freeze calls the program.
func (c Command) Freeze(ctx context.Context) error { return c.run(ctx, "freeze") }

// Thaw calls the program.
func (c Command) Thaw(ctx context.Context) error { return c.run(ctx, "thaw") }

func (c Command) run(ctx context.Context, verb string) error {
	limit := c.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v", limit))
	defer cancel()
	var output tail
	cmd := exec.CommandContext(ctx, c.Path, verb, c.Volume) //nolint:gosec // the administrator's
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.Dir = "/"
	// A session of its own is killed at the limit with all that it has started, and is not
	// behind other sessions with the agent's.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeDelay
	if err := priority.InFront(cmd.Start); err != nil { // a guest that is frozen waits for it
		return fmt.Errorf("quiesce: run %q: %w (%w)", c.Path, err, ErrUntouched)
	}
	err := cmd.Wait()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it said yes, and left something running
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if said := output.String(); said != "" {
		return fmt.Errorf("quiesce: %s %s %s: %w; it said: %s", c.Path, verb, c.Volume, err, said)
	}
	return fmt.Errorf("quiesce: %s %s %s: %w", c.Path, verb, c.Volume, err)
}

// tail keeps the end of what is written to it.
type tail struct {
	kept []byte
	more bool
}

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > maxOutput {
		p, t.more = p[len(p)-maxOutput:], true
	}
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - maxOutput; over > 0 {
		t.kept, t.more = t.kept[over:], true
	}
	return n, nil
}

// String is one line of valid text.
func (t *tail) String() string {
	s := strings.Join(strings.Fields(strings.ToValidUTF8(string(t.kept), "?")), " ")
	if t.more {
		s = "… " + s
	}
	return s
}
