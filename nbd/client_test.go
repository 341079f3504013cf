package nbd

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
)

// Over each kind of headers, in plain text and in TLS, over one connection and
// four, a client and a server understand each other.
func TestClientServer(t *testing.T) {
	for network, want := range map[string]framing{"unix": extendedHeaders, "tcp": extendedHeaders, "tls": extendedHeaders, "structured": structuredReplies, "simple": simpleReplies} {
		for _, conns := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s %d", network, conns), func(t *testing.T) {
				m := newMemory(8<<20 + 512)
				testClientServer(t, m, serveDevice(t, network, m, m), conns, want)
			})
		}
	}
}

func testClientServer(t *testing.T, m *memory, uri string, conns int, want framing) {
	t.Helper()
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation, dirtyName, "x:y"}, Conns: conns})
	contexts := 2
	if want == simpleReplies {
		contexts = 0
	}
	if c.Size() != m.Size() || c.ReadOnly() || c.Conns() != conns || len(c.Contexts()) != contexts || c.session.framing != want {
		t.Fatalf("size %d, read-only %v, conns %d, contexts %q, framing %d", c.Size(), c.ReadOnly(), c.Conns(), c.Contexts(), c.session.framing)
	}
	if _, encrypted := c.current().all[conns-1].nc.(*tls.Conn); encrypted != strings.HasPrefix(uri, "nbds:") {
		t.Errorf("%s: TLS %v", uri, encrypted)
	}
	ctx := t.Context()
	p := bytes.Repeat([]byte("cairn"), 1<<20)
	if err := c.WriteAt(ctx, p, 4096, true); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, c.Size())
	if err := c.ReadAt(ctx, got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, m.content(0, len(got))) || !bytes.Equal(got[4096:4096+len(p)], p) {
		t.Fatal("what was read is not what was written")
	}
	for _, name := range c.Contexts() {
		if e, err := c.Map(ctx, name, 0, c.Size()); err != nil || blockmap.Total(e) != c.Size() {
			t.Error(e, err)
		}
	}
	if err := c.Flush(ctx); err != nil || m.flush.Load() < 2 {
		t.Fatal(err, m.flush.Load())
	}
	// This device makes no zeros faster than by writing them.
	if err := c.ZeroFast(ctx, 0, c.Size(), true); !c.CanFastZero() || !errors.Is(err, ENOTSUP) {
		t.Error(c.CanFastZero(), err)
	}
	if err := errors.Join(c.Zero(ctx, 0, c.Size(), true), c.Trim(ctx, 0, c.Size())); err != nil {
		t.Error(err)
	}
	if len(bytes.Trim(m.content(0, len(got)), "\x00")) > 0 {
		t.Error("what was zeroed is not zero")
	}
	exports, err := List(ctx, uri)
	if err != nil || len(exports) != 1 || exports[0].Name != "disk" {
		t.Error(exports, err)
	}
	d, err := Probe(ctx, uri, ClientOptions{})
	if err != nil || d.Size != c.Size() || d.Extended != (want == extendedHeaders) || d.Structured != (want != simpleReplies) ||
		d.TLS != strings.HasPrefix(uri, "nbds:") || len(d.Contexts) != contexts || d.Description != "test disk" {
		t.Errorf("%+v, %v", d, err)
	}
}
