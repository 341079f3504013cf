package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/tlstest"
)

// withTLS returns a server that requires TLS.
func withTLS(s *Server, c *tls.Config) *Server {
	s.o.TLS = serverTLS(c)
	return s
}

// startTLS upgrades a connection that has said hello.
func (w *wire) startTLS(c *tls.Config) *wire {
	w.t.Helper()
	w.option(optStartTLS)
	w.expectReply(optStartTLS, repAck, []byte{})
	nc := tls.Client(w.nc, c)
	if err := nc.Handshake(); err != nil {
		w.t.Fatalf("TLS handshake: %v", err)
	}
	return &wire{t: w.t, nc: nc, extended: w.extended}
}

// Without a certificate TLS is refused, and nothing else changes.
func TestStartTLSNotOffered(t *testing.T) {
	w := connect(t, listen(t, serverOf(t, newMemory(1<<20).export("disk"))))
	w.hello()
	w.option(optStartTLS)
	w.expectReply(optStartTLS, repErrPolicy, nil)
	w.option(optGo, name("disk"), uint16(0))
	w.expectReply(optGo, repInfo, nil)
	w.expectReply(optGo, repInfo, nil)
	w.expectReply(optGo, repAck, nil)
	w.alive()
}

// Before TLS a client learns nothing, not even which options there are.
func TestStartTLSRequired(t *testing.T) {
	a := tlstest.New(t)
	path := listen(t, withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.ServerConfig()))
	w := connect(t, path)
	w.hello()
	for _, opt := range []struct {
		number uint32
		data   []byte
	}{
		{optList, nil},
		{optInfo, encode(name("disk"), uint16(0))},
		{optGo, encode(name("disk"), uint16(0))},
		{optGo, encode(name("nope"), uint16(0))},
		{optGo, []byte("malformed")},
		{optStructuredReply, nil},
		{optExtendedHeaders, nil},
		{optListMetaContext, encode(name("disk"), uint32(0))},
		{optSetMetaContext, encode(name("disk"), uint32(0))},
		{4711, []byte("unknown")},
		{optGo, make([]byte, maxOptionData+1)},
	} {
		w.option(opt.number, opt.data)
		w.expectReply(opt.number, repErrTLSReqd, nil)
	}
	w.option(optStartTLS, "data")
	w.expectReply(optStartTLS, repErrInvalid, nil)
	secure := w.startTLS(a.ClientConfig("c"))
	secure.enterAfterHello("disk", true)
	secure.alive()

	w = connect(t, path)
	w.hello()
	w.option(optAbort)
	w.expectReply(optAbort, repAck, nil)
	w.expectEnd()
	for _, opt := range []func(*wire){
		func(w *wire) { w.option(optExportName, "disk") },
		func(w *wire) { w.send("IHAVEOPT", optGo, uint32(maxSkippedData+1)) },
	} {
		w = connect(t, path)
		w.hello()
		opt(w)
		w.expectEnd()
	}
}

// Options count across the upgrade, which can be had once.
func TestStartTLSOnce(t *testing.T) {
	a := tlstest.New(t)
	path := listen(t, withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.ServerConfig()))
	w := connect(t, path)
	w.hello()
	for range 10 {
		w.option(optStructuredReply)
		w.expectReply(optStructuredReply, repErrTLSReqd, nil)
	}
	w = w.startTLS(a.ClientConfig("c"))
	w.option(optSetMetaContext, name("disk"), uint32(0))
	w.expectReply(optSetMetaContext, repErrInvalid, nil) // as nobody has asked for structured replies
	for range maxOptions - 12 {
		w.option(optStartTLS)
		w.expectReply(optStartTLS, repErrInvalid, nil)
	}
	w.expectEnd()
}

// Exports are chosen with the client's certificate in view.
func TestStartTLSPeer(t *testing.T) {
	a := tlstest.New(t)
	var mu sync.Mutex
	seen := map[string]Peer{}
	m := newMemory(1 << 20)
	e := m.export("disk")
	e.Open = func(_ context.Context, p Peer) (Device, error) {
		mu.Lock()
		defer mu.Unlock()
		seen["open"] = p
		m.opened.Add(1)
		return m, nil
	}
	s := NewServer(ServerOptions{
		TLS: a.ServerConfig(),
		Lookup: func(_ string, p Peer) (*Export, bool) {
			mu.Lock()
			defer mu.Unlock()
			seen["lookup"] = p
			return e, true
		},
		List: func(p Peer) []*Export {
			mu.Lock()
			defer mu.Unlock()
			seen["list"] = p
			return nil
		},
	})
	w := connect(t, listen(t, s))
	w.hello()
	w = w.startTLS(a.ClientConfig("vm-17"))
	w.option(optList)
	w.expectReply(optList, repAck, nil)
	w.enterAfterHello("disk", true)
	mu.Lock()
	defer mu.Unlock()
	for _, where := range []string{"list", "lookup", "open"} {
		p := seen[where]
		if p.CommonName != "vm-17" || len(p.DNSNames) != 1 || p.DNSNames[0] != "vm-17.example" || p.UID != os.Getuid() {
			t.Errorf("%s was told of %+v", where, p)
		}
	}
}

// A name that nobody vouches for is not one.
func TestStartTLSUnverifiedName(t *testing.T) {
	a := tlstest.New(t)
	c := a.ServerConfig()
	c.ClientAuth = tls.RequestClientCert
	names := make(chan Peer, 1)
	s := NewServer(ServerOptions{
		TLS:    c,
		Lookup: func(_ string, p Peer) (*Export, bool) { names <- p; return nil, false },
	})
	w := connect(t, listen(t, s))
	w.hello()
	w = w.startTLS(a.ClientConfig("root"))
	w.option(optGo, name("disk"), uint16(0))
	w.expectReply(optGo, repErrUnknown, nil)
	if p := <-names; p.CommonName != "" || p.DNSNames != nil {
		t.Errorf("got %+v", p)
	}
}

// lines is what a server logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Who has no certificate, the wrong one, or an old TLS does not get in, and the
// log says why.
func TestStartTLSRefused(t *testing.T) {
	a, other := tlstest.New(t), tlstest.New(t)
	anonymous, stranger, old, expired := a.ClientConfig("a"), other.ClientConfig("b"), a.ClientConfig("c"), a.ClientConfig("d")
	anonymous.Certificates = nil
	stranger.RootCAs = a.Pool()
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	expired.Time = func() time.Time { return time.Now().Add(48 * time.Hour) } // takes the server's for expired
	for _, test := range []struct {
		name   string
		client *tls.Config
		log    string
	}{
		{"no certificate", anonymous, "didn't provide a certificate"},
		{"certificate of another authority", stranger, "unknown authority"},
		{"TLS 1.1", old, "unsupported versions"},
		{"client refuses the server", expired, "bad certificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			log := new(lines)
			m := newMemory(1 << 20)
			s := withTLS(serverOf(t, m.export("disk")), a.ServerConfig())
			s.o.Logger = slog.New(slog.NewTextHandler(log, nil))
			t.Run("connect", func(t *testing.T) {
				w := connect(t, listen(t, s))
				w.hello()
				w.option(optStartTLS)
				w.expectReply(optStartTLS, repAck, nil)
				nc := tls.Client(w.nc, test.client)
				if err := nc.Handshake(); err == nil { // TLS 1.3: refused only behind the client's part of the handshake
					_, _ = nc.Write(encode("IHAVEOPT", optGo, uint32(10), name("disk"), uint16(0)))
					if b, err := io.ReadAll(nc); err == nil || len(b) > 0 {
						t.Errorf("got %x, %v", b, err)
					}
				}
				_, _ = io.Copy(io.Discard, w.nc) // until the server hangs up, for it has logged by then
			})
			if m.opened.Load() != 0 || !strings.Contains(log.String(), test.log) {
				t.Errorf("opened %d times, log %q, want %q", m.opened.Load(), log, test.log)
			}
		})
	}
}

// A client that was let in once shows its certificate again the next time, also to
// a configuration that is picked for it.
func TestStartTLSAnew(t *testing.T) {
	a, later := tlstest.New(t), tlstest.New(t)
	fixed, picked := a.ServerConfig(), a.ServerConfig()
	var trusted atomic.Pointer[tls.Config]
	trusted.Store(fixed)
	picked.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return trusted.Load(), nil }
	for kind, c := range map[string]*tls.Config{"fixed": fixed, "picked": picked} {
		t.Run(kind, func(t *testing.T) {
			path := listen(t, withTLS(serverOf(t, newMemory(1<<20).export("disk")), c))
			client := a.ClientConfig("c")
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for range 3 {
				w := connect(t, path)
				w.hello()
				w = w.startTLS(client)
				w.enterAfterHello("disk", true)
				w.alive()
				if w.nc.(*tls.Conn).ConnectionState().DidResume {
					t.Fatal("a session was taken up again")
				}
			}
			if kind == "fixed" {
				return
			}
			next := fixed.Clone()
			next.ClientCAs, next.MinVersion = later.Pool(), tls.VersionTLS10
			trusted.Store(next)
			old := a.ClientConfig("c")
			old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			old.Certificates = []tls.Certificate{later.Client("c", time.Now().Add(time.Hour))}
			for _, client := range []*tls.Config{client, old} {
				w := connect(t, path)
				w.hello()
				w.option(optStartTLS)
				w.expectReply(optStartTLS, repAck, []byte{})
				nc := tls.Client(w.nc, client)
				_, _ = nc.Write(encode("IHAVEOPT", optGo, uint32(10), name("disk"), uint16(0)))
				if b, err := io.ReadAll(nc); err == nil || len(b) > 0 {
					t.Errorf("got %x, %v", b, err)
				}
			}
		})
	}
}

// The handshake of TLS is part of the handshake that must end in time.
func TestStartTLSSilent(t *testing.T) {
	noLeaks(t)
	a := tlstest.New(t)
	s := withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.ServerConfig())
	s.o.HandshakeTimeout = 50 * time.Millisecond
	t.Run("silent", func(t *testing.T) {
		w := connect(t, listen(t, s))
		w.hello()
		w.option(optStartTLS)
		w.expectReply(optStartTLS, repAck, nil)
		w.expectEnd()
	})
}
