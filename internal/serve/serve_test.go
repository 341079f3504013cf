package serve_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// helperEnv makes the test binary a second NBD client process: it connects to
// the URI in it, says how that went, and stays until its input ends.
const helperEnv = "CAIRN_SERVE_TEST_DIAL"

func TestMain(m *testing.M) {
	if uri := os.Getenv(helperEnv); uri != "" {
		os.Exit(dialHelper(uri))
	}
	if dir := os.Getenv(runEnv); dir != "" {
		os.Exit(runHelper(dir))
	}
	os.Exit(m.Run())
}

func dialHelper(uri string) int {
	c, err := nbd.Dial(context.Background(), uri, nbd.ClientOptions{})
	if err != nil {
		fmt.Println("refused:", err)
		return 0
	}
	fmt.Println("admitted")
	var b [1]byte
	_, _ = os.Stdin.Read(b[:])
	if err := c.Close(); err != nil {
		fmt.Println("close:", err)
		return 1
	}
	return 0
}

// plane is a data plane that runs in the test's process.
type plane struct {
	*serve.Client
	o    serve.Options
	stop func() error // ends Run and returns its error; may be called again
}

// options returns fresh folders with short paths.
func options(tb testing.TB) serve.Options {
	tb.Helper()
	dir, err := os.MkdirTemp("", "cairn") //nolint:usetesting // A path with the test's name is too long for sockets.
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return serve.Options{
		State:   filepath.Join(dir, "state"),
		Control: filepath.Join(dir, "serve.sock"),
		NBDDir:  filepath.Join(dir, "nbd"),
		Version: "test",
		Logger:  slog.New(slog.NewTextHandler(&testLog{tb}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

type testLog struct{ tb testing.TB }

func (l *testLog) Write(p []byte) (int, error) {
	l.tb.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func start(tb testing.TB, o serve.Options) *plane {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = serve.Run(ctx, o, func() { close(ready) })
	}()
	p := &plane{Client: serve.NewClient(o.Control), o: o, stop: func() error {
		cancel()
		<-ended
		return err
	}}
	tb.Cleanup(func() {
		p.Close()
		if stopErr := p.stop(); stopErr != nil {
			tb.Errorf("data plane: %v", stopErr)
		}
	})
	select {
	case <-ready:
	case <-ended:
		tb.Fatalf("data plane did not start: %v", err)
	}
	return p
}

func (p *plane) restart(t *testing.T) *plane {
	t.Helper()
	if err := p.stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	return start(t, p.o)
}

func (p *plane) create(tb testing.TB, name string, size int64) serve.Volume {
	tb.Helper()
	v, err := p.CreateVolume(tb.Context(), serve.CreateVolume{Name: name, Size: size})
	if err != nil {
		tb.Fatalf("create volume %s: %v", name, err)
	}
	return v
}

func (p *plane) snapshot(t *testing.T, req serve.CreateSnapshots) []serve.Snapshot {
	t.Helper()
	ss, err := p.CreateSnapshots(t.Context(), req)
	if err != nil {
		t.Fatalf("snapshot %v: %v", req.Volumes, err)
	}
	return ss
}

func dial(t *testing.T, uri string, contexts ...string) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), uri, nbd.ClientOptions{Contexts: contexts})
	if err != nil {
		t.Fatalf("connect to %s: %v", uri, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func closeClient(t *testing.T, c *nbd.Client) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatalf("close connection: %v", err)
	}
}

func write(t *testing.T, c *nbd.Client, p []byte, off int64) {
	t.Helper()
	if err := c.WriteAt(t.Context(), p, off, false); err != nil {
		t.Fatalf("write %d bytes at %d: %v", len(p), off, err)
	}
}

func read(t *testing.T, c *nbd.Client, off, n int64) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := c.ReadAt(t.Context(), p, off); err != nil {
		t.Fatalf("read %d bytes at %d: %v", n, off, err)
	}
	return p
}

// same compares without printing megabytes.
func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Fatalf("%s: %d bytes, want %d; first difference at %d", what, len(got), len(want), at)
}

func random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

// dirtyOf returns the blocks that a context calls dirty.
func dirtyOf(t *testing.T, uri, checkpoint string) []int64 {
	t.Helper()
	name := nbd.ContextDirtyBitmap + checkpoint
	c := dial(t, uri, name)
	defer closeClient(t, c)
	es, err := c.Map(t.Context(), name, 0, c.Size())
	if err != nil {
		t.Fatalf("map %s of %s: %v", name, uri, err)
	}
	var blocks []int64
	for _, e := range es {
		if e.State == blockmap.Dirty {
			for off := e.Offset; off < e.Offset+e.Length; off += blockmap.DefaultBlockSize {
				blocks = append(blocks, off/blockmap.DefaultBlockSize)
			}
		}
	}
	return blocks
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
