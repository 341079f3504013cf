package guestvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/cairnbackup/cairn/internal/guestvm/wire"
)

// errGone is what streams get when the guest has ended.
var errGone = errors.New("the guest has ended")

// link is the test's end of a guest's serial port.
type link struct {
	conn  net.Conn
	hello chan struct{} // closed when the guest has booted
	done  chan struct{} // closed when nothing comes any more
	quit  chan struct{} // closed when nobody waits for anything any more
	send  sync.Mutex

	mu      sync.Mutex
	last    uint32
	streams map[uint32]*stream
}

// stream is a command in the guest, or a connection.
type stream struct {
	l      *link
	id     uint32
	frames chan wire.Frame // Data, then Ended
}

// newLink reads from c until it breaks.
func newLink(c net.Conn) *link {
	l := &link{conn: c, hello: make(chan struct{}), done: make(chan struct{}), quit: make(chan struct{}), streams: map[uint32]*stream{}}
	go l.read()
	return l
}

func (l *link) close() {
	close(l.quit)
	_ = l.conn.Close() // the guest has ended, or will notice nothing
	<-l.done
}

func (l *link) read() {
	defer close(l.done)
	r := bufio.NewReaderSize(l.conn, wire.MaxPayload)
	for {
		f, err := wire.Read(r)
		if err != nil {
			return
		}
		if f.Kind == wire.Hello {
			close(l.hello)
			continue
		}
		l.mu.Lock()
		s := l.streams[f.Stream]
		if f.Kind == wire.Ended {
			delete(l.streams, f.Stream)
		}
		l.mu.Unlock()
		if s == nil {
			continue
		}
		select {
		case s.frames <- f:
		case <-l.quit:
			return
		}
	}
}

func (l *link) write(f wire.Frame) error {
	l.send.Lock()
	defer l.send.Unlock()
	return wire.Write(l.conn, f)
}

// open begins a stream. Whoever opens it has to receive until it ends.
func (l *link) open(kind wire.Kind, what string) (*stream, error) {
	l.mu.Lock()
	l.last++
	s := &stream{l: l, id: l.last, frames: make(chan wire.Frame, 16)}
	l.streams[s.id] = s
	l.mu.Unlock()
	if err := l.write(wire.Frame{Stream: s.id, Kind: kind, Payload: []byte(what)}); err != nil {
		return nil, fmt.Errorf("%w: %w", errGone, err)
	}
	return s, nil
}

// copyTo writes what comes from the guest to w, until the stream ends: nil is its success.
// When ctx ends, a command is killed, and its end waited for.
func (s *stream) copyTo(ctx context.Context, w io.Writer) error {
	var failed error
	unkill := context.AfterFunc(ctx, func() { _ = s.signal(syscall.SIGKILL) }) // without a guest it ends anyway
	defer unkill()
	for {
		f, ok := s.next()
		switch {
		case !ok:
			return errors.Join(failed, errGone)
		case f.Kind == wire.Ended && ctx.Err() != nil:
			return errors.Join(failed, context.Cause(ctx))
		case f.Kind == wire.Ended:
			return errors.Join(failed, outcome(f))
		case failed == nil:
			_, failed = w.Write(f.Payload)
		}
	}
}

// next returns the next frame, and false when the guest has ended without one.
func (s *stream) next() (wire.Frame, bool) {
	select {
	case f := <-s.frames:
		return f, true
	case <-s.l.done:
	}
	select { // what came before the end
	case f := <-s.frames:
		return f, true
	default:
		return wire.Frame{}, false
	}
}

// signal sends a signal to a command and its children.
func (s *stream) signal(sig syscall.Signal) error {
	return s.l.write(wire.Frame{Stream: s.id, Kind: wire.Signal, Payload: []byte{byte(sig)}}) //nolint:gosec // below 65
}

// outcome is what an Ended frame says.
func outcome(f wire.Frame) error {
	switch {
	case len(f.Payload) == 0:
		return errors.New("the guest did not say how it ended")
	case f.Payload[0] == 0:
		return nil
	case len(f.Payload) > 1:
		return errors.New(string(f.Payload[1:]))
	default:
		return fmt.Errorf("exit status %d", f.Payload[0])
	}
}
