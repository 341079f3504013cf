package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
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
	a := newAuthority(t)
	path := listen(t, withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.server()))
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
	secure := w.startTLS(a.client("c"))
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
	a := newAuthority(t)
	path := listen(t, withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.server()))
	w := connect(t, path)
	w.hello()
	for range 10 {
		w.option(optStructuredReply)
		w.expectReply(optStructuredReply, repErrTLSReqd, nil)
	}
	w = w.startTLS(a.client("c"))
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
	a := newAuthority(t)
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
		TLS: a.server(),
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
	w = w.startTLS(a.client("vm-17"))
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
	a := newAuthority(t)
	c := a.server()
	c.ClientAuth = tls.RequestClientCert
	names := make(chan Peer, 1)
	s := NewServer(ServerOptions{
		TLS:    c,
		Lookup: func(_ string, p Peer) (*Export, bool) { names <- p; return nil, false },
	})
	w := connect(t, listen(t, s))
	w.hello()
	w = w.startTLS(a.client("root"))
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
	a, other := newAuthority(t), newAuthority(t)
	anonymous, stranger, old, expired := a.client("a"), other.client("b"), a.client("c"), a.client("d")
	anonymous.Certificates = nil
	stranger.RootCAs = a.pool()
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
			s := withTLS(serverOf(t, m.export("disk")), a.server())
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

// The handshake of TLS is part of the handshake that must end in time.
func TestStartTLSSilent(t *testing.T) {
	noLeaks(t)
	a := newAuthority(t)
	s := withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.server())
	s.o.HandshakeTimeout = 50 * time.Millisecond
	t.Run("silent", func(t *testing.T) {
		w := connect(t, listen(t, s))
		w.hello()
		w.option(optStartTLS)
		w.expectReply(optStartTLS, repAck, nil)
		w.expectEnd()
	})
}

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
	a := newAuthority(t)
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
			w := connect(t, listen(t, withTLS(serverOf(t, m.export("disk")), a.server())))
			w.hello()
			socket := &endSpy{Conn: w.nc}
			w.nc = socket
			w = w.startTLS(a.client("c"))
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
	a := newAuthority(t)
	s := withTLS(serverOf(t, newMemory(1<<20).export("disk")), a.server())
	near, far := net.Pipe() // where a write waits until it is read
	done := make(chan struct{})
	go func() { s.ServeConn(t.Context(), far); close(done) }()
	w := &wire{t: t, nc: near}
	w.hello()
	w = w.startTLS(a.client("c"))
	w.enterAfterHello("disk", true)
	w.request(0, cmdDisc, 0, 0, 0)
	<-done // and nobody has read the close_notify
	closeQuietly(near)
}

// nbdkit took what a man in the middle had put behind STARTTLS, in plain text, for
// what the client said inside TLS, and kept what was negotiated before.
func TestCVE_2021_3716(t *testing.T) {
	noLeaks(t)
	a := newAuthority(t)
	m := newMemory(1 << 20)
	startTLS := encode("IHAVEOPT", optStartTLS, uint32(0))
	injected := encode("IHAVEOPT", optStructuredReply, uint32(0))
	t.Run("injection", func(t *testing.T) {
		path := listen(t, withTLS(serverOf(t, m.export("disk")), a.server()))
		t.Run("with STARTTLS", func(t *testing.T) {
			for n := range injected {
				w := connect(t, path)
				w.hello()
				w.send(startTLS, injected[:n+1])
				w.expectEnd() // without an acknowledgement
				closeQuietly(w.nc)
			}
		})
		t.Run("before the client's hello", func(t *testing.T) {
			w := connect(t, path)
			w.hello()
			w.send(startTLS)
			w.expectReply(optStartTLS, repAck, nil)
			w.send(injected)
			nc := tls.Client(w.nc, a.client("c"))
			if err := nc.Handshake(); err == nil {
				t.Error("the handshake passed over what was injected")
			}
			closeQuietly(w.nc)
		})
		t.Run("before STARTTLS", func(t *testing.T) {
			w := connect(t, path)
			w.hello()
			w.send(injected)
			w.expectReply(optStructuredReply, repErrTLSReqd, nil)
			w = w.startTLS(a.client("c"))
			w.option(optExportName, "disk")
			w.expect(uint64(1<<20), rwFlags&^flagSendDF) // the client did not ask for structured replies
			w.alive()
			closeQuietly(w.nc)
		})
	})
	if m.opened.Load() != 1 {
		t.Errorf("the device was opened %d times", m.opened.Load())
	}
}

// Large requests and many of them pass through TLS.
func TestTLSLarge(t *testing.T) {
	for i, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			a := newAuthority(t)
			d, m := kind.device(t, maxPayload)
			e := m.export("disk")
			e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
			w := connect(t, listen(t, withTLS(serverOf(t, e), a.server())))
			w.extended = i%2 == 0
			w.hello()
			w = w.startTLS(a.client("c"))
			w.enterAfterHello("disk", true)
			w.large()
		})
	}
}

// large writes 64 MiB in one request, reads them back so, and has more requests in
// flight than the server defers.
func (w *wire) large() {
	w.t.Helper()
	p := bytes.Repeat([]byte("0123456789abcde\n"), maxPayload/16)
	w.request(0, cmdWrite, 1, 0, maxPayload, p)
	w.expectSimple(1, 0)
	got := make([]byte, maxPayload)
	w.request(0, cmdRead, 2, 0, maxPayload)
	w.readChunks(got, 2, maxPayload)
	if !bytes.Equal(got, p) {
		w.t.Fatal("read something else than was written")
	}
	const many = 200
	clear(got)
	go func() {
		for i := range uint64(many) {
			w.request(0, cmdRead, 100+i, i*(256<<10), 256<<10)
		}
	}()
	w.readChunks(got, 0, many*(256<<10))
	if !bytes.Equal(got[:many*(256<<10)], p[:many*(256<<10)]) {
		w.t.Fatal("many reads read something else than was written")
	}
}

// readChunks reads data chunks until total bytes have come; cookie zero takes any.
func (w *wire) readChunks(p []byte, cookie uint64, total int) {
	w.t.Helper()
	for total > 0 {
		flags, kind, c, n := w.chunkHead()
		off := binary.BigEndian.Uint64(w.read(8))
		n -= 8
		if flags > 1 || kind != chunkOffsetData || cookie != 0 && c != cookie || off+uint64(n) > uint64(len(p)) {
			w.t.Fatalf("chunk of flags %d, type %d, for %d, %d bytes at %d", flags, kind, c, n, off)
		}
		if _, err := io.ReadFull(w.nc, p[off:off+uint64(n)]); err != nil {
			w.t.Fatal(err)
		}
		total -= n
	}
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
	a := newAuthority(t)
	d := newFileDisk(t, 1<<20, true)
	e := d.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) {
		d.opened.Add(1)
		return d, nil
	}
	s := withTLS(serverOf(t, e), a.server())
	s.o.MaxConns = 1 << 20
	client := a.client("c")
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
		for ; !session(t, path, n); n += 7 {
		}
		if n < len(options) {
			t.Errorf("a session of %d bytes took %d in TLS", len(options), n)
		}
	})
	if opened := d.opened.Load(); opened == 0 || opened != d.closed.Load() || d.begun.Load() != 0 {
		t.Errorf("opened %d times, closed %d times, %d writes never ended", opened, d.closed.Load(), d.begun.Load())
	}
}

// Other implementations get in with a certificate, and only with one.
func TestInteropTLS(t *testing.T) {
	nbdinfo, nbdcopy := needs.Tool(t, "nbdinfo", "libnbd-bin"), needs.Tool(t, "nbdcopy", "libnbd-bin")
	img := needs.Tool(t, "qemu-img", "qemu-utils")
	const size = 32 << 20
	a := newAuthority(t)
	d := newFileDisk(t, size, true)
	e := d.export("disk")
	e.Open = func(_ context.Context, p Peer) (Device, error) {
		if p.CommonName != "alice" {
			t.Errorf("opened by %+v", p)
		}
		return d, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := withTLS(serverOf(t, e), a.server())
	serveUntilEnd(t, s, l)
	dir, address := a.clientDir("alice"), l.Addr().(*net.TCPAddr)
	uri := "nbds://" + address.String() + "/disk?tls-certificates=" + dir

	contains(t, run(t, nbdinfo, uri), "newstyle-fixed with TLS", "structured packets", "export-size: 33554432", "base:allocation")
	contains(t, run(t, nbdinfo, "--list", uri), `export="disk":`)
	ref, want := image(t, size)
	run(t, nbdcopy, "--flush", ref, uri)
	if !bytes.Equal(content(t, d), want) {
		t.Fatal("nbdcopy wrote something else")
	}
	run(t, nbdcopy, "--connections=4", uri, ref+".out")
	if got, err := os.ReadFile(ref + ".out"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("nbdcopy read something else, %v", err)
	}
	creds := []string{"--object", "tls-creds-x509,id=t,endpoint=client,dir=" + dir, "--image-opts"}
	node := "driver=nbd,host=127.0.0.1,port=" + strings.TrimPrefix(address.String(), "127.0.0.1:") + ",export=disk,tls-creds=t"
	contains(t, run(t, img, append(append([]string{"compare"}, creds...), "driver=raw,file.driver=file,file.filename="+ref, node)...), "identical")
	run(t, img, append(append([]string{"convert", "-n"}, creds...), "--target-image-opts", "driver=raw,file.driver=file,file.filename="+ref, node)...)

	for _, plain := range []string{"nbd://" + address.String() + "/disk", "nbds://" + address.String() + "/disk?tls-certificates=" + newAuthority(t).clientDir("mallory")} {
		if out, err := command(t, nbdinfo, plain).CombinedOutput(); err == nil {
			t.Errorf("nbdinfo %s got in:\n%s", plain, out)
		}
	}
}
