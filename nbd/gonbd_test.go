package nbd

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/server"
)

// serveGoNBD serves a backend with go-nbd's own server, which knows neither
// structured replies nor flushes, and answers one request at a time.
func serveGoNBD(t *testing.T, b backend.Backend, o *server.Options) (uri string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer closeQuietly(nc)
				own := o // Handle writes to its options
				if o != nil {
					own = new(*o)
				}
				_ = server.Handle(nc, []*server.Export{{Name: "disk", Description: "of go-nbd", Backend: b}}, own)
			})
		}
	})
	t.Cleanup(func() {
		closeQuietly(l)
		wg.Wait()
	})
	return URI(path, "disk")
}

func TestGoNBDServer(t *testing.T) {
	for _, o := range []*server.Options{nil, {SupportsMultiConn: true, MaximumBlockSize: 64 << 10}} {
		const size = 4 << 20
		uri := serveGoNBD(t, backend.NewMemoryBackend(make([]byte, size)), o)
		exports, err := List(t.Context(), uri)
		if err != nil || len(exports) != 1 || exports[0].Name != "disk" {
			t.Error(exports, err)
		}
		if _, err := Dial(t.Context(), strings.Replace(uri, "/disk?", "/nope?", 1), ClientOptions{}); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}, Conns: 2})
		if c.Size() != size || c.CanFlush() || c.Conns() != 2 {
			t.Errorf("size %d, flush %v, %d connections", c.Size(), c.CanFlush(), c.Conns())
		}
		ctx := t.Context()
		var wg sync.WaitGroup
		for g := range int64(4) {
			wg.Go(func() {
				part := bytes.Repeat([]byte{byte(g + 1)}, size/4)
				if err := c.WriteAt(ctx, part, g*size/4, false); err != nil {
					t.Error(err)
				}
				got := make([]byte, size/4)
				if err := c.ReadAt(ctx, got, g*size/4); err != nil || !bytes.Equal(got, part) {
					t.Error("not read back", err)
				}
			})
		}
		wg.Wait()
		if err := c.Zero(ctx, 100, 5000, true); err != nil {
			t.Error(err)
		}
		p := make([]byte, 5002)
		if err := c.ReadAt(ctx, p, 99); err != nil || p[0] != 1 || p[1] != 0 || p[5000] != 0 || p[5001] != 1 {
			t.Error("not zeroed", err)
		}
		if err := c.Flush(ctx); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
	}
}

// What go-nbd's server lacks is said to be missing, and what it would do wrong is
// not asked of it.
func TestGoNBDServerLimits(t *testing.T) {
	noLeaks(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	if err = f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	uri := serveGoNBD(t, backend.NewFileBackend(f), nil)
	ctx := t.Context()
	d, err := Probe(ctx, uri, ClientOptions{})
	if err != nil || d.Name != "disk" || d.Description != "of go-nbd" || d.Size != 1<<20 || d.CanFlush || d.CanFUA || d.Structured || !d.CanMultiConn {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := Dial(ctx, secured(uri, "tls-type=x509"), ClientOptions{}); err == nil || !strings.Contains(err.Error(), "has no TLS") {
		t.Error(err)
	}
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}})
	for what, err := range map[string]error{
		"durable write": c.WriteAt(ctx, make([]byte, 512), 0, true),
		"flush":         c.Flush(ctx),
		"fast zeros":    c.ZeroFast(ctx, 0, 512, true),
		"map":           func() error { _, err := c.Map(ctx, ContextAllocation, 0, 512); return err }(),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// It acknowledges a write past the end, and the file grows.
	for _, off := range []int64{1<<20 - 1, 1 << 20, 1 << 40} {
		if err := c.WriteAt(ctx, make([]byte, 512), off, false); !errors.Is(err, EINVAL) {
			t.Errorf("write at %d: %v", off, err)
		}
	}
	if err := c.Trim(ctx, 0, 1<<20); err != nil {
		t.Error(err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != 1<<20 {
		t.Error(fi.Size(), err)
	}
	// It does not say that it is read-only, but it is.
	c = dial(t, serveGoNBD(t, backend.NewFileBackend(f), &server.Options{ReadOnly: true}), ClientOptions{})
	for range 2 {
		if err := c.WriteAt(ctx, make([]byte, 512), 0, false); !errors.Is(err, EPERM) || c.ReadOnly() {
			t.Error(err)
		}
		if err := c.ReadAt(ctx, make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
	}
}

// failing is a backend of which each third read fails.
type failing struct {
	backend.Backend
	reads *atomic.Int64
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if f.reads.Add(1)%3 == 0 {
		return 0, errors.New("unreadable")
	}
	return f.Backend.ReadAt(p, off)
}

// go-nbd promises data before it has read them, and hangs up when there are none:
// that is never taken for data.
func TestGoNBDServerFails(t *testing.T) {
	noLeaks(t)
	content := bytes.Repeat([]byte("cairn"), 4096)
	for _, o := range []ClientOptions{{}, {Reconnect: time.Minute}} {
		b := failing{backend.NewMemoryBackend(content), new(atomic.Int64)}
		c := dial(t, serveGoNBD(t, b, nil), o)
		for i := range 8 {
			p := make([]byte, 1000)
			err := c.ReadAt(t.Context(), p, 500)
			if again := o.Reconnect > 0; (err == nil) != (again || i < 2) || err == nil && !bytes.Equal(p, content[500:1500]) {
				t.Errorf("read %d: %v", i, err)
			}
		}
	}
}

func TestGoNBDBackend(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	if err := f.Truncate(3 << 20); err != nil {
		t.Fatal(err)
	}
	for _, b := range []backend.Backend{backend.NewMemoryBackend(make([]byte, 3<<20)), backend.NewFileBackend(f)} {
		d, err := FromBackend(b)
		if err != nil {
			t.Fatal(err)
		}
		e := &Export{
			Name: "disk", Size: d.Size,
			Contexts: func() []string { return []string{ContextAllocation} },
			Open:     func(context.Context, Peer) (Device, error) { return d, nil },
		}
		c := dial(t, URI(listen(t, serverOf(t, e)), "disk"), ClientOptions{Contexts: []string{ContextAllocation}})
		ctx := t.Context()
		want := bytes.Repeat([]byte("cairn"), 400<<10)
		if err := c.WriteAt(ctx, want, 1000, true); err != nil {
			t.Error(err)
		}
		if err := c.Zero(ctx, 2000, 1<<20, true); err != nil {
			t.Error(err)
		}
		clear(want[1000 : 1000+1<<20])
		got := make([]byte, len(want))
		if err := c.ReadAt(ctx, got, 1000); err != nil || !bytes.Equal(got, want) {
			t.Error("not read back", err)
		}
		if e, err := c.Map(ctx, ContextAllocation, 0, c.Size()); err != nil || len(e) != 1 {
			t.Error(e, err)
		}
	}
}

type sizeless struct{ backend.Backend }

func (sizeless) Size() (int64, error) { return 0, errors.New("no size") }

func TestGoNBDBackendWithoutSize(t *testing.T) {
	if _, err := FromBackend(sizeless{}); err == nil {
		t.Error("no error")
	}
}
