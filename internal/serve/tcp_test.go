package serve_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tcpdoor"
	"github.com/cairnbackup/cairn/internal/tlstest"
	"github.com/cairnbackup/cairn/nbd"
)

// startTCP starts a data plane with a door over TCP, as localhost.
func startTCP(tb testing.TB, ca *tlstest.Authority, g tcpdoor.Grants) *plane {
	tb.Helper()
	o := options(tb)
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	o.TCP = &tcpdoor.Settings{
		Listeners: []net.Listener{l}, TLS: ca.ServerConfig(), Grants: func() tcpdoor.Grants { return g },
		Host: net.JoinHostPort("localhost", port),
	}
	return start(tb, o)
}

// as is a URI as a libnbd program gets it that has its certificate in dir.
func as(uri, dir string) string { return uri + "?tls-certificates=" + dir }

// through is a URI of what the client with the certificate in conf reaches as name from
// an address.
func (p *plane) through(tb testing.TB, from, name string, conf *tls.Config) string {
	tb.Helper()
	return nbd.URI(tlstest.Proxy(tb, p.o.TCP.Listeners[0].Addr().String(), from, conf), name)
}

// A client over TCP is told of the exports that are given to its certificate.
func TestListOverTCP(t *testing.T) {
	nbdinfo := needs.Tool(t, "nbdinfo", "libnbd-bin")
	ca := tlstest.New(t)
	p := startTCP(t, ca, tcpdoor.Grants{"alice": {"db-*", "db-*@*"}, "bob": {"vm1@ro"}})
	v := p.create(t, "db-1", 8*mib)
	p.create(t, "vm1", 8*mib)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db-1"}, Name: "s"})[0]
	st, err := p.Status(t.Context())
	if err != nil || st.NBDListen != p.o.TCP.Listeners[0].Addr().String() || !strings.HasPrefix(v.TCPURI, "nbds://localhost:") || !strings.HasSuffix(s.TCPURI, "/db-1@s") {
		t.Fatalf("the door is shown as %q, the volume as %q, the snapshot as %q: %v", st.NBDListen, v.TCPURI, s.TCPURI, err)
	}
	for name, want := range map[string]string{"alice": `"db-1" "db-1@ro" "db-1@s"`, "bob": `"vm1@ro"`} {
		var names []string
		for line := range strings.Lines(run(t, nbdinfo, "--list", as(strings.TrimSuffix(v.TCPURI, "db-1"), ca.ClientDir(name)))) {
			if name, ok := strings.CutPrefix(strings.TrimSuffix(strings.TrimSpace(line), ":"), "export="); ok {
				names = append(names, name)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("listed is %s, want %s", got, want)
		}
	}
}

// Whoever has no certificate of the right authority that is still good learns nothing.
func TestBadCertificatesOverTCP(t *testing.T) {
	nbdinfo := needs.Tool(t, "nbdinfo", "libnbd-bin")
	ca, other := tlstest.New(t), tlstest.New(t)
	p := startTCP(t, ca, tcpdoor.Grants{"alice": {"*"}})
	v := p.create(t, "vm1", mib)
	right, expired, foreign, none := ca.ClientDir("alice"), t.TempDir(), t.TempDir(), t.TempDir()
	ca.WriteClient(expired, ca.Client("alice", time.Now().Add(-time.Hour)))
	other.WriteClient(foreign, other.Client("alice", time.Now().Add(time.Hour)))
	trust, err := os.ReadFile(filepath.Join(right, tlstest.CA))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{foreign, none} { // they trust the server, but it not them
		if err = os.WriteFile(filepath.Join(dir, tlstest.CA), trust, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, uri := range map[string]string{
		"expired": as(v.TCPURI, expired), "of another authority": as(v.TCPURI, foreign), "none": as(v.TCPURI, none),
		"no TLS": strings.Replace(v.TCPURI, "nbds:", "nbd:", 1),
	} {
		b, rerr := exec.CommandContext(t.Context(), nbdinfo, uri).CombinedOutput()
		if rerr == nil || strings.Contains(string(b), "export-size") {
			t.Errorf("%s: %v\n%s", name, rerr, b)
		}
	}
	if v, err = p.Volume(t.Context(), "vm1"); err != nil || v.BytesRead != 0 {
		t.Errorf("%d bytes were read: %v", v.BytesRead, err)
	}
	run(t, nbdinfo, as(v.TCPURI, right))
}

// The rules for who may use a volume are the same over TCP: one writer at a time, of one
// certificate and host, and nothing ends under a client.
func TestAccessOverTCP(t *testing.T) {
	ca := tlstest.New(t)
	p := startTCP(t, ca, tcpdoor.Grants{"alice": {"*", "*@*"}, "bob": {"*", "*@*"}})
	alice, bob := ca.ClientConfig("alice"), ca.ClientConfig("bob")
	refused := func(uri, want string) {
		t.Helper()
		c, err := nbd.Dial(t.Context(), uri, nbd.ClientOptions{})
		if err == nil {
			_ = c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("connect: %v, want %q", err, want)
		}
	}
	hers := p.through(t, "127.0.0.1", "vm1", alice)
	refused(hers, "there is no export")
	v := p.create(t, "vm1", mib)
	c := dial(t, hers)
	write(t, c, []byte("hello"), 0)
	again := dial(t, hers)
	same(t, "another connection of the writer", read(t, again, 0, 5), []byte("hello"))
	closeClient(t, again)
	held := `in use by "alice" at 127.0.0.1, and it has one writer at a time`
	var wg sync.WaitGroup // each waits a moment for the writer to leave
	for _, uri := range []string{p.through(t, "127.0.0.1", "vm1", bob), p.through(t, "127.0.0.2", "vm1", alice), v.URI} {
		wg.Go(func() { refused(uri, held) })
	}
	wg.Wait()
	same(t, "a reader", read(t, dial(t, p.through(t, "127.0.0.2", "vm1@ro", bob)), 0, 5), []byte("hello"))
	now, err := p.Volume(t.Context(), "vm1")
	if err != nil || now.Writer != `"alice" at 127.0.0.1` || now.Writers != 1 || now.Readers != 1 || !now.InUse {
		t.Errorf("the volume is used by %q, %d writers and %d readers: %v", now.Writer, now.Writers, now.Readers, err)
	}
	if err = p.DeleteVolume(t.Context(), "vm1"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("delete a volume in use over TCP: %v", err)
	}
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"vm1"}, Name: "s", Force: true})
	write(t, c, []byte("HELLO"), 0)
	closeClient(t, c)
	sn := p.through(t, "127.0.0.1", "vm1@s", bob)
	r := dial(t, sn)
	same(t, "the snapshot", read(t, r, 0, 5), []byte("hello"))
	if err = p.DeleteSnapshot(t.Context(), "vm1@s"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("delete a snapshot that is read over TCP: %v", err)
	}
	closeClient(t, r)
	if err = p.DeleteSnapshot(t.Context(), "vm1@s"); err != nil {
		t.Error(err)
	}
	refused(sn, "there is no export")
	last := dial(t, p.through(t, "127.0.0.1", "vm1", alice))
	write(t, last, []byte("x"), 0)
	if err = p.stop(); err != nil { // with connections open
		t.Errorf("stop: %v", err)
	}
	if err = last.Flush(context.Background()); err == nil {
		t.Error("a connection outlives the data plane")
	}
}
