package quiesce

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// GuestAgent is the QEMU guest agent, in the guest, behind the unix socket of a
// virtio-serial port:
//
//	-chardev socket,id=qga0,path=SOCKET,server=on,wait=off
//	-device virtio-serial -device virtserialport,chardev=qga0,name=org.qemu.guest_agent.0
type GuestAgent struct {
	Socket string
}

var _ Hook = GuestAgent{}

const (
	// syncLimit is how long an agent may take to say that it is there.
	syncLimit = 5 * time.Second
	// maxAnswer caps an answer, and what comes before one.
	maxAnswer = 1 << 20
	sentinel  = 0xff
)

// Freeze freezes all file systems of the guest that can be. A guest that somebody else
// has frozen is an error that wraps ErrUntouched, as are all before it was told to.
func (g GuestAgent) Freeze(ctx context.Context) error {
	begun := false
	err := g.with(ctx, func(a *agentConn) error {
		var status string
		if err := a.call("guest-fsfreeze-status", &status); err != nil {
			return err
		}
		if status != "thawed" {
			return fmt.Errorf("quiesce: the guest behind %s is frozen already, by another program or by one that died: guest-fsfreeze-thaw helps", g.Socket)
		}
		var n int
		begun = true
		if err := a.call("guest-fsfreeze-freeze", &n); err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("quiesce: the guest behind %s has no file system that can be frozen", g.Socket)
		}
		return nil
	})
	if err != nil && !begun {
		err = fmt.Errorf("%w (%w)", err, ErrUntouched)
	}
	return err
}

// Thaw thaws all file systems of the guest.
func (g GuestAgent) Thaw(ctx context.Context) error {
	return g.with(ctx, func(a *agentConn) error {
		var n int
		if err := a.call("guest-fsfreeze-thaw", &n); err != nil {
			return err
		}
		var status string
		if err := a.call("guest-fsfreeze-status", &status); err != nil {
			return err
		}
		if status != "thawed" {
			return fmt.Errorf("quiesce: the guest behind %s says that it is %q after a thaw", g.Socket, status)
		}
		return nil
	})
}

// agentConn is a connection to an agent that is in step.
type agentConn struct {
	conn   net.Conn
	in     *bufio.Reader
	socket string
	ctx    func() error // why the context ended
}

// with connects, waits until the agent is in step, and runs fn, all until ctx ends. The
// port has one client at a time; another's answers may still be on the way.
func (g GuestAgent) with(ctx context.Context, fn func(*agentConn) error) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", g.Socket)
	if err != nil {
		return fmt.Errorf("quiesce: connect to the guest agent's socket: %w", err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
	})
	defer stop()
	a := &agentConn{conn: conn, in: bufio.NewReader(conn), socket: g.Socket, ctx: func() error { return context.Cause(ctx) }}
	if err = a.sync(ctx); err == nil {
		err = fn(a)
	}
	return errors.Join(err, conn.Close())
}

// sync makes sure that the next answer is to the next command.
func (a *agentConn) sync(ctx context.Context) error {
	wait, cancel := context.WithTimeout(ctx, syncLimit)
	defer cancel()
	stop := context.AfterFunc(wait, func() {
		_ = a.conn.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
	})
	err := a.inStep(rand.Int64N(1 << 52)) //nolint:gosec // not a secret; what JSON can say exactly
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case !stop():
		err = fmt.Errorf("it said nothing for %v", syncLimit)
	}
	if err != nil {
		return fmt.Errorf("quiesce: the guest agent behind %s does not answer: is it running in the guest, "+
			"and has nobody else (libvirt?) the socket open? %w", a.socket, err)
	}
	return nil
}

// inStep asks for an answer with a number, and skips all before it.
func (a *agentConn) inStep(id int64) error {
	// The first byte makes the agent forget half a command of another client.
	line := append([]byte{sentinel}, fmt.Sprintf("{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id)...)
	if _, err := a.conn.Write(line); err != nil {
		return err //nolint:wrapcheck // sync says what it is about
	}
	for {
		if _, err := readUntil(a.in, sentinel); err != nil {
			return err
		}
		line, err := readUntil(a.in, '\n')
		if err != nil {
			return err
		}
		var answer struct {
			Return int64 `json:"return"`
		}
		// What does not decode is another's, cut off.
		if json.Unmarshal(line, &answer) == nil && answer.Return == id {
			return nil
		}
	}
}

// call sends a command without arguments.
func (a *agentConn) call(command string, result any) error {
	fail := func(err error) error {
		if ended := a.ctx(); ended != nil {
			err = ended
		}
		return fmt.Errorf("quiesce: %s of the guest agent behind %s: %w", command, a.socket, err)
	}
	if _, err := fmt.Fprintf(a.conn, "{\"execute\":%q}\n", command); err != nil {
		return fail(err)
	}
	line, err := readUntil(a.in, '\n')
	if err != nil {
		return fail(err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	switch err = json.Unmarshal(line, &answer); {
	case err != nil:
		return fail(err)
	case answer.Error != nil:
		return fail(errors.New(answer.Error.Desc))
	case answer.Return == nil:
		return fail(errors.New("it answers neither yes nor no"))
	}
	if err = json.Unmarshal(answer.Return, result); err != nil {
		return fail(err)
	}
	return nil
}

// readUntil reads to a byte, which must come within maxAnswer.
func readUntil(r *bufio.Reader, delim byte) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice(delim)
		if len(line)+len(part) > maxAnswer {
			return nil, fmt.Errorf("it sent more than %d bytes", maxAnswer)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err //nolint:wrapcheck // the caller says what it is about
		}
	}
}
