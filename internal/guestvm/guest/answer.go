package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"

	"github.com/cairnbackup/cairn/internal/guestvm/wire"
)

// guest is this machine as the test sees it.
type guest struct {
	port    *os.File
	send    sync.Mutex
	streams map[uint32]*stream // of the reading goroutine alone
}

// stream is a command or a connection.
type stream struct {
	cmd  *exec.Cmd     // or nil
	conn *net.UnixConn // or nil
}

// answer does what the test asks for, until it says Off.
func answer(ctx context.Context) error {
	p, err := openDevice(port, os.O_RDWR)
	if err != nil {
		return err
	}
	g := &guest{port: p, streams: map[uint32]*stream{}}
	if err := g.write(wire.Frame{Kind: wire.Hello}); err != nil {
		return err
	}
	r := bufio.NewReaderSize(p, wire.MaxPayload)
	for {
		f, err := wire.Read(r)
		if err != nil {
			return fmt.Errorf("read the serial port: %w", err)
		}
		if f.Kind == wire.Off {
			return turnOff()
		}
		if err := g.take(ctx, f); err != nil {
			return err
		}
	}
}

func (g *guest) write(f wire.Frame) error {
	g.send.Lock()
	defer g.send.Unlock()
	return wire.Write(g.port, f)
}

// take does what one frame says. An error is one of the serial port.
func (g *guest) take(ctx context.Context, f wire.Frame) error {
	s := g.streams[f.Stream]
	switch f.Kind {
	case wire.Run:
		return g.run(ctx, f.Stream, string(f.Payload))
	case wire.Dial:
		return g.dial(ctx, f.Stream, string(f.Payload))
	case wire.Data:
		if s != nil && s.conn != nil {
			_, _ = s.conn.Write(f.Payload) // whoever does not read it any more ends
		}
	case wire.EOF:
		if s != nil && s.conn != nil {
			_ = s.conn.CloseWrite() // as above
		}
	case wire.Signal:
		if s != nil && s.cmd != nil && len(f.Payload) == 1 {
			_ = syscall.Kill(-s.cmd.Process.Pid, syscall.Signal(f.Payload[0])) // it may have ended
		}
	default:
		return fmt.Errorf("the test sent a frame of kind %d", f.Kind)
	}
	return nil
}

// run starts a shell with a script and no input. What both outputs say is one stream.
func (g *guest) run(ctx context.Context, id uint32, script string) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", script)
	cmd.Env = []string{"PATH=/bin:/sbin", "HOME=/"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	_ = w.Close() // the command has its own
	if err != nil {
		_ = out.Close() // nobody wrote to it
		return g.ended(id, err)
	}
	g.streams[id] = &stream{cmd: cmd}
	go func() {
		g.copy(id, out)
		_ = out.Close() // it was read to its end
		g.report(id, cmd.Wait())
	}()
	return nil
}

// dial connects to a unix socket.
func (g *guest) dial(ctx context.Context, id uint32, path string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return g.ended(id, err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T is no unix socket", c)
	}
	g.streams[id] = &stream{conn: conn}
	go func() {
		g.copy(id, conn)
		_ = conn.Close() // the peer has closed it
		g.report(id, nil)
	}()
	return nil
}

// copy sends what comes from r as Data, until it ends.
func (g *guest) copy(id uint32, r io.Reader) {
	p := make([]byte, wire.MaxPayload)
	for {
		n, err := r.Read(p)
		if n > 0 {
			if g.write(wire.Frame{Stream: id, Kind: wire.Data, Payload: p[:n]}) != nil {
				return // the reading side of the port sees that too
			}
		}
		if err != nil {
			return
		}
	}
}

// report is ended from a goroutine of its own.
func (g *guest) report(id uint32, err error) {
	_ = g.ended(id, err) // the reading side of the port sees that too
}

// ended says how a stream ended.
func (g *guest) ended(id uint32, err error) error {
	f := wire.Frame{Stream: id, Kind: wire.Ended, Payload: []byte{0}}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		f.Payload[0] = byte(exit.ExitCode()) //nolint:gosec // of 0 to 255
	case err != nil:
		f.Payload = append([]byte{255}, err.Error()...)
	}
	return g.write(f)
}
