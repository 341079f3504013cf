package agent

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/internal/tcpdoor"
	"github.com/cairnbackup/cairn/internal/tlstest"
	"github.com/cairnbackup/cairn/nbd"
)

// Exports of backups are served over TCP to the certificates that they are given to, and
// end there as they do on their sockets: with the export, and with the agent.
func TestExportsOverTCP(t *testing.T) {
	nbdinfo, nbdcopy := needs.Tool(t, "nbdinfo", "libnbd-bin"), needs.Tool(t, "nbdcopy", "libnbd-bin")
	ctx, ca := t.Context(), tlstest.New(t)
	r := testRig(t)
	var addr string
	r.tcp = func() *tcpdoor.Settings {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", orElse(addr, "127.0.0.1:0"))
		if err != nil {
			t.Fatal(err)
		}
		addr = l.Addr().String()
		_, port, _ := strings.Cut(addr, ":")
		return &tcpdoor.Settings{
			Listeners: []net.Listener{l}, TLS: ca.ServerConfig(), Host: "localhost:" + port,
			Grants: func() tcpdoor.Grants { return tcpdoor.Grants{"alice": {"one"}, "bob": {"t*"}} },
		}
	}
	r.stopAgent()
	r.startAgent()
	content := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	v := r.volume("vm", int64(len(content)))
	r.put(v, make([]byte, len(content)), content, 0)
	b := r.backup(CreateBackup{Volume: "vm"})
	one, err := r.agent.Export(ctx, Export{Ref: b.ID, Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	try, err := r.agent.Export(ctx, Export{Ref: b.ID, Name: "try", Overlay: true})
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.agent.Status(ctx)
	if err != nil || st.NBDListen != addr || one.TCPURI != "nbds://localhost"+addr[strings.LastIndex(addr, ":"):]+"/one" {
		t.Errorf("the door is shown as %q, the export as %q: %v", st.NBDListen, one.TCPURI, err)
	}
	as := func(uri, name string) string { return uri + "?tls-certificates=" + ca.ClientDir(name) }
	run := func(tool string, args ...string) string {
		t.Helper()
		out, rerr := exec.CommandContext(ctx, tool, args...).CombinedOutput()
		if rerr != nil {
			t.Errorf("%s %v: %v\n%s", tool, args, rerr, out)
		}
		return string(out)
	}
	for name, want := range map[string][2]bool{"alice": {true, false}, "bob": {false, true}, "mallory": {false, false}} {
		list := run(nbdinfo, "--list", as(strings.TrimSuffix(one.TCPURI, "one"), name))
		if got := [2]bool{strings.Contains(list, `export="one"`), strings.Contains(list, `export="try"`)}; got != want {
			t.Errorf("%s sees\n%s", name, list)
		}
	}
	copied := filepath.Join(t.TempDir(), "copied")
	run(nbdcopy, as(one.TCPURI, "alice"), copied)
	if got, rerr := os.ReadFile(copied); rerr != nil || !bytes.Equal(got, content) {
		t.Errorf("the export over TCP is another than the volume: %v", rerr)
	}

	through := func(client, name string) *nbd.Client {
		t.Helper()
		return r.dial(nbd.URI(tlstest.Proxy(t, addr, "127.0.0.1", ca.ClientConfig(client)), name))
	}
	// ended says whether the server has ended a connection, which a read waits for.
	ended := func(what string, c *nbd.Client) {
		t.Helper()
		if rerr := c.ReadAt(context.Background(), make([]byte, 512), 0); rerr == nil {
			t.Errorf("%s: its connection goes on", what)
		}
		_ = c.Close() // it is broken
	}
	reader, writer := through("alice", "one"), through("bob", "try")
	if err = errors.Join(writer.WriteAt(ctx, []byte("new"), 0, false), writer.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	if err = r.agent.Unexport(ctx, "try"); !errors.Is(err, ErrBusy) {
		t.Errorf("an overlay that is used over TCP is discarded: %v", err)
	}
	r.stopAgent() // with both connected
	ended("the agent stopped", reader)
	ended("the agent stopped", writer)
	r.startAgent()
	reader, writer = through("alice", "one"), through("bob", "try")
	p := make([]byte, 3)
	if err = writer.ReadAt(ctx, p, 0); err != nil || string(p) != "new" {
		t.Errorf("the overlay has %q: %v", p, err)
	}
	if err = r.agent.ForceUnexport(ctx, "try"); err != nil {
		t.Error(err)
	}
	ended("its export ended", writer)
	if err = r.agent.Unexport(ctx, "one"); err != nil {
		t.Error(err)
	}
	ended("its export ended", reader)
	if _, err = nbd.Dial(ctx, nbd.URI(tlstest.Proxy(t, addr, "127.0.0.1", ca.ClientConfig("bob")), try.Name), nbd.ClientOptions{}); err == nil || !strings.Contains(err.Error(), "there is no export") {
		t.Errorf("an export that has ended: %v", err)
	}
}
