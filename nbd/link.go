package nbd

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPending is how many requests a client has on one connection.
	maxPending = 128
	// sendGrace is how long a canceled write may take to leave the program; cut
	// off in the middle it would cost the connection.
	sendGrace = 5 * time.Second
	// hangUpTime is how long Close waits for the server to end the connection.
	hangUpTime = 2 * time.Second
	// farewellTime is how long the other side may keep from being told that a
	// connection ends.
	farewellTime = time.Second
	// joinPayload is the largest payload that is copied behind its header.
	joinPayload = 16 << 10
)

// ErrClosed is what requests get once the client was closed.
var ErrClosed = errors.New("nbd: the client is closed")

// lostError is why a connection ended.
type lostError struct {
	what string
	err  error
}

func (e *lostError) Error() string { return "nbd: " + e.what + ": " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// link is one connection of a client. Requests are written by whoever makes
// them; one goroutine receives all replies.
type link struct {
	session *session
	ledger  *ledger
	nc      net.Conn // socket, or TLS on it
	socket  net.Conn // to hang up by closing it, which waits for nobody
	in      input
	heard   atomic.Bool // an answer to a request has arrived

	slots   chan struct{} // one for each request whose reply is still to come
	writing chan struct{} // held by who writes
	done    chan struct{} // closed when nothing will be received any more

	mu      sync.Mutex
	cookie  uint64
	pending map[uint64]*call
	err     error // why the connection ended
}

// newLink makes a link of what was negotiated through in, over a socket.
func newLink(socket net.Conn, in input, s *session, g *ledger) *link {
	nc := in.nc
	in.nc = patient{nc}
	return &link{
		session: s, ledger: g, nc: nc, socket: socket, in: in,
		slots:   make(chan struct{}, maxPending),
		writing: make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: make(map[uint64]*call),
	}
}

// start begins to receive. Close ends it.
func (l *link) start() { go l.receive() }

// fail ends the connection; the receiver tells everybody.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
	}
	closeQuietly(l.socket)
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
		l.goodbye()
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

// goodbye tells the server that nothing follows. It is only polite.
func (l *link) goodbye() {
	late := time.AfterFunc(farewellTime, func() { closeQuietly(l.socket) })
	defer late.Stop()
	disc, _ := l.message(&call{command: cmdDisc}, 0)
	_, _ = l.nc.Write(disc)
	if t, ok := l.nc.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
}

// receive takes replies until the connection ends, and then fails whatever is
// still pending.
func (l *link) receive() {
	defer close(l.done)
	for {
		if err := l.reply(); err != nil {
			l.fail(&lostError{what: "connection lost", err: err})
			break
		}
	}
	l.ledger.cut()
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
