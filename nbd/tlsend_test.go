package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// endSpy notes whether the end of a socket has been read: with TLS on it that is only
// so without a close_notify.
type endSpy struct {
	net.Conn
	ended bool
}

func (s *endSpy) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.ended = s.ended || err != nil
	return n, err
}

// Whichever side ends the connection in order, the client is told inside TLS.
func TestTLSGoodbye(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	for _, end := range []struct {
		name string
		talk func(w *wire)
	}{
		{"abort", func(w *wire) { w.option(optAbort); w.expectReply(optAbort, repAck, nil) }},
		{"disconnect", func(w *wire) { w.enterAfterHello("disk", true); w.request(0, cmdDisc, 0, 0, 0) }},
		{"close", func(w *wire) {
			w.enterAfterHello("disk", true)
			if err := w.nc.(*tls.Conn).CloseWrite(); err != nil {
				w.t.Error(err)
			}
		}},
		{"violation", func(w *wire) { w.send("IHAVEOPS", optGo, uint32(0)) }},
	} {
		t.Run(end.name, func(t *testing.T) {
			m := newMemory(1 << 20)
			w := connect(t, listen(t, withTLS(serverOf(t, m.export("disk")), a.ServerConfig())))
			w.hello()
			socket := &endSpy{Conn: w.nc}
			w.nc = socket
			w = w.startTLS(a.ClientConfig("c"))
			end.talk(w)
			if b, err := io.ReadAll(w.nc); err != nil || len(b) > 0 || socket.ended {
				t.Errorf("got %x, %v; the end came from the socket: %v", b, err, socket.ended)
			}
			closeQuietly(w.nc)
		})
	}
}

// A client that does not listen any more keeps the server from nothing.
func TestTLSDeafClient(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	s := withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.ServerConfig())
	near, far := net.Pipe() // where a write waits until it is read
	done := make(chan struct{})
	go func() { s.ServeConn(t.Context(), far); close(done) }()
	w := &wire{t: t, nc: near}
	w.hello()
	w = w.startTLS(a.ClientConfig("c"))
	w.enterAfterHello("disk", true)
	w.request(0, cmdDisc, 0, 0, 0)
	<-done // and nobody has read the close_notify
	closeQuietly(near)
}

// leaky is a client's socket that breaks when so much has been written to it.
type leaky struct {
	net.Conn
	left int
}

var errLeaked = errors.New("cut")

func (l *leaky) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.Conn.Write(p[:n]); err != nil {
		return 0, err
	}
	if n < len(p) {
		closeQuietly(l.Conn)
		return n, errLeaked
	}
	return n, nil
}

// A client may vanish anywhere inside TLS, its handshake and its records, and need
// not say goodbye.
func TestCutTLS(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	d := newFileDisk(t, 1<<20, true)
	e := d.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) {
		d.opened.Add(1)
		return d, nil
	}
	s := withTLS(serverOf(t, e), a.ServerConfig())
	s.o.MaxConns = 1 << 20
	client := brief(a.ClientConfig("c"))
	options := script(500, true)[4:]
	session := func(t *testing.T, path string, n int) (all bool) {
		t.Helper()
		w := connect(t, path)
		defer closeQuietly(w.nc)
		w.hello()
		w.option(optStartTLS)
		w.expectReply(optStartTLS, repAck, nil)
		cut := &leaky{w.nc, n}
		nc := tls.Client(cut, client)
		if nc.Handshake() != nil {
			return false
		}
		drained := make(chan struct{})
		go func() { _, _ = io.Copy(io.Discard, nc); close(drained) }()
		for p := options; len(p) > 0; p = p[min(100, len(p)):] { // in several records
			if _, err := nc.Write(p[:min(100, len(p))]); err != nil {
				<-drained
				return false
			}
		}
		<-drained
		return true
	}
	t.Run("cut", func(t *testing.T) {
		path := listen(t, s)
		n := 0
		for ; !session(t, path, n); n++ {
		}
		if n < len(options) {
			t.Errorf("a session of %d bytes took %d in TLS", len(options), n)
		}
	})
	if opened := d.opened.Load(); opened == 0 || opened != d.closed.Load() || d.begun.Load() != 0 {
		t.Errorf("opened %d times, closed %d times, %d writes never ended", opened, d.closed.Load(), d.begun.Load())
	}
}

// The end of Serve waits no longer for a client inside TLS that takes no replies.
func TestTLSServeStops(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	m := newMemory(64 << 20)
	m.WriteAt(bytes.Repeat([]byte{1}, 64<<20), 0)
	path, l := socket(t)
	stop := serveOn(t, withTLS(serverOf(t, m.export("disk")), a.ServerConfig()), l)
	waiting := connect(t, path) // in the middle of the handshake of TLS
	waiting.hello()
	waiting.option(optStartTLS)
	waiting.expectReply(optStartTLS, repAck, nil)
	w := connect(t, path)
	w.hello()
	plain := w.nc
	w = w.startTLS(a.ClientConfig("c"))
	w.enterAfterHello("disk", true)
	stopUnread(w, m, stop)
	closeQuietly(plain)
	closeQuietly(waiting.nc)
}
