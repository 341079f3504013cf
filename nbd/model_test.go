package nbd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/tlstest"
)

// kind is a way a device can be served.
type kind struct {
	name    string
	network string
	device  func(tb testing.TB, size int) (Device, *memory)
}

// kinds are those that take different paths through the server.
var kinds = []kind{
	{"memory", "unix", memoryDevice},
	{"file spliced", "unix", splicedDevice},
	{"file spliced tcp", "tcp", splicedDevice},
	{"file copied", "unix", copiedDevice},
	{"file as any device", "unix", plainDevice},
	{"file in memory", "unix", tmpfsDevice},
}

// tmpfsDevice is a file where RWF_NOWAIT is not to be had, if this machine has
// such a place.
func tmpfsDevice(tb testing.TB, size int) (Device, *memory) {
	tb.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nbd-test") //nolint:usetesting // it must be in that place
	if err != nil {
		dir = tb.TempDir()
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	d := newFileDiskIn(tb, dir, size, true)
	return d, d.memory
}

func memoryDevice(_ testing.TB, size int) (Device, *memory) {
	m := newMemory(size)
	return m, m
}

func splicedDevice(tb testing.TB, size int) (Device, *memory) {
	tb.Helper()
	d := newFileDisk(tb, size, true)
	return d, d.memory
}

func copiedDevice(tb testing.TB, size int) (Device, *memory) {
	tb.Helper()
	d := newFileDisk(tb, size, false)
	return d, d.memory
}

// plainDevice hides that the device is a file.
func plainDevice(tb testing.TB, size int) (Device, *memory) {
	tb.Helper()
	d := newFileDisk(tb, size, true)
	return struct{ Device }{d}, d.memory
}

// serveDevice exports one device and returns its URI.
func serveDevice(tb testing.TB, network string, d Device, m *memory) string {
	tb.Helper()
	e := m.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
	s := serverOf(tb, e)
	switch network {
	case "unix":
		return URI(listen(tb, s), "disk")
	case "structured":
		return URI(hiding(tb, listen(tb, s), optExtendedHeaders), "disk")
	case "simple":
		return URI(hiding(tb, listen(tb, s), optExtendedHeaders, optStructuredReply), "disk")
	}
	scheme, query := "nbd", ""
	if network == "tls" {
		a := tlstest.New(tb)
		withTLS(s, a.ServerConfig())
		scheme, query = "nbds", "?"+trusting(a.ClientDir("alice"))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	serveOn(tb, s, l)
	return scheme + "://" + l.Addr().String() + "/disk" + query
}

// Whatever the client does over whichever path, the device holds what a plain
// slice of bytes would, and its map tells the truth.
func TestModel(t *testing.T) {
	all := append(slices.Clone(kinds), kind{"file over TLS", "tls", splicedDevice},
		kind{"file, structured replies", "structured", splicedDevice}, kind{"file, simple replies", "simple", splicedDevice})
	for _, kind := range all {
		for _, conns := range []int{1, 4} {
			t.Run(kind.name, func(t *testing.T) { testModel(t, kind.network, conns, kind.device) })
		}
	}
}

func testModel(t *testing.T, network string, conns int, device func(testing.TB, int) (Device, *memory)) {
	t.Helper()
	const size = 6<<20 + 513
	d, m := device(t, size)
	c := dial(t, serveDevice(t, network, d, m), ClientOptions{Contexts: []string{ContextAllocation, dirtyName}, Conns: conns})
	model := make([]byte, size)
	dirty := map[int64]bool{}
	noise := make([]byte, 4<<20)
	rng := rand.NewChaCha8(sha256.Sum256([]byte(t.Name())))
	_, _ = rng.Read(noise)
	ctx := t.Context()
	mark := func(off, n int) {
		for b := off / memBlock; n > 0 && b <= (off+n-1)/memBlock; b++ {
			dirty[int64(b)] = true
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		span := func() (off, n int) {
			off = rapid.IntRange(0, size).Draw(rt, "off")
			most := rapid.SampledFrom([]int{512, 5000, 70 << 10, 300 << 10, 4 << 20}).Draw(rt, "most")
			return off, rapid.IntRange(0, min(size-off, most)).Draw(rt, "n")
		}
		must := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"write": func(rt *rapid.T) {
				off, n := span()
				from := rapid.IntRange(0, len(noise)-n).Draw(rt, "from")
				must(c.WriteAt(ctx, noise[from:from+n], int64(off), rapid.Bool().Draw(rt, "fua")))
				copy(model[off:], noise[from:from+n])
				mark(off, n)
			},
			"zero": func(rt *rapid.T) {
				off, n := span()
				must(c.Zero(ctx, int64(off), int64(n), rapid.Bool().Draw(rt, "punch")))
				clear(model[off : off+n])
				mark(off, n)
			},
			"trim": func(*rapid.T) {
				off, n := span()
				must(c.Trim(ctx, int64(off), int64(n))) // these devices make zeros of it
				clear(model[off : off+n])
				mark(off, n)
			},
			"flush": func(*rapid.T) { must(c.Flush(ctx)) },
			"read": func(rt *rapid.T) {
				off, n := span()
				p := bytes.Repeat([]byte{0xee}, n)
				must(c.ReadAt(ctx, p, int64(off)))
				if !bytes.Equal(p, model[off:off+n]) {
					rt.Fatalf("read of %d at %d differs", n, off)
				}
			},
			"map": func(rt *rapid.T) {
				off, n := span()
				for _, name := range c.Contexts() {
					e, err := c.Map(ctx, name, int64(off), int64(n))
					must(err)
					if blockmap.Total(e) != int64(n) || n > 0 && (e[0].Offset != int64(off) || e[len(e)-1].End() != int64(off+n)) {
						rt.Fatalf("map of %d at %d: %v", n, off, e)
					}
					for _, e := range e {
						switch {
						case name == dirtyName:
							if first := e.Offset / memBlock; dirty[first] != (e.State == blockmap.Dirty) {
								rt.Fatalf("block %d dirty %v, map says %v", first, dirty[first], e)
							}
						case e.State&blockmap.Hole != 0 && len(bytes.Trim(model[e.Offset:e.End()], "\x00")) > 0:
							rt.Fatalf("a hole with data: %v", e)
						}
					}
				}
			},
		})
	})
	if f, ok := d.(*fileDisk); ok && (f.begun.Load() != 0 || f.pairs.Load() == 0) {
		t.Errorf("%d writes were begun and not ended, %d were", f.begun.Load(), f.pairs.Load())
	}
}
