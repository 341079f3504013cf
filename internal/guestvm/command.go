package guestvm

import (
	"bytes"
	"context"
	"io"
	"syscall"

	"github.com/cairnbackup/cairn/internal/guestvm/wire"
)

// Run runs a script in the guest's shell and returns what it printed, to both outputs; the
// error is how it ended. It ends when all have ended that have its output. When ctx ends
// they are killed.
func (v *VM) Run(ctx context.Context, script string) (string, error) {
	var out bytes.Buffer
	s, err := v.port.open(wire.Run, script)
	if err != nil {
		return "", err
	}
	err = s.copyTo(ctx, &out)
	return out.String(), err
}

// Command is a script that runs in the guest beside the test.
type Command struct {
	s    *stream
	done chan struct{}
	err  error // once done is closed
}

// Begin starts a script as Run does, and writes to out what it prints, from one goroutine.
func (v *VM) Begin(script string, out io.Writer) (*Command, error) {
	s, err := v.port.open(wire.Run, script)
	if err != nil {
		return nil, err
	}
	c := &Command{s: s, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = s.copyTo(context.Background(), out)
	}()
	return c, nil
}

// Signal sends a signal to the script and its children.
func (c *Command) Signal(sig syscall.Signal) error { return c.s.signal(sig) }

// Done is closed when the script has ended.
func (c *Command) Done() <-chan struct{} { return c.done }

// Wait waits for the script's end, after which out is written to no more.
func (c *Command) Wait() error {
	<-c.done
	return c.err
}
