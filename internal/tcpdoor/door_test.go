package tcpdoor

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/tlstest"
	"github.com/cairnbackup/cairn/nbd"
)

// zeros is a device that only reads zeros, and counts those that are open.
type zeros struct{ open *atomic.Int64 }

func (zeros) Size() int64                           { return 1 << 20 }
func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }
func (zeros) WriteAt([]byte, int64) (int, error)    { return 0, nbd.EPERM }
func (zeros) Flush() error                          { return nil }
func (zeros) Trim(_, _ int64) error                 { return nbd.EPERM }
func (zeros) Zero(_, _ int64, _ bool) error         { return nbd.EPERM }
func (zeros) Map(_ string, off, n int64) ([]blockmap.Extent, error) {
	return []blockmap.Extent{{Offset: off, Length: n}}, nil
}

func (z zeros) Close() error {
	z.open.Add(-1)
	return nil
}

// shelf is a source of exports that end when their channel does.
type shelf struct {
	mu   sync.Mutex
	ends map[string]chan struct{}
	open atomic.Int64
}

func newShelf(names ...string) *shelf {
	s := &shelf{ends: map[string]chan struct{}{}}
	for _, n := range names {
		s.ends[n] = make(chan struct{})
	}
	return s
}

func (s *shelf) Export(name string) (Export, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end, ok := s.ends[name]
	return Export{End: end, Export: &nbd.Export{
		Name: name, ReadOnly: true, Size: func() int64 { return zeros{}.Size() },
		Open: func(context.Context, nbd.Peer) (nbd.Device, error) {
			if strings.HasPrefix(name, "broken") {
				return nil, errors.New("it is broken")
			}
			s.open.Add(1)
			return zeros{&s.open}, nil
		},
	}}, ok
}

func (s *shelf) Exports() iter.Seq[Export] {
	return func(yield func(Export) bool) {
		s.mu.Lock()
		names := slices.Sorted(func(yield func(string) bool) {
			for n := range s.ends {
				if !yield(n) {
					return
				}
			}
		})
		s.mu.Unlock()
		for _, n := range names {
			if e, ok := s.Export(n); ok && !yield(e) {
				return
			}
		}
	}
}

// logged collects what is logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), what)
}

// rig is a door that serves a shelf on the loopback address.
type rig struct {
	ca   *tlstest.Authority
	addr string
	log  *logged
	door *Door
	stop func() // ends Serve, which has to end well; may be called again
}

func openDoor(tb testing.TB, s *shelf, g Grants, b bounds) *rig {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	r := &rig{ca: tlstest.New(tb), addr: l.Addr().String(), log: &logged{}}
	set := &Settings{Listeners: []net.Listener{l}, TLS: r.ca.ServerConfig(), Grants: func() Grants { return g }}
	r.door = New(set, s, slog.New(slog.NewTextHandler(r.log, nil)))
	r.door.hall.bounds = b
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.door.Serve(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("the door: %v", err)
		}
		if n := s.open.Load(); n != 0 {
			tb.Errorf("%d devices are left open", n)
		}
	})
	tb.Cleanup(r.stop)
	return r
}

// client is a client that shakes hands by hand.
type client struct {
	tb testing.TB
	net.Conn
}

// call connects from an address and does nothing.
func (r *rig) call(tb testing.TB, from string) *client {
	tb.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	nc, err := d.DialContext(tb.Context(), "tcp", r.addr)
	if err != nil {
		tb.Fatal(err)
	}
	c := &client{tb, nc}
	tb.Cleanup(func() { _ = nc.Close() })
	c.must(nc.SetDeadline(time.Now().Add(time.Minute)))
	c.read(18) // the greeting
	return c
}

// greet connects and shows a certificate of this name.
func (r *rig) greet(tb testing.TB, from, name string) *client {
	tb.Helper()
	c := r.call(tb, from)
	c.write(binary.BigEndian.AppendUint32(nil, 3))
	if rep, _ := c.option(5, nil); rep != 1 {
		tb.Fatalf("STARTTLS is answered %#x", rep)
	}
	c.Conn = tls.Client(c.Conn, r.ca.ClientConfig(name))
	return c
}

func (c *client) must(err error) {
	c.tb.Helper()
	if err != nil {
		c.tb.Fatal(err)
	}
}

func (c *client) read(n int) []byte {
	c.tb.Helper()
	p := make([]byte, n)
	_, err := io.ReadFull(c, p)
	c.must(err)
	return p
}

func (c *client) write(p []byte) {
	c.tb.Helper()
	_, err := c.Write(p)
	c.must(err)
}

// option sends one and returns the type and data of its first reply.
func (c *client) option(opt uint32, data []byte) (rep uint32, text string) {
	c.tb.Helper()
	b := binary.BigEndian.AppendUint32([]byte("IHAVEOPT"), opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	c.write(append(b, data...))
	return c.reply()
}

func (c *client) reply() (rep uint32, text string) {
	c.tb.Helper()
	h := c.read(20)
	return binary.BigEndian.Uint32(h[12:]), string(c.read(int(binary.BigEndian.Uint32(h[16:]))))
}

// goTo asks for an export, and returns why it is refused, empty if it is not.
func (c *client) goTo(name string) string {
	c.tb.Helper()
	b := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	rep, text := c.option(7, append(append(b, name...), 0, 0))
	for ; rep == 3; rep, text = c.reply() {
		continue
	}
	if rep == 1 {
		return ""
	}
	return fmt.Sprintf("%#x %s", rep, text)
}

// list returns the names of all exports that the client sees.
func (c *client) list() string {
	c.tb.Helper()
	var names []string
	for rep, text := c.option(3, nil); rep == 2; rep, text = c.reply() {
		names = append(names, text[4:])
	}
	return strings.Join(names, " ")
}

// ended waits until the server has ended the connection.
func (c *client) ended() {
	c.tb.Helper()
	n, err := io.Copy(io.Discard, c.Conn)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		c.tb.Fatalf("the connection goes on; %d bytes came", n)
	}
}

func TestCertificatesSeeTheirExports(t *testing.T) {
	s := newShelf("db-1", "db-2", "vm1", "vm1@ro", "broken")
	r := openDoor(t, s, Grants{"alice": {"db-*"}, "bob": {"vm1@ro", "nothing", "broken"}, "carol": {}}, defaultBounds)
	for name, want := range map[string]string{"alice": "db-1 db-2", "bob": "broken vm1@ro", "carol": "", "mallory": ""} {
		c := r.greet(t, "127.0.0.1", name)
		if got := c.list(); got != want {
			t.Errorf("%s sees %q, want %q", name, got, want)
		}
		for _, export := range []string{"db-1", "vm1", "vm1@ro"} {
			allowed := name == "alice" && export == "db-1" || name == "bob" && export == "vm1@ro"
			refusal := c.goTo(export)
			if (refusal == "") != allowed {
				t.Errorf("%s asks for %s: %q", name, export, refusal)
			}
			if refusal == "" {
				break
			}
			// What may not be seen is answered as what is not there.
			if unknown := c.goTo("no" + export); strings.ReplaceAll(unknown, "no"+export, export) != refusal {
				t.Errorf("%s: %q differs from %q", name, refusal, unknown)
			}
		}
	}
	if c := r.greet(t, "127.0.0.1", "bob"); !strings.Contains(c.goTo("broken"), "it is broken") || c.goTo("vm1@ro") != "" {
		t.Error("after one export that cannot be opened another can")
	}
	// Who sees nothing is named, once.
	for who, want := range map[string]int{"mallory": 1, "carol": 1} {
		if got := r.log.count("certificate=" + who); got != want {
			t.Errorf("%d lines about %s, want %d:\n%s", got, who, want, r.log.b.String())
		}
	}
}

// A client that opens connections and says nothing, or stops half way, keeps out nobody
// and ends nothing but its own.
func TestFlood(t *testing.T) {
	s := newShelf("vm1")
	r := openDoor(t, s, Grants{"a": {"vm1"}, "b": {"vm1"}}, bounds{greeting: 4, site: 3, open: 3, client: 2})
	working := r.greet(t, "127.0.0.1", "a")
	if why := working.goTo("vm1"); why != "" {
		t.Fatal(why)
	}
	other := r.call(t, "127.0.0.2") // not quick, and not to be disturbed
	var silent []*client
	for range 3 {
		silent = append(silent, r.call(t, "127.0.0.1"))
	}
	half := r.greet(t, "127.0.0.1", "a")
	silent[0].ended()
	if why := half.goTo("vm1"); why != "" { // an honest one gets in from the same address
		t.Error(why)
	}
	third := r.greet(t, "127.0.0.1", "a")
	if why := third.goTo("vm1"); !strings.Contains(why, `certificate "a" has 2 connections here`) {
		t.Errorf("the third of two connections: %q", why)
	}
	third.must(third.Close())
	b := r.greet(t, "127.0.0.3", "b")
	if why := b.goTo("vm1"); why != "" {
		t.Error(why)
	}
	for range 5 { // from many addresses: the oldest goes
		silent = append(silent, r.call(t, fmt.Sprintf("127.0.1.%d", len(silent))))
	}
	other.ended()
	// Who has an export is still served.
	for _, c := range []*client{working, half, b} {
		c.write(append([]byte{0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3}, make([]byte, 20)...)) // FLUSH
		c.read(16)
	}
	if r.log.count("opened too many") == 0 {
		t.Error("nothing is logged")
	}
}

// A connection does not outlive its export, and none the door.
func TestConnectionsEnd(t *testing.T) {
	s := newShelf("one", "two")
	r := openDoor(t, s, Grants{"a": {"*"}}, defaultBounds)
	one, two, idle := r.greet(t, "127.0.0.1", "a"), r.greet(t, "127.0.0.1", "a"), r.call(t, "127.0.0.1")
	for c, name := range map[*client]string{one: "one", two: "two"} {
		if why := c.goTo(name); why != "" {
			t.Fatal(why)
		}
	}
	close(s.ends["one"])
	one.ended()
	r.stop()
	two.ended()
	idle.ended()
	if h := r.door.hall; h.open != 0 || len(h.greeting) != 0 || len(h.clients) != 0 {
		t.Errorf("%d connections and %d greeting are left of %v", h.open, len(h.greeting), h.clients)
	}
}

// A list ends where clients stop to take it.
func TestLongList(t *testing.T) {
	s := newShelf()
	for i := range maxListed + 10 {
		s.ends[fmt.Sprintf("vm%05d", i)] = nil
	}
	r := openDoor(t, s, Grants{"a": {"vm*"}}, defaultBounds)
	c := r.greet(t, "127.0.0.1", "a")
	names := strings.Fields(c.list())
	if len(names) != maxListed || names[maxListed-1] != fmt.Sprintf("vm%05d", maxListed-1) {
		t.Errorf("%d exports are listed", len(names))
	}
	if why := c.goTo(fmt.Sprintf("vm%05d", maxListed+1)); why != "" {
		t.Errorf("one that is not in the list: %s", why)
	}
	if r.log.count("only a part of its exports") != 1 {
		t.Errorf("it is not logged:\n%s", r.log.b.String())
	}
}

// Connections that are dropped at any point of the handshake leave nothing behind.
func TestDroppedConnections(t *testing.T) {
	s := newShelf("vm1")
	r := openDoor(t, s, Grants{"a": {"vm1"}}, bounds{greeting: 64, site: 32, open: 8, client: 8})
	var hello bytes.Buffer
	_ = tls.Client(&recorder{w: &hello}, &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS12}).HandshakeContext(t.Context()) // there is nobody to answer
	session := append([]byte{0, 0, 0, 3}, "IHAVEOPT\x00\x00\x00\x05\x00\x00\x00\x00"...)
	session = append(session, hello.Bytes()...)
	last := r.greet(t, "127.0.0.1", "a")
	if why := last.goTo("vm1"); why != "" {
		t.Fatal(why)
	}
	before := runtime.NumGoroutine()
	for i := range 1000 {
		c := r.call(t, "127.0.0.1")
		c.write(session[:i%(len(session)+1)])
		if i%2 == 0 {
			if tc, ok := c.Conn.(*net.TCPConn); ok {
				c.must(tc.SetLinger(0)) // a reset
			}
		}
		c.must(c.Close())
	}
	empty := func() bool {
		r.door.hall.mu.Lock()
		defer r.door.hall.mu.Unlock()
		return len(r.door.hall.greeting) == 0 && r.door.hall.open == 1
	}
	for end := time.Now().Add(time.Minute); !empty() || runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines, %d before; %d greeting and %d open", runtime.NumGoroutine(), before, len(r.door.hall.greeting), r.door.hall.open)
		}
	}
	last.write(append([]byte{0x25, 0x60, 0x95, 0x13, 0, 0, 0, 3}, make([]byte, 20)...)) // FLUSH
	last.read(16)
	if n := r.log.count("\n"); n > 4*mostLines { // of some minutes, if need be
		t.Errorf("%d lines are logged:\n%s", n, r.log.b.String())
	}
}

// recorder keeps what a client says first.
type recorder struct {
	net.Conn
	w io.Writer
}

func (r *recorder) Write(p []byte) (int, error)      { return r.w.Write(p) }
func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetReadDeadline(time.Time) error  { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) Close() error                     { return nil }

// Dead peers are noticed within two minutes, and small replies leave at once.
func TestSocketOptions(t *testing.T) {
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h := newHall(defaultBounds)
	peer, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	nc, err := (&listener{Listener: l, hall: h}).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	raw, err := nc.(*conn).Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	get := func(level, name int) int {
		t.Helper()
		var v int
		var gerr error
		if err := raw.Control(func(fd uintptr) { v, gerr = unix.GetsockoptInt(int(fd), level, name) }); err != nil || gerr != nil {
			t.Fatal(err, gerr)
		}
		return v
	}
	idle, interval, count := get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE), get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
	if on := get(unix.SOL_SOCKET, unix.SO_KEEPALIVE); on == 0 || idle+interval*count > 120 {
		t.Errorf("keep-alive %d: %d s, then %d times %d s", on, idle, count, interval)
	}
	if ms := get(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); ms != 120_000 {
		t.Errorf("unacknowledged data end the connection after %d ms", ms)
	}
	if get(unix.IPPROTO_TCP, unix.TCP_NODELAY) == 0 {
		t.Error("small replies wait")
	}
}

func TestURI(t *testing.T) {
	s := &Settings{Host: "host1.example:10809"}
	if got := s.URI("vm1@ro"); got != "nbds://host1.example:10809/vm1@ro" {
		t.Error(got)
	}
	var none *Settings
	if none.URI("vm1") != "" || none.Listen() != "" || none.Close() != nil {
		t.Error("there is no door, and it says something")
	}
}
