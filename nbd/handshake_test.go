package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

// rw and ro are the transmission flags of writable and read-only exports, with
// structured replies and several connections.
const (
	rwFlags = flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendZeroes | flagSendFastZero | flagSendDF | flagCanMultiConn | flagSendCache
	roFlags = flagHasFlags | flagReadOnly | flagSendFlush | flagSendDF | flagCanMultiConn | flagSendCache | flagRotational
)

// sizes is a connection that notes the largest write.
type sizes struct {
	net.Conn
	largest int
}

func (s *sizes) Write(p []byte) (int, error) {
	s.largest = max(s.largest, len(p))
	return s.Conn.Write(p)
}

// A list is not built in memory, however long it is, and ends when nobody takes it.
func TestHandshakeLongList(t *testing.T) {
	noLeaks(t)
	const count = 4096
	var exports []*Export
	for i := range count {
		e := newMemory(0).export(fmt.Sprintf("%0*d", maxName, i))
		e.Description = strings.Repeat("d", maxText)
		exports = append(exports, e)
	}
	serve := func() (w *wire, largest func() int) {
		near, far := net.Pipe()
		s := &sizes{Conn: far}
		done := make(chan struct{})
		go func() { serverOf(t, exports...).ServeConn(t.Context(), s); close(done) }()
		return &wire{t: t, nc: near}, func() int { <-done; return s.largest }
	}
	w, largest := serve()
	w.hello()
	w.option(optList)
	for i := range count {
		w.expectReply(optList, repServer, encode(uint32(maxName), fmt.Sprintf("%0*d", maxName, i), exports[i].Description))
	}
	w.expectReply(optList, repAck, []byte{})
	w.option(optAbort)
	w.expectReply(optAbort, repAck, []byte{})
	if n := largest(); n > outputBatch+2*maxName+100 {
		t.Errorf("%d bytes in one write", n)
	}

	w, largest = serve()
	w.hello()
	w.option(optList)
	w.reply(optList)
	closeQuietly(w.nc)
	largest()
}

func TestHandshake(t *testing.T) {
	m := newMemory(1 << 20)
	ro := newMemory(4096).export("ro")
	ro.ReadOnly, ro.Rotational, ro.Description = true, true, strings.Repeat("d", maxText+9)
	broken := newMemory(1).export("broken")
	broken.Open = func(context.Context, Peer) (Device, error) { return nil, errors.New("the disk is in the drawer") }
	gone := newMemory(1).export("gone")
	gone.Open = func(context.Context, Peer) (Device, error) { return nil, fmt.Errorf("deleted: %w", fs.ErrNotExist) }
	path := listen(t, serverOf(t, m.export("disk"), ro, broken, gone))

	export := func(size int, flags uint16) []byte { return encode(infoExport, uint64(size), flags) }
	blocks := encode(infoBlockSize, uint32(1), uint32(4096), uint32(32<<20))
	structured := func(w *wire) {
		w.option(optStructuredReply)
		w.expectReply(optStructuredReply, repAck, []byte{})
	}
	tests := []struct {
		name string
		talk func(w *wire)
	}{
		{"go", func(w *wire) {
			w.option(optGo, name("disk"), uint16(2), infoName, infoDescription)
			w.expectReply(optGo, repInfo, export(1<<20, rwFlags&^flagSendDF))
			w.expectReply(optGo, repInfo, encode(infoName, "disk"))
			w.expectReply(optGo, repInfo, encode(infoDescription, "test disk"))
			w.expectReply(optGo, repInfo, blocks)
			w.expectReply(optGo, repAck, []byte{})
			w.alive()
		}},
		{"default export", func(w *wire) {
			w.option(optGo, name(""), uint16(1), infoName)
			w.expectReply(optGo, repInfo, export(1<<20, rwFlags&^flagSendDF))
			w.expectReply(optGo, repInfo, encode(infoName, "disk"))
			w.expectReply(optGo, repInfo, blocks)
			w.expectReply(optGo, repAck, nil)
		}},
		{"info then go read-only", func(w *wire) {
			structured(w)
			for _, opt := range []uint32{optInfo, optGo} {
				w.option(opt, name("ro"), uint16(1), infoDescription)
				w.expectReply(opt, repInfo, export(4096, roFlags))
				w.expectReply(opt, repInfo, encode(infoDescription, strings.Repeat("d", maxText)))
				w.expectReply(opt, repInfo, blocks)
				w.expectReply(opt, repAck, nil)
			}
		}},
		{"unknown export, then a known one", func(w *wire) {
			w.option(optGo, name("nope"), uint16(0))
			w.expectReply(optGo, repErrUnknown, []byte(`there is no export "nope" here`))
			w.option(optGo, name("broken"), uint16(0))
			w.expectReply(optGo, repErrPolicy, []byte(`export "broken" cannot be opened: the disk is in the drawer`))
			w.option(optGo, name("gone"), uint16(0))
			w.expectReply(optGo, repErrUnknown, nil)
			w.option(optGo, name("disk"), uint16(0))
			w.expectReply(optGo, repInfo, nil)
		}},
		{"malformed go", func(w *wire) {
			for _, data := range [][]byte{
				{},
				encode(uint32(4), "dis"), encode(uint32(1<<31), "disk"), encode(name("disk")),
				encode(name("disk"), uint16(1)), encode(name("disk"), uint16(0), "x"), encode(uint32(5000), strings.Repeat("x", 5000), uint16(0)),
				encode(name("disk"), uint16(0xffff)),
			} {
				w.option(optGo, data)
				w.expectReply(optGo, repErrInvalid, nil)
			}
		}},
		{"list", func(w *wire) {
			w.option(optList)
			w.expectReply(optList, repServer, encode(name("disk"), "test disk"))
			w.expectReply(optList, repServer, encode(name("ro"), strings.Repeat("d", maxText)))
			w.expectReply(optList, repServer, encode(name("broken"), "test broken"))
			w.expectReply(optList, repServer, encode(name("gone"), "test gone"))
			w.expectReply(optList, repAck, []byte{})
			w.option(optList, "x")
			w.expectReply(optList, repErrInvalid, nil)
		}},
		{"abort", func(w *wire) {
			w.option(optAbort)
			w.expectReply(optAbort, repAck, []byte{})
			w.expectEnd()
		}},
		{"unknown options", func(w *wire) {
			for _, opt := range []uint32{4, 99, 0xffffffff} {
				w.option(opt, "whatever")
				w.expectReply(opt, repErrUnsup, []byte{})
			}
			w.option(optStructuredReply, "x")
			w.expectReply(optStructuredReply, repErrInvalid, nil)
		}},
		{"option too big", func(w *wire) {
			w.option(99, make([]byte, maxOptionData+1))
			w.expectReply(99, repErrTooBig, nil)
			w.option(optAbort)
			w.expectReply(optAbort, repAck, nil)
		}},
		{"export name", func(w *wire) {
			w.option(optExportName, "disk")
			w.expect(uint64(1<<20), rwFlags&^flagSendDF)
			w.alive()
		}},
		{"export name unknown", func(w *wire) {
			w.option(optExportName, "nope")
			w.expectEnd()
		}},
		{"contexts need structured replies", func(w *wire) {
			w.option(optSetMetaContext, name("disk"), uint32(1), name(ContextAllocation))
			w.expectReply(optSetMetaContext, repErrInvalid, nil)
		}},
		{"list contexts", func(w *wire) {
			structured(w)
			for _, c := range []struct {
				queries []string
				want    []string
			}{
				{nil, []string{ContextAllocation, dirtyName}},
				{[]string{"base:"}, []string{ContextAllocation}},
				{[]string{"qemu:"}, []string{dirtyName}},
				{[]string{"qemu:dirty-bitmap:"}, []string{dirtyName}},
				{[]string{dirtyName, "base:allocation"}, []string{ContextAllocation, dirtyName}},
				{[]string{"base:alloc", "x-"}, nil},
			} {
				data := encode(name("disk"), uint32(len(c.queries)))
				for _, q := range c.queries {
					data = append(data, name(q)...)
				}
				w.option(optListMetaContext, data)
				for _, n := range c.want {
					w.expectReply(optListMetaContext, repMetaContext, encode(uint32(0), n))
				}
				w.expectReply(optListMetaContext, repAck, nil)
			}
		}},
		{"set contexts", func(w *wire) {
			structured(w)
			// A namespace is for listing only; a name that is there twice is one.
			w.option(optSetMetaContext, name("disk"), uint32(4), name("base:"), name(dirtyName), name("y:z"), name(dirtyName))
			w.expectReply(optSetMetaContext, repMetaContext, encode(uint32(1), dirtyName))
			w.expectReply(optSetMetaContext, repAck, nil)
			w.option(optSetMetaContext, name("nope"), uint32(0))
			w.expectReply(optSetMetaContext, repErrUnknown, nil)
			w.option(optSetMetaContext, name("disk"), uint32(1<<30), name(dirtyName))
			w.expectReply(optSetMetaContext, repErrInvalid, nil)
			w.option(optGo, name("disk"), uint16(0))
			w.expectReply(optGo, repInfo, export(1<<20, rwFlags))
			w.expectReply(optGo, repInfo, nil)
			w.expectReply(optGo, repAck, nil)
			w.request(0, cmdBlockStatus, 1, 0, 4096) // the failed options took the selection away
			w.expectError(1, EINVAL)
		}},
		{"contexts of another export", func(w *wire) {
			structured(w)
			w.option(optSetMetaContext, name("ro"), uint32(1), name(ContextAllocation))
			w.expectReply(optSetMetaContext, repMetaContext, nil)
			w.expectReply(optSetMetaContext, repAck, nil)
			w.option(optGo, name("disk"), uint16(0))
			w.expectReply(optGo, repInfo, nil)
			w.expectReply(optGo, repInfo, nil)
			w.expectReply(optGo, repAck, nil)
			w.request(0, cmdBlockStatus, 1, 0, 4096)
			w.expectError(1, EINVAL)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := connect(t, path)
			w.hello()
			w.t = t
			test.talk(w)
		})
	}
}

// A client may ask about every export that it was told of, as nbdinfo --list does, but
// not for ever.
func TestHandshakeOptionsOfListed(t *testing.T) {
	const count = 100
	var exports []*Export
	for i := range count {
		exports = append(exports, newMemory(1).export(strconv.Itoa(i)))
	}
	w := connect(t, listen(t, serverOf(t, exports...)))
	w.hello()
	left := maxOptions + count*maxPerListed
	for range 2 { // the second adds nothing
		w.option(optList)
		for range count {
			if rep, _ := w.reply(optList); rep != repServer {
				t.Fatalf("reply %#x", rep)
			}
		}
		w.expectReply(optList, repAck, nil)
		left--
	}
	for i := range left {
		w.option(optListMetaContext, name(strconv.Itoa(i%count)), uint32(0))
		w.expectReply(optListMetaContext, repErrInvalid, nil) // as nobody has asked for structured replies
	}
	w.expectEnd()
}

func TestHandshakeZeroes(t *testing.T) {
	m := newMemory(1 << 20)
	path := listen(t, serverOf(t, m.export("disk")))
	for _, flags := range []uint32{0, 1} { // 0: a client of the time before fixed newstyle
		w := connect(t, path)
		w.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
		w.send(flags)
		w.option(optExportName, "disk")
		w.expect(uint64(1<<20), rwFlags&^flagSendDF, make([]byte, exportNamePadding))
		w.alive()
	}
}

func TestHandshakeNoList(t *testing.T) {
	s := serverOf(t, newMemory(1).export("disk"))
	s.o.List = nil
	w := connect(t, listen(t, s))
	w.hello()
	w.option(optList)
	w.expectReply(optList, repErrPolicy, nil)
}

// Clients that do not even get through the handshake lose their connection, and
// the server goes on.
func TestHandshakeMisbehaving(t *testing.T) {
	m := newMemory(1 << 20)
	s := serverOf(t, m.export("disk"))
	path := listen(t, s)
	tests := []struct {
		name string
		talk func(w *wire)
	}{
		{"unknown client flags", func(w *wire) { w.send(uint32(4)) }},
		{"bad option magic", func(w *wire) { w.send(uint32(3), "IHAVEOPS", optList, uint32(0)) }},
		{"http", func(w *wire) { w.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n") }},
		{"huge option", func(w *wire) { w.send(uint32(3), "IHAVEOPT", uint32(99), uint32(0xffffffff)) }},
		{"long export name", func(w *wire) { w.send(uint32(3)); w.option(optExportName, make([]byte, maxName+1)) }},
		{"33 options", func(w *wire) {
			w.send(uint32(3))
			for range maxOptions {
				w.option(99)
				w.expectReply(99, repErrUnsup, nil)
			}
			// The server has had enough, so this may already fail.
			_, _ = w.nc.Write(encode("IHAVEOPT", uint32(99), uint32(0)))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := connect(t, path)
			w.t = t
			w.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
			test.talk(w)
			w.expectEnd()
		})
	}
	connect(t, path).enter("disk", true)
	if m.opened.Load() != 1 {
		t.Errorf("the device was opened %d times, want once", m.opened.Load())
	}
}

// A client that dawdles in the handshake is cut off, wherever it stops.
func TestHandshakeDeadline(t *testing.T) {
	s := serverOf(t, newMemory(1).export("disk"))
	s.o.HandshakeTimeout = 50 * time.Millisecond
	path := listen(t, s)
	begun := encode(uint32(3), "IHAVEOPT", optGo, uint32(100), "12345")
	for _, n := range []int{0, 2, 4, 12, len(begun)} {
		w := connect(t, path)
		w.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
		_, _ = w.nc.Write(begun[:n]) // the time may be up before
		w.expectEnd()
	}
}

// The time that opening takes is not the client's fault.
func TestHandshakeSlowOpen(t *testing.T) {
	m := newMemory(1 << 20)
	e := m.export("disk")
	open := e.Open
	e.Open = func(ctx context.Context, p Peer) (Device, error) {
		pause(ctx, 800*time.Millisecond)
		return open(ctx, p)
	}
	s := serverOf(t, e)
	s.o.HandshakeTimeout = 600 * time.Millisecond
	w := connect(t, listen(t, s))
	w.enter("disk", true)
	w.alive()
}

func TestMaxConns(t *testing.T) {
	s := serverOf(t, newMemory(1<<20).export("disk"))
	s.o.MaxConns = 2
	path := listen(t, s)
	a, b := connect(t, path), connect(t, path)
	a.enter("disk", false)
	b.enter("disk", false)
	connect(t, path).expectEnd()
	a.request(0, cmdDisc, 0, 0, 0)
	a.expectEnd()
	b.alive()
	for { // the place is free soon after the connection has ended
		w := connect(t, path)
		var hello [18]byte
		if n, _ := w.nc.Read(hello[:]); n == len(hello) {
			break
		}
	}
}

func TestPeer(t *testing.T) {
	got := make(chan Peer, 1)
	e := newMemory(1).export("disk")
	open := e.Open
	e.Open = func(ctx context.Context, p Peer) (Device, error) {
		got <- p
		return open(ctx, p)
	}
	connect(t, listen(t, serverOf(t, e))).enter("disk", false)
	if p := <-got; p.PID != os.Getpid() || p.UID != os.Getuid() || p.GID != os.Getgid() {
		t.Errorf("peer %+v, want this process", p)
	}
}

// Depths are asked about by the names that qemu uses, with either kind of header.
func TestHandshakeAllocationDepth(t *testing.T) {
	m := newMemory(1 << 20)
	e := m.export("disk")
	e.Contexts = func() []string { return []string{ContextAllocation, ContextDepth, dirtyName} }
	path := listen(t, serverOf(t, e))
	for _, test := range []struct {
		opt           uint32
		queries, want []string
	}{
		{optListMetaContext, nil, []string{ContextAllocation, ContextDepth, dirtyName}},
		{optListMetaContext, []string{"qemu:"}, []string{"qemu:allocation-depth", dirtyName}},
		{optListMetaContext, []string{"qemu:allocation-depth"}, []string{"qemu:allocation-depth"}},
		{optListMetaContext, []string{"qemu:dirty-bitmap:"}, []string{dirtyName}},
		{optListMetaContext, []string{"qemu:allocation"}, nil},
		{optSetMetaContext, []string{"qemu:"}, nil},
		{optSetMetaContext, []string{"qemu:allocation-depth:"}, nil},
		{optSetMetaContext, []string{dirtyName, "qemu:allocation-depth"}, []string{dirtyName, "qemu:allocation-depth"}},
	} {
		w := connect(t, path)
		w.hello()
		w.option(optStructuredReply)
		w.expectReply(optStructuredReply, repAck, nil)
		data := encode(name("disk"), uint32(len(test.queries)))
		for _, q := range test.queries {
			data = append(data, name(q)...)
		}
		w.option(test.opt, data)
		for i, want := range test.want {
			id := uint32(i + 1)
			if test.opt == optListMetaContext {
				id = 0
			}
			w.expectReply(test.opt, repMetaContext, encode(id, want))
		}
		w.expectReply(test.opt, repAck, []byte{})
	}
	e.Open = func(context.Context, Peer) (Device, error) {
		return badMap{m, []blockmap.Extent{{Length: 4096, State: 2}, {Offset: 4096, Length: 1 << 19, State: 1}, {Offset: 4096 + 1<<19, Length: 1 << 19}}}, nil
	}
	for _, extended := range []bool{false, true} {
		w := connect(t, path)
		w.extended = extended
		w.enter("disk", true, ContextDepth)
		w.request(0, cmdBlockStatus, 1, 0, 1<<20)
		w.expectChunk(1, chunkBlockStatus, 1, uint32(1), uint32(4096), uint32(2), uint32(1<<19), uint32(1), uint32(1<<19-4096), uint32(0))
	}
}
