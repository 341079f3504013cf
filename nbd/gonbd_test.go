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
	"testing"

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
