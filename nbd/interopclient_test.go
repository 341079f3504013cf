package nbd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/internal/tlstest"
)

// program runs a server that listens on a unix socket until the test ends. SOCKET
// in its arguments is the socket's path.
func program(t *testing.T, name string, args ...string) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	all := make([]string, len(args))
	for i, a := range args {
		all[i] = strings.ReplaceAll(a, "SOCKET", socket)
	}
	var said bytes.Buffer
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, name, all...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		stop()
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed by stop
		close(ended)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
		if t.Failed() {
			t.Logf("%s %q said: %s", name, all, said.Bytes())
		}
	})
	for {
		if nc, err := net.Dial("unix", socket); err == nil {
			closeQuietly(nc)
			return socket
		}
		select {
		case <-ended:
			t.Fatalf("%s %q: %s", name, all, said.Bytes())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// nbdkit runs nbdkit with a disk of 8 MiB.
func nbdkit(t *testing.T, args ...string) (socket string) {
	t.Helper()
	tool := needs.Tool(t, "nbdkit", "nbdkit")
	return program(t, tool, append([]string{"--foreground", "--exit-with-parent", "--unix", "SOCKET"}, args...)...)
}

// exercise writes, zeroes, trims, maps and reads a disk, and checks that it holds
// what it should.
func exercise(t *testing.T, c *Client) {
	t.Helper()
	ctx := t.Context()
	want := make([]byte, c.Size())
	rng := rand.NewChaCha8(sha256.Sum256([]byte(t.Name())))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(off, n int) {
		_, _ = rng.Read(want[off : off+n])
		must(c.WriteAt(ctx, want[off:off+n], int64(off), false))
	}
	write(0, 3<<20)
	write(4<<20, 512)
	must(c.Zero(ctx, 1<<20, 1<<20, true))
	must(c.Zero(ctx, 512, 1024, false))
	clear(want[1<<20 : 2<<20])
	clear(want[512:1536])
	must(c.Trim(ctx, 6<<20, 1<<20))
	if c.CanFlush() {
		must(c.Flush(ctx))
	}
	got := make([]byte, len(want))
	must(c.ReadAt(ctx, got, 0))
	if !bytes.Equal(got, want) {
		t.Fatal("what was read is not what was written")
	}
	for _, name := range c.Contexts() {
		e, err := c.Map(ctx, name, 0, c.Size())
		must(err)
		for _, e := range e {
			if e.State&blockmap.Zero != 0 && len(bytes.Trim(want[e.Offset:e.End()], "\x00")) > 0 {
				t.Errorf("%v is called zero", e)
			}
		}
		if blockmap.Total(e) != c.Size() {
			t.Errorf("map of %d bytes: %v", c.Size(), e)
		}
	}
}

// nbdkit, with what it has and without: each filter takes something away or makes
// it odd.
func TestInteropNbdkit(t *testing.T) {
	for _, test := range []struct {
		name  string
		args  []string
		check func(c *Client) bool
	}{
		{"whole", []string{"memory", "8M"}, func(c *Client) bool { return c.CanFastZero() && c.Conns() == 4 && len(c.Contexts()) == 1 }},
		{"no extents", []string{"--filter=noextents", "memory", "8M"}, (*Client).CanZero},
		{"no zeroes", []string{"--filter=nozero", "memory", "8M"}, func(c *Client) bool { return !c.CanZero() }},
		{"no structured replies", []string{"--no-sr", "memory", "8M"}, func(c *Client) bool { return len(c.Contexts()) == 0 }},
		{"no FUA", []string{"--filter=fua", "memory", "8M"}, (*Client).CanFlush},
		{"one connection", []string{"--filter=multi-conn", "memory", "8M", "multi-conn-mode=disable"}, func(c *Client) bool { return c.Conns() == 1 }},
		{"slow, out of order", []string{"--filter=delay", "memory", "8M", "rdelay=3ms", "wdelay=1ms"}, (*Client).CanTrim},
		{"blocks", []string{
			"--filter=blocksize-policy", "memory", "8M",
			"blocksize-minimum=512", "blocksize-maximum=64K", "blocksize-error-policy=error",
		}, func(c *Client) bool { return c.BlockSizes() == BlockSizes{512, 4096, 64 << 10} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			uri := URI(nbdkit(t, test.args...), "")
			c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}, Conns: 4})
			if !test.check(c) {
				t.Errorf("flags %#x, blocks %+v, %d connections, contexts %q", c.session.flags, c.BlockSizes(), c.Conns(), c.Contexts())
			}
			exercise(t, c)
			if d, err := Probe(t.Context(), uri, ClientOptions{}); err != nil || d.Size != c.Size() || d.CanFlush != c.CanFlush() || d.BlockSizes != c.BlockSizes() {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
}

// Fast zeros that are not fast are refused by the server, and are what they are
// when done without haste.
func TestInteropFastZero(t *testing.T) {
	c := dial(t, URI(nbdkit(t, "--filter=nozero", "memory", "8M", "zeromode=emulate", "fastzeromode=slow"), ""), ClientOptions{})
	if !c.CanFastZero() {
		t.Fatal("the server does not offer fast zeros")
	}
	if err := c.ZeroFast(t.Context(), 0, 1<<20, true); !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, ENOTSUP) {
		t.Error(err)
	}
	exercise(t, c)
	c = dial(t, URI(nbdkit(t, "memory", "8M"), ""), ClientOptions{})
	if err := errors.Join(c.WriteAt(t.Context(), []byte("xyz"), 4096, true), c.ZeroFast(t.Context(), 4096, 2, true)); err != nil {
		t.Error(err)
	}
	p := make([]byte, 3)
	if err := c.ReadAt(t.Context(), p, 4096); err != nil || string(p) != "\x00\x00z" {
		t.Errorf("%q, %v", p, err)
	}
}

// An error of a server is an answer, and the connection goes on.
func TestInteropServerErrors(t *testing.T) {
	c := dial(t, URI(nbdkit(t, "--filter=error", "memory", "8M", "error-pread=ENOSPC", "error-pread-rate=50%"), ""), ClientOptions{Conns: 2})
	failed := 0
	for range 200 {
		switch err := c.ReadAt(t.Context(), make([]byte, 512), 0); {
		case errors.Is(err, ENOSPC):
			failed++
		case err != nil:
			t.Fatal(err)
		}
	}
	if failed == 0 || failed == 200 {
		t.Errorf("%d of 200 failed", failed)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// TLS with the two servers that most have, with one certificate for all
// connections.
func TestInteropClientTLS(t *testing.T) {
	a := tlstest.New(t)
	dir, own := a.ClientDir("alice"), a.ServerDir()
	servers := map[string]func(t *testing.T) (socket string){
		"nbdkit": func(t *testing.T) string {
			t.Helper()
			return nbdkit(t, "--tls=require", "--tls-verify-peer", "--tls-certificates="+own, "memory", "8M")
		},
		"qemu-nbd": func(t *testing.T) string {
			t.Helper()
			path, _ := image(t, 8<<20)
			return program(t, needs.Tool(t, "qemu-nbd", "qemu-utils"), "--persistent", "--socket=SOCKET", "--shared=5", "--format=raw",
				"--discard=unmap", "--detect-zeroes=off", "--object", "tls-creds-x509,id=t,endpoint=server,dir="+own+",verify-peer=on", "--tls-creds=t", path)
		},
	}
	for name, start := range servers {
		t.Run(name, func(t *testing.T) {
			plain := URI(start(t), "")
			uri := secured(plain, trusting(dir))
			c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}, Conns: 4})
			if err := c.Zero(t.Context(), 0, c.Size(), true); err != nil {
				t.Fatal(err)
			}
			exercise(t, c)
			if c.Conns() != 4 && name == "nbdkit" {
				t.Errorf("%d connections", c.Conns())
			}
			if e, err := List(t.Context(), uri); err != nil || len(e) != 1 {
				t.Error(e, err)
			}
			if d, err := Probe(t.Context(), uri, ClientOptions{}); err != nil || !d.TLS || d.Size != 8<<20 || len(d.Contexts) == 0 {
				t.Errorf("%+v, %v", d, err)
			}
			for where, want := range map[string]string{
				plain: "use an nbds:// or nbds+unix:// URI",
				secured(plain, trusting(without(t, dir, certFile, keyFile))):    "showed no certificate",
				secured(plain, trusting(tlstest.New(t).ClientDir("alice"))):     "unknown authority",
				strings.Replace(uri, "hostname=localhost", "hostname=other", 1): "not other",
			} {
				if _, err := Dial(t.Context(), where, ClientOptions{}); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: %v, want something of %q", where, err, want)
				}
			}
		})
	}
}

// A server that is killed and started again loses nothing that was durable.
func TestInteropReconnect(t *testing.T) {
	tool := needs.Tool(t, "nbdkit", "nbdkit")
	disk, _ := image(t, 8<<20)
	socket := filepath.Join(t.TempDir(), "s")
	start := func() (kill func()) {
		cmd := exec.Command(tool, "--foreground", "--unix", socket, "file", disk)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return func() {
			_ = cmd.Process.Kill() // whatever became of it
			_ = cmd.Wait()
			_ = os.Remove(socket)
		}
	}
	kill := start()
	defer func() { kill() }()
	for { // the socket is there before anybody listens
		nc, err := net.Dial("unix", socket)
		if err == nil {
			closeQuietly(nc)
			break
		}
		pause(t.Context(), 5*time.Millisecond)
	}
	c := dial(t, URI(socket, ""), ClientOptions{Contexts: []string{ContextAllocation}, Conns: 2, Reconnect: time.Minute})
	for i := range 3 {
		p := bytes.Repeat([]byte{byte(i + 1)}, 1<<20)
		if err := c.WriteAt(t.Context(), p, int64(i)<<20, true); err != nil {
			t.Fatal(err)
		}
		kill()
		kill = start()
		got := make([]byte, 1<<20)
		if err := c.ReadAt(t.Context(), got, int64(i)<<20); err != nil || !bytes.Equal(got, p) {
			t.Error("not read back", err)
		}
		if _, err := c.Map(t.Context(), ContextAllocation, 0, c.Size()); err != nil {
			t.Error(err)
		}
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.WriteAt(t.Context(), []byte("volatile"), 0, false); err != nil {
		t.Error(err)
	}
	kill()
	kill = start()
	if err := c.Flush(t.Context()); !errors.Is(err, ErrUnflushed) {
		t.Error(err)
	}
}
