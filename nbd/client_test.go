package nbd

import (
	"bytes"
	"testing"
)

func TestClientServer(t *testing.T) {
	m := newMemory(8<<20 + 512)
	uri := URI(listen(t, serverOf(t, m.export("disk"))), "disk")
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation, dirtyName, "x:y"}, Conns: 3})
	if c.Size() != m.Size() || c.ReadOnly() || c.Conns() != 3 || len(c.Contexts()) != 2 {
		t.Fatalf("size %d, read-only %v, conns %d, contexts %q", c.Size(), c.ReadOnly(), c.Conns(), c.Contexts())
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
	e, err := c.Map(ctx, ContextAllocation, 0, c.Size())
	if err != nil {
		t.Fatal(err)
	}
	t.Log(e)
	if err := c.Flush(ctx); err != nil || m.flush.Load() < 2 {
		t.Fatal(err, m.flush.Load())
	}
}
