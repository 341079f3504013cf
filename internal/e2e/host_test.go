package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/objstore/s3store"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/tlstest"
)

// host is one machine under test: the two processes, their folders and their
// clients.
type host struct {
	t        *testing.T
	bin      string
	dir      string
	stores   []string
	settings []string // of the agent, besides those that each has
	within   []string // the command that runs another on this machine; none: it is this one

	serve, agent *process
	kills        atomic.Int64 // ends and starts of the data plane: odd while it is down
	data         *serve.Client
	control      *agent.Client
}

// process is a running command whose end is awaited by one goroutine.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the command has ended
}

// newHost makes the folders and a repository of six stores, and starts both
// processes. They are killed when the test ends.
func newHost(t *testing.T) *host {
	t.Helper()
	return newHostOn(t, 4, 2, func(dir string) (stores []string) {
		for i := range 6 {
			stores = append(stores, filepath.Join(dir, fmt.Sprintf("store%d", i+1)))
		}
		return stores
	})
}

// newHostOn is newHost with other stores; they are told the host's folder.
func newHostOn(t *testing.T, data, parity int, stores func(dir string) []string) *host {
	t.Helper()
	h := emptyHost(t, cairnBinary(t))
	h.stores = stores(h.dir)
	h.initRepository(data, parity)
	h.startServe()
	h.startAgent()
	return h
}

// initRepository makes a repository on the host's stores.
func (h *host) initRepository(data, parity int) {
	h.t.Helper()
	args := []string{"repo", "init", "--data", strconv.Itoa(data), "--parity", strconv.Itoa(parity), "--password-file", h.path("password")}
	for _, s := range h.stores {
		args = append(args, "--store", s)
	}
	if out, err := exec.CommandContext(h.t.Context(), h.bin, args...).CombinedOutput(); err != nil {
		h.t.Fatalf("repo init: %v\n%s", err, out)
	}
}

// another is a second machine with the same repository.
func (h *host) another() *host {
	h.t.Helper()
	o := emptyHost(h.t, h.bin)
	o.stores = h.stores
	o.startServe()
	o.startAgent()
	return o
}

// emptyHost is a machine with a folder and a password on which nothing runs.
func emptyHost(t *testing.T, bin string) *host {
	t.Helper()
	// A unix socket's path must be short, which t.TempDir is not.
	dir, err := os.MkdirTemp("", "cairn-e2e-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, bin: bin, dir: dir}
	t.Cleanup(func() {
		h.kill(h.agent)
		h.kill(h.serve)
		if t.Failed() {
			h.showLog("agent")
			h.showLog("serve")
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(h.path("password"), []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.data = serve.NewClient(h.path("serve.sock"))
	h.control = agent.NewClient(h.path("agent.sock"))
	return h
}

// cairnBinary builds the command under test once for each test.
func cairnBinary(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "cairn")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "github.com/cairnbackup/cairn/cmd/cairn")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

func (h *host) path(elem ...string) string { return filepath.Join(append([]string{h.dir}, elem...)...) }

// doors makes settings by which the data plane and the agent each serve NBD over TCP, where
// alice may use everything.
func (h *host) doors(ca *tlstest.Authority) {
	h.t.Helper()
	ca.WriteServer(h.dir)
	if err := os.WriteFile(h.path("exports"), []byte("alice: ['*', '*@*']\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	h.settings = []string{
		"--nbd-listen", "127.0.0.1:0", "--tls-cert", h.path(tlstest.ServerCert), "--tls-key", h.path(tlstest.ServerKey),
		"--tls-client-ca", h.path(tlstest.CA), "--tls-exports", h.path("exports"),
	}
}

// startServe starts the data plane, with these settings besides those that each has.
func (h *host) startServe(settings ...string) {
	h.t.Helper()
	args := []string{"serve", "--state", h.path("state"), "--control", h.path("serve.sock"), "--nbd-dir", h.path("nbd")}
	h.serve = h.start("serve", append(args, settings...)...)
	h.await("serve", h.serve, func(ctx context.Context) error { _, err := h.data.Status(ctx); return err })
}

func (h *host) startAgent() {
	h.t.Helper()
	h.launchAgent()
	h.await("agent", h.agent, func(ctx context.Context) error { _, err := h.control.Status(ctx); return err })
}

// launchAgent starts the agent and does not wait for it.
func (h *host) launchAgent() {
	h.t.Helper()
	args := []string{
		"agent", "--state", h.path("state"), "--control", h.path("serve.sock"), "--socket", h.path("agent.sock"),
		"--nbd-dir", h.path("nbd"), "--password-file", h.path("password"),
	}
	args = append(args, h.settings...)
	for _, s := range h.stores {
		args = append(args, "--store", s)
	}
	h.agent = h.start("agent", args...)
}

// start runs the command with its output in a log file.
func (h *host) start(name string, args ...string) *process {
	h.t.Helper()
	log, err := os.OpenFile(h.path(name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	// Not CommandContext: the test kills the process itself, in its own time.
	args = slices.Concat(h.within, []string{h.bin}, args)
	p := &process{cmd: exec.Command(args[0], args[1:]...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is known: it was killed, or await says so
		close(p.done)
	}()
	return p
}

// await polls until answers returns nil, or the process has ended.
func (h *host) await(name string, p *process, answers func(context.Context) error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	if err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
		select {
		case <-p.done:
			return false, errors.New("it has ended")
		default:
			return answers(ctx) == nil, nil
		}
	}); err != nil {
		h.showLog(name)
		h.t.Fatalf("%s does not answer: %v", name, err)
	}
}

// kill ends a process as a crash would, and waits for its end.
func (h *host) kill(p *process) {
	h.t.Helper()
	if p == nil {
		return
	}
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		h.t.Error(err)
	}
	<-p.done
}

// showLog prints the end of a process's log.
func (h *host) showLog(name string) {
	h.t.Helper()
	b, err := os.ReadFile(h.path(name + ".log"))
	if err != nil {
		h.t.Log(err)
	}
	if len(b) > 8192 {
		b = b[len(b)-8192:]
	}
	h.t.Logf("log of %s:\n%s", name, b)
}

// poll calls f at intervals until it says that it is done, or fails, or ctx ends.
func poll(ctx context.Context, every time.Duration, f func() (bool, error)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if done, err := f(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// openStores opens the host's stores, which are closed when the test ends.
func (h *host) openStores() (stores []objstore.Store) {
	h.t.Helper()
	for _, name := range h.stores {
		c, _, err := s3store.Parse(name)
		var s objstore.Store
		if err == nil {
			s, err = s3store.Open(c)
		} else {
			s, err = dirstore.Open(name, dirstore.Options{})
		}
		if err != nil {
			h.t.Fatal(err)
		}
		h.t.Cleanup(func() { _ = s.Close() })
		stores = append(stores, s)
	}
	return stores
}
