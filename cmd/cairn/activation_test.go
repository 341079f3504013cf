package main

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tlstest"
	"github.com/cairnbackup/cairn/nbd"
)

// handedOver are sockets as systemd hands them over: one for requests and one of TCP.
type handedOver struct {
	requests string
	addr     string
	files    []*os.File
}

func handOver(t *testing.T) *handedOver {
	t.Helper()
	h := &handedOver{requests: filepath.Join(shortDir(t), "r")}
	var lc net.ListenConfig
	u, err := lc.Listen(t.Context(), "unix", h.requests)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = l.Addr().String()
	for _, x := range []interface{ File() (*os.File, error) }{u.(*net.UnixListener), l.(*net.TCPListener)} { //nolint:forcetypeassert // as they were made
		f, ferr := x.File()
		if ferr != nil {
			t.Fatal(ferr)
		}
		h.files = append(h.files, f)
		t.Cleanup(func() { _ = f.Close() })
	}
	u.(*net.UnixListener).SetUnlinkOnClose(false) //nolint:forcetypeassert // as it was made
	for _, x := range []net.Listener{u, l} {      // the files hold them open
		if err = x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn") //nolint:usetesting // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// start starts cairn with the sockets, and returns what ends it. It has to end well.
func (h *handedOver) start(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cairn := filepath.Join(t.TempDir(), "cairn") // by which name the test is the program
	if err = os.Symlink(self, cairn); err != nil {
		t.Fatal(err)
	}
	// The number of the process is known in it alone.
	script := "LISTEN_PID=$$ LISTEN_FDS=" + strconv.Itoa(len(h.files)) + ` exec "$0" "$@"`
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", script, cairn}, args...)...)
	cmd.ExtraFiles = h.files
	var log safeLog
	cmd.Stdout, cmd.Stderr = &log, &log
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("cairn %s: %v\n%s", args[0], err, log.b.String())
		}
	}
}

// names are the exports that a client sees.
func names(t *testing.T, addr string, conf *tls.Config) string {
	t.Helper()
	l, err := nbd.List(t.Context(), nbd.URI(tlstest.Proxy(t, addr, "127.0.0.1", conf), ""))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range l {
		all = append(all, e.Name)
	}
	return strings.Join(all, " ")
}

// Both daemons serve the sockets that they are started with, and leave them for the next
// one: who comes meanwhile waits, and is not refused.
func TestActivation(t *testing.T) {
	ca := tlstest.New(t)
	f := testFiles(t, ca, "alice: ['*']\n")
	alice := ca.ClientConfig("alice")
	dir := shortDir(t)
	files := []string{"--tls-cert", f.Cert, "--tls-key", f.Key, "--tls-client-ca", f.ClientCA, "--tls-exports", f.Exports, "--nbd-dir", filepath.Join(dir, "n")}
	state := filepath.Join(dir, "s")

	data := handOver(t)
	serveArgs := append([]string{"serve", "--state", state}, files...)
	stop := data.start(t, serveArgs...)
	plane := serve.NewClient(data.requests)
	defer plane.Close()
	if _, err := plane.CreateVolume(t.Context(), serve.CreateVolume{Name: "vm1", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if st, err := plane.Status(t.Context()); err != nil || st.NBDListen != data.addr {
		t.Errorf("the door is shown as %q: %v", st.NBDListen, err)
	}
	if got := names(t, data.addr, alice); got != "vm1" {
		t.Errorf("alice sees %q", got)
	}
	plane.Close()
	stop()
	early := make(chan error, 1)
	go func() { // before the next one is there
		v, err := serve.NewClient(data.requests).Volume(context.Background(), "vm1")
		if err == nil && v.TCPURI != "nbds://"+data.addr+"/vm1" {
			t.Errorf("the volume is at %q", v.TCPURI)
		}
		early <- err
	}()
	stop = data.start(t, serveArgs...)
	if err := <-early; err != nil {
		t.Errorf("a request between two data planes: %v", err)
	}

	own := handOver(t)
	stopAgent := own.start(t, append([]string{"agent", "--no-serve", "--state", state, "--control", data.requests}, files...)...)
	a := agent.NewClient(own.requests)
	st, err := a.Status(t.Context())
	if err != nil || st.NBDListen != own.addr || st.Serve == nil {
		t.Errorf("the door is shown as %q, the data plane as %+v: %v", st.NBDListen, st.Serve, err)
	}
	if got := names(t, own.addr, alice); got != "" { // no backup is exported
		t.Errorf("alice sees %q", got)
	}
	a.Close()
	stopAgent()
	stop()
	for _, socket := range []string{data.requests, own.requests} {
		if _, err := os.Lstat(socket); err != nil {
			t.Errorf("a socket that was handed over is gone: %v", err)
		}
	}
}
