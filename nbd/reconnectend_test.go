package nbd

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/blockmap"
)

// An export that is another one now is not read on as if it were not.
func TestReconnectElsewhere(t *testing.T) {
	noLeaks(t)
	m := newMemory(1 << 20)
	readOnly := m.export("disk")
	readOnly.ReadOnly = true
	for _, other := range []*Export{newMemory(1<<20 + 512).export("disk"), readOnly} {
		r := &restartable{t: t, path: t.TempDir() + "/s"}
		r.start(m.export("disk"))
		c := dial(t, URI(r.path, "disk"), ClientOptions{Reconnect: 20 * time.Second})
		r.stop()
		r.start(other)
		for range 2 {
			if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), "another one since then") {
				t.Error(err)
			}
		}
		r.stop()
	}
}

// A server in the place of another may do more than that one, and not less.
func TestReconnectUpgraded(t *testing.T) {
	noLeaks(t)
	old := session{
		size: 1 << 20, flags: rwFlags, framing: structuredReplies, blocks: BlockSizes{512, 4096, 1 << 20},
		contexts: []selectedContext{{1, ContextAllocation}},
	}
	for _, try := range []struct {
		name   string
		change func(s *session)
		want   bool
	}{
		{"nothing", func(*session) {}, true},
		{"one more flag", func(s *session) { s.flags |= flagSendCache }, true},
		{"one flag less", func(s *session) { s.flags &^= flagSendTrim }, false},
		{"read-only", func(s *session) { s.flags |= flagReadOnly }, false},
		{"another kind of disk", func(s *session) { s.flags ^= flagRotational }, true},
		{"longer headers", func(s *session) { s.framing = extendedHeaders }, true},
		{"simple replies", func(s *session) { s.framing = simpleReplies }, false},
		{"larger", func(s *session) { s.size++ }, false},
		{"smaller", func(s *session) { s.size-- }, false},
		{"smaller blocks", func(s *session) { s.blocks.Minimum = 1 }, true},
		{"larger blocks", func(s *session) { s.blocks.Minimum = 1024 }, false},
		{"larger requests", func(s *session) { s.blocks.Maximum *= 2 }, true},
		{"smaller requests", func(s *session) { s.blocks.Maximum /= 2 }, false},
		{"other preferences", func(s *session) { s.blocks.Preferred *= 2 }, true},
		{"one more context", func(s *session) { s.contexts = []selectedContext{{7, dirtyName}, {3, ContextAllocation}} }, true},
		{"another context", func(s *session) { s.contexts = []selectedContext{{1, dirtyName}} }, false},
	} {
		s := old
		if try.change(&s); s.replaces(&old) != try.want {
			t.Errorf("%s: taken %v", try.name, !try.want)
		}
	}
	m := newMemory(1 << 20)
	less := m.export("disk")
	less.Contexts = func() []string { return []string{ContextAllocation} }
	less.MultiConn = false
	r := &restartable{t: t, path: t.TempDir() + "/s"}
	r.start(less)
	c := dial(t, URI(r.path, "disk"), ClientOptions{
		Contexts: []string{dirtyName, ContextAllocation}, Conns: 2, Reconnect: 20 * time.Second,
	})
	r.stop()
	r.start(m.export("disk"))
	if e, err := c.Map(t.Context(), ContextAllocation, 0, 1<<20); err != nil || len(e) != 1 || e[0].State != blockmap.Hole|blockmap.Zero {
		t.Error(e, err)
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err != nil || c.Conns() != 2 {
		t.Errorf("%v, %d connections", err, c.Conns())
	}
}

// Waiting for a server ends with the time that was allowed, with the context, and
// with the client.
func TestReconnectEnds(t *testing.T) {
	noLeaks(t)
	m := newMemory(1 << 20)
	lost := func(reconnect time.Duration) *Client {
		t.Helper()
		r := &restartable{t: t, path: t.TempDir() + "/s"}
		r.start(m.export("disk"))
		c := dial(t, URI(r.path, "disk"), ClientOptions{Reconnect: reconnect})
		r.stop()
		return c
	}
	read := func(ctx context.Context, c *Client) error { return c.ReadAt(ctx, make([]byte, 512), 0) }
	c := lost(50 * time.Millisecond)
	for range 2 {
		if err := read(t.Context(), c); err == nil || !strings.Contains(err.Error(), "could not be made again within 50ms") {
			t.Error(err)
		}
	}
	c = lost(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := read(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	errs := make(chan error)
	for range 4 {
		go func() { errs <- read(t.Context(), c) }()
	}
	for len(c.redialing) == 0 { // until one waits
		<-time.After(time.Millisecond)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for range 4 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	}
}

// A server that breaks the protocol is not asked again; one that says goodbye is.
func TestReconnectOnlyLosses(t *testing.T) {
	noLeaks(t)
	var connections atomic.Int64
	reply := encode(magicStructured, uint16(9), chunkNone, uint64(1), uint32(0))
	uri := fakeServer(t, func(w *wire) {
		connections.Add(1)
		w.welcome()
		w.read(requestSize)
		w.send(reply)
	})
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}, Reconnect: time.Hour})
	if err := c.ReadAt(t.Context(), make([]byte, 8), 0); err == nil || !strings.Contains(err.Error(), "flags") || connections.Load() != 1 {
		t.Error(err, connections.Load())
	}
	connections.Store(0)
	uri = fakeServer(t, func(w *wire) {
		n := connections.Add(1)
		w.welcome()
		w.read(requestSize)
		if n == 1 {
			w.send(magicStructured, chunkFlagDone, chunkError, uint64(1), uint32(6), ESHUTDOWN, uint16(0))
			w.expectEnd()
			return
		}
		w.send(magicStructured, chunkFlagDone, chunkOffsetData, uint64(1), uint32(8+5), uint64(0), "again")
		w.read(requestSize)
	})
	c = dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}, Reconnect: time.Hour})
	p := make([]byte, 5)
	if err := c.ReadAt(t.Context(), p, 0); err != nil || string(p) != "again" || connections.Load() != 2 {
		t.Errorf("%q, %v, %d connections", p, err, connections.Load())
	}
}

// A machine that has fallen silent is noticed by whoever can connect again.
func TestReconnectSilence(t *testing.T) {
	m := newMemory(1 << 20)
	uri := serveDevice(t, "tcp", m, m)
	for _, reconnect := range []time.Duration{0, time.Minute} {
		c := dial(t, uri, ClientOptions{Reconnect: reconnect})
		raw, err := c.current().all[0].socket.(*net.TCPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var timeout int
		if err = errors.Join(raw.Control(func(fd uintptr) {
			timeout, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		}), err); err != nil {
			t.Fatal(err)
		}
		if want := min(int(reconnect/time.Millisecond), 30_000); timeout != want {
			t.Errorf("a silent machine is given %d ms, want %d", timeout, want)
		}
	}
}

// The numbers that a server gives to contexts may be others each time.
func TestReconnectContextIDs(t *testing.T) {
	var connections atomic.Int64
	uri := fakeServer(t, func(w *wire) {
		id := uint32(connections.Add(1))
		w.greetOption()
		w.answer(optStructuredReply, repAck)
		w.readOption()
		w.answer(optSetMetaContext, repMetaContext, 10-id, ContextAllocation)
		w.answer(optSetMetaContext, repMetaContext, 10+id, dirtyName)
		w.answer(optSetMetaContext, repAck)
		w.readOption()
		w.answer(optGo, repInfo, infoExport, uint64(1<<20), rwFlags)
		w.answer(optGo, repAck)
		w.read(requestSize)
		if id == 1 {
			return
		}
		w.send(magicStructured, uint16(0), chunkBlockStatus, uint64(1), uint32(12), 10+id, uint32(1<<20), uint32(1))
		w.send(magicStructured, uint16(1), chunkBlockStatus, uint64(1), uint32(12), 10-id, uint32(1<<20), uint32(3))
		w.read(requestSize)
	})
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation, dirtyName}, Reconnect: time.Hour})
	if e, err := c.Map(t.Context(), ContextAllocation, 0, 1<<20); err != nil || len(e) != 1 || e[0].State != 3 {
		t.Error(e, err)
	}
}
