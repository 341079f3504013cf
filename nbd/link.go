package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

const (
	// maxPending is how many requests a client has on one connection.
	maxPending = 128
	// sendGrace is how long a canceled write may take to leave the program; cut
	// off in the middle it would cost the connection.
	sendGrace = 5 * time.Second
	// hangUpTime is how long Close waits for the server to end the connection.
	hangUpTime = 2 * time.Second
	// joinPayload is the largest payload that is copied behind its header.
	joinPayload = 16 << 10
)

// ErrClosed is what requests get once the client was closed.
var ErrClosed = errors.New("nbd: the client is closed")

// link is one connection of a client. Requests are written by whoever makes
// them; one goroutine receives all replies.
type link struct {
	session *session
	nc      net.Conn
	in      input

	slots   chan struct{} // one for each request whose reply is still to come
	writing chan struct{} // held by who writes
	done    chan struct{} // closed when nothing will be received any more

	mu      sync.Mutex
	cookie  uint64
	pending map[uint64]*call
	err     error // why the connection ended
}

// call is a request on its way.
type call struct {
	command uint16
	off     int64

	// READ
	p       []byte
	arrived coverage

	// BLOCK_STATUS
	context uint32
	mapped  bool
	extents []blockmap.Extent
	room    *atomic.Int64 // for extents, of all the requests that share it

	err      error         // the server's answer, or the link's end
	finished chan struct{} // closed after err was set

	// Guarded by link.mu. While receiving is set p is being written to; whoever
	// abandons the call then waits for released.
	abandoned, receiving bool
	released             chan struct{}
}

func newLink(nc net.Conn, in input, s *session) *link {
	in.nc = patient{nc}
	return &link{
		session: s, nc: nc, in: in,
		slots:   make(chan struct{}, maxPending),
		writing: make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make(map[uint64]*call),
	}
}

// start begins to receive. Close ends it.
func (l *link) start() { go l.receive() }

// do sends a request and waits for its answer. When ctx ends first, c.p is no
// longer touched after do has returned; the answer will be discarded.
func (l *link) do(ctx context.Context, c *call, flags uint16, length uint32, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.done:
		return l.cause()
	}
	select {
	case l.writing <- struct{}{}:
	case <-ctx.Done():
		<-l.slots
		return ctx.Err()
	case <-l.done:
		<-l.slots
		return l.cause()
	}
	c.finished, c.released = make(chan struct{}), make(chan struct{})
	cookie, err := l.register(c)
	if err != nil {
		<-l.writing
		<-l.slots
		return err
	}
	b := make([]byte, 0, requestSize+min(len(payload), joinPayload))
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, c.command)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(c.off)) //nolint:gosec // not negative
	b = binary.BigEndian.AppendUint32(b, length)
	err = l.send(ctx, b, payload)
	<-l.writing
	if err != nil {
		l.fail(fmt.Errorf("nbd: send: %w", err))
	}
	select {
	case <-c.finished:
		return c.err
	case <-ctx.Done():
		l.abandon(c)
		return ctx.Err()
	}
}

// register gives the call a cookie. From then on the receiver owns its slot.
func (l *link) register(c *call) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	l.cookie++
	l.pending[l.cookie] = c
	return l.cookie, nil
}

// send writes a header and its payload.
func (l *link) send(ctx context.Context, head, payload []byte) error {
	late := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = l.nc.SetWriteDeadline(time.Now().Add(sendGrace)) // a closed connection needs no deadline
		close(late)
	})
	var err error
	if len(payload) <= joinPayload {
		_, err = l.nc.Write(append(head, payload...))
	} else {
		parts := net.Buffers{head, payload}
		_, err = parts.WriteTo(l.nc)
	}
	if !stop() {
		<-late
		_ = l.nc.SetWriteDeadline(time.Time{}) // a closed connection needs no deadline
	}
	return err
}

// abandon gives up on a call and returns when its buffer is free.
func (l *link) abandon(c *call) {
	l.mu.Lock()
	c.abandoned = true
	receiving := c.receiving
	l.mu.Unlock()
	if receiving {
		_ = l.nc.SetReadDeadline(longAgo) // a closed connection is awake already
		<-c.released
	}
}

// fail ends the connection; the receiver tells everybody.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	closeQuietly(l.nc)
}

func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Close says goodbye, if nobody is in the middle of a request, and ends the
// connection. Requests on their way fail, unless they are answered meanwhile.
func (l *link) Close() error {
	l.mu.Lock()
	if l.err == nil {
		l.err = ErrClosed // no request begins from now on
	}
	l.mu.Unlock()
	select {
	case l.writing <- struct{}{}:
		b := binary.BigEndian.AppendUint32(make([]byte, 0, requestSize), magicRequest)
		b = binary.BigEndian.AppendUint16(b, 0)
		b = binary.BigEndian.AppendUint16(b, cmdDisc)
		_ = l.nc.SetWriteDeadline(time.Now().Add(time.Second)) // goodbye is only polite
		_, _ = l.nc.Write(b[:requestSize])
		<-l.writing
		// The server hangs up once it has let go of the export: whoever opens it
		// next shall not find it held by us.
		hangUp := time.NewTimer(hangUpTime)
		defer hangUp.Stop()
		select {
		case <-l.done:
		case <-hangUp.C:
		}
	default:
	}
	l.fail(ErrClosed)
	<-l.done
	return nil
}

// receive takes replies until the connection ends, and then fails whatever is
// still pending.
func (l *link) receive() {
	defer close(l.done)
	for {
		if err := l.reply(); err != nil {
			l.fail(fmt.Errorf("nbd: connection lost: %w", err))
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for cookie, c := range l.pending {
		l.finish(cookie, c, l.err)
	}
}

// finish answers a call; l.mu is held.
func (l *link) finish(cookie uint64, c *call, err error) {
	delete(l.pending, cookie)
	c.err = err
	close(c.finished)
	<-l.slots
}

// into receives len(p) bytes that belong to c.p. Once the call is abandoned they
// go nowhere.
func (l *link) into(c *call, p []byte) error {
	for len(p) > 0 {
		l.mu.Lock()
		if c.abandoned {
			l.mu.Unlock()
			return l.in.discard(int64(len(p)))
		}
		c.receiving = true
		l.mu.Unlock()

		var n int
		var err error
		if l.in.buffered() > 0 {
			n = copy(p, l.in.take(min(len(p), l.in.buffered())))
		} else {
			n, err = l.nc.Read(p)
		}
		p = p[n:]

		l.mu.Lock()
		c.receiving = false
		if c.abandoned {
			close(c.released)
		}
		l.mu.Unlock()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = l.nc.SetReadDeadline(time.Time{})
		}
		if err != nil && len(p) > 0 {
			return midway(err)
		}
	}
	return nil
}

// patient is a connection on which an expired deadline means nothing: it only
// served to wake into.
type patient struct{ net.Conn }

func (c patient) Read(p []byte) (int, error) {
	for {
		n, err := c.Conn.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
	}
}
