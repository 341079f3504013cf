package qemu

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	// maxLine caps one line of qemu's: a description of some 10,000 nodes.
	maxLine = 16 << 20
	// maxSkipped caps what is passed over while waiting for an answer.
	maxSkipped = 100_000
	// greetingLimit is how long to wait for the monitor to become free. It is
	// longer than a guest's file systems may be frozen, while the monitor is held.
	greetingLimit = 20 * time.Second
	// redial is how often it is tried to queue up for the monitor.
	redial = 20 * time.Millisecond
	// commandLimit bounds each command. All that are used here take milliseconds,
	// unless the guest's storage hangs.
	commandLimit = 30 * time.Second
)

// wire is a connection that can carry file descriptors.
type wire interface {
	net.Conn
	WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
}

// monitor is one connection to a QMP monitor. It is used by one goroutine. After an
// error that is not a *CommandError it is of no more use. While it is open nobody
// else is served: a monitor has one client at a time.
type monitor struct {
	conn   wire
	in     *bufio.Reader
	socket string
	name   string // begins the IDs of this connection's commands
	seq    uint64
}

// message is anything that qemu sends.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Event    string          `json:"event"`
	ID       any             `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func dialUnix(ctx context.Context, socket string) (wire, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err //nolint:wrapcheck // openMonitor says what it is about
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%T is no unix connection", c), c.Close())
	}
	return u, nil
}

// openMonitor connects and waits for its turn.
func openMonitor(ctx context.Context, socket string, dial func(context.Context, string) (wire, error), patience time.Duration) (*monitor, error) {
	turn, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := dial(turn, socket)
	for errors.Is(err, syscall.EAGAIN) { // others wait for their turn already
		select {
		case <-turn.Done():
			return nil, notServed(ctx, socket)
		case <-time.After(redial):
		}
		conn, err = dial(turn, socket)
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded): // in the queue of those who wait
		return nil, notServed(ctx, socket)
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("qemu: there is no monitor %s: is the guest running, with -qmp unix:%[1]s,server=on,wait=off? (%w: %w)", socket, ErrUnreachable, ErrEnded)
	case errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("qemu: nobody listens on the monitor %s (%w: %w)", socket, ErrUnreachable, ErrEnded)
	case err != nil:
		return nil, fmt.Errorf("qemu: connect to the monitor %s: %w (%w)", socket, err, ErrUnreachable)
	}
	m := &monitor{conn: conn, in: bufio.NewReader(conn), socket: socket, name: rand.Text()}
	if err := m.greet(ctx, turn); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// notServed says why there was no greeting.
func notServed(ctx context.Context, socket string) error {
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("qemu: no answer on the monitor %s: %w", socket, err)
	}
	return busy(socket)
}

func busy(socket string) error {
	return fmt.Errorf("qemu: another client (libvirt?) holds the monitor %s, which serves one at a time, or qemu stands still: "+
		"give qemu a second one with -qmp unix:PATH,server=on,wait=off (%w)", socket, ErrBusy)
}

// greet reads qemu's greeting, which comes when it is this client's turn.
func (m *monitor) greet(ctx, turn context.Context) error {
	err := m.bounded(turn, func() error {
		_, err := m.await(func(got message) bool { return got.Greeting != nil })
		return err
	})
	switch {
	case err != nil && turn.Err() != nil:
		return notServed(ctx, m.socket)
	case err != nil:
		return m.cut(err)
	}
	return m.call(ctx, "qmp_capabilities", nil, nil)
}

// Close ends the connection; the monitor is free for others then.
func (m *monitor) Close() error {
	if err := m.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("qemu: close the monitor %s: %w", m.socket, err)
	}
	return nil
}

// call executes one command, with files for it to receive, and decodes what it
// returns into result, unless that is nil.
func (m *monitor) call(ctx context.Context, command string, args, result any, files ...*os.File) error {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	m.seq++
	id := fmt.Sprintf("%s-%d", m.name, m.seq)
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        string `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("qemu: encode %s: %w", command, err)
	}
	var answer message
	err = m.bounded(ctx, func() (err error) {
		if err = m.send(append(line, '\n'), files); err == nil {
			answer, err = m.await(func(got message) bool { return got.ID == id && (got.Return != nil || got.Error != nil) })
		}
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("%w, at %s", m.cut(err), command)
	case answer.Error != nil:
		return &CommandError{Command: command, Class: answer.Error.Class, Desc: answer.Error.Desc}
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("qemu: what %s returns cannot be understood: %w", command, err)
	}
	return nil
}

// bounded runs fn, whose reads and writes fail when ctx ends.
func (m *monitor) bounded(ctx context.Context, fn func() error) error {
	stop := context.AfterFunc(ctx, func() {
		_ = m.conn.SetDeadline(time.Unix(1, 0)) // fails only on a closed connection
	})
	defer stop()
	if err := fn(); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return nil
}

// cut says what a lost connection means.
func (m *monitor) cut(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("qemu: no answer on the monitor %s: %w", m.socket, err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("qemu: the monitor %s hung up: has the guest ended? (%w)", m.socket, ErrUnreachable)
	}
	return fmt.Errorf("qemu: the monitor %s: %w (%w)", m.socket, err, ErrUnreachable)
}

func (m *monitor) send(line []byte, files []*os.File) error {
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = syscall.UnixRights(fds...)
	}
	n, _, err := m.conn.WriteMsgUnix(line, oob, nil)
	if err == nil && n < len(line) { // the descriptors went with the first part
		_, err = m.conn.Write(line[n:])
	}
	return err //nolint:wrapcheck // call says what it is about
}

// await returns the first message that is wanted. Events are passed over, and answers
// to the last client, which come to this one if that hung up without waiting.
func (m *monitor) await(wanted func(message) bool) (message, error) {
	for range maxSkipped {
		got, err := m.receive()
		if err != nil || wanted(got) {
			return got, err
		}
	}
	return message{}, fmt.Errorf("%d lines, and none of them what a QMP monitor answers", maxSkipped)
}

func (m *monitor) receive() (message, error) {
	line, err := readLine(m.in, maxLine)
	if err != nil {
		return message{}, err
	}
	var got message
	if err := json.Unmarshal(line, &got); err != nil {
		return message{}, fmt.Errorf("it does not speak QMP: %w", err)
	}
	return got, nil
}

// readLine returns the next line of at most limit bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("it sent a line of more than %d bytes", limit)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return bytes.TrimSpace(line), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err //nolint:wrapcheck // the caller says what it is about
		}
	}
}
