package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// wire is a connection on which a test says and hears exact bytes.
type wire struct {
	t  testing.TB
	nc net.Conn

	// extended makes the helpers for requests and replies use extended headers:
	// what a test says of compact ones is then said of those.
	extended bool
	mu       sync.Mutex
	offsets  map[uint64]uint64 // of the requests, by cookie, since replies repeat them
}

// connect opens a connection to a unix socket, with a limit that turns a hang
// into a failure.
func connect(tb testing.TB, path string) *wire {
	tb.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closeQuietly(nc) })
	if err := nc.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	return &wire{t: tb, nc: nc}
}

// encode puts numbers in big-endian order, and texts as they are.
func encode(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(b, p...)
		case []byte:
			b = append(b, p...)
		case Error:
			b = binary.BigEndian.AppendUint32(b, uint32(p))
		case uint16, uint32, uint64:
			b, _ = binary.Append(b, binary.BigEndian, p)
		default:
			panic(fmt.Sprintf("cannot encode %T", p))
		}
	}
	return b
}

func (w *wire) send(parts ...any) {
	w.t.Helper()
	if _, err := w.nc.Write(encode(parts...)); err != nil {
		w.t.Fatalf("send: %v", err)
	}
}

func (w *wire) expect(parts ...any) {
	w.t.Helper()
	want := encode(parts...)
	got := make([]byte, len(want))
	n, err := io.ReadFull(w.nc, got)
	if err != nil || !bytes.Equal(got, want) {
		w.t.Fatalf("got %x, %v\nwant %x", got[:n], err, want)
	}
}

// read returns the next n bytes.
func (w *wire) read(n int) []byte {
	w.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(w.nc, b); err != nil {
		w.t.Fatalf("read: %v", err)
	}
	return b
}

// expectEnd expects that the other side hangs up without another byte.
func (w *wire) expectEnd() {
	w.t.Helper()
	b, err := io.ReadAll(w.nc)
	if len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		w.t.Fatalf("got %x, %v; want the end of the connection", b, err)
	}
}

// hello exchanges the greeting.
func (w *wire) hello() {
	w.t.Helper()
	w.expect("NBDMAGIC", "IHAVEOPT", uint16(3))
	w.send(uint32(3))
}

func (w *wire) option(opt uint32, parts ...any) {
	w.t.Helper()
	data := encode(parts...)
	w.send("IHAVEOPT", opt, uint32(len(data)), data)
}

// reply reads one option reply.
func (w *wire) reply(opt uint32) (rep uint32, data []byte) {
	w.t.Helper()
	w.expect(magicOptReply, opt)
	rep = binary.BigEndian.Uint32(w.read(4))
	return rep, w.read(int(binary.BigEndian.Uint32(w.read(4))))
}

// expectReply expects an option reply of a kind, and exact data unless nil.
func (w *wire) expectReply(opt, rep uint32, data []byte) {
	w.t.Helper()
	got, b := w.reply(opt)
	if got != rep || data != nil && !bytes.Equal(b, data) {
		w.t.Fatalf("option %d answered with %#x %q, want %#x %q", opt, got, b, rep, data)
	}
}

func name(s string) []byte { return encode(uint32(len(s)), s) }

// enter negotiates up to transmission.
func (w *wire) enter(export string, structured bool, contexts ...string) {
	w.t.Helper()
	w.hello()
	w.enterAfterHello(export, structured, contexts...)
}

func (w *wire) enterAfterHello(export string, structured bool, contexts ...string) {
	w.t.Helper()
	switch {
	case w.extended:
		w.option(optExtendedHeaders)
		w.expectReply(optExtendedHeaders, repAck, []byte{})
	case structured:
		w.option(optStructuredReply)
		w.expectReply(optStructuredReply, repAck, nil)
	}
	if len(contexts) > 0 {
		data := encode(name(export), uint32(len(contexts)))
		for _, c := range contexts {
			data = append(data, name(c)...)
		}
		w.option(optSetMetaContext, data)
		for i, c := range contexts {
			w.expectReply(optSetMetaContext, repMetaContext, encode(uint32(i+1), c))
		}
		w.expectReply(optSetMetaContext, repAck, nil)
	}
	w.option(optGo, name(export), uint16(0))
	for {
		rep, data := w.reply(optGo)
		if rep == repAck {
			return
		}
		if rep != repInfo {
			w.t.Fatalf("GO answered with %#x %q", rep, data)
		}
	}
}

func (w *wire) request(flags, command uint16, cookie, offset uint64, length uint32, payload ...any) {
	w.t.Helper()
	if !w.extended {
		w.send(magicRequest, flags, command, cookie, offset, length, encode(payload...))
		return
	}
	if command == cmdWrite {
		flags |= cmdFlagPayloadLen
	}
	w.requestExtended(flags, command, cookie, offset, uint64(length), payload...)
}

func (w *wire) requestExtended(flags, command uint16, cookie, offset, length uint64, payload ...any) {
	w.t.Helper()
	w.mu.Lock()
	if w.offsets == nil {
		w.offsets = map[uint64]uint64{}
	}
	w.offsets[cookie] = offset
	w.mu.Unlock()
	w.send(magicExtRequest, flags, command, cookie, offset, length, encode(payload...))
}

func (w *wire) offsetOf(cookie uint64) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.offsets[cookie]
}

// expectSimple expects a simple reply, or the one chunk that takes its place.
func (w *wire) expectSimple(cookie uint64, e Error) {
	w.t.Helper()
	switch {
	case !w.extended:
		w.expect(magicSimple, e, cookie)
	case e == 0:
		w.expectChunk(chunkFlagDone, chunkNone, cookie)
	default:
		w.expectError(cookie, e)
	}
}

func (w *wire) expectChunk(flags, kind uint16, cookie uint64, parts ...any) {
	w.t.Helper()
	data := encode(parts...)
	if !w.extended {
		w.expect(magicStructured, flags, kind, cookie, uint32(len(data)), data)
		return
	}
	if kind == chunkBlockStatus {
		kind, data = chunkStatusExt, widen(data)
	}
	w.expect(magicExtReply, flags, kind, cookie, w.offsetOf(cookie), uint64(len(data)), data)
}

// widen turns the payload of a BLOCK_STATUS chunk into that of its extended kind.
func widen(data []byte) []byte {
	c := cursor{b: data}
	b := encode(c.u32(), uint32(len(data)/8))
	for len(c.b) > 0 {
		b = append(b, encode(uint64(c.u32()), uint64(c.u32()))...)
	}
	return b
}

// chunkHead reads the header of a chunk.
func (w *wire) chunkHead() (flags, kind uint16, cookie uint64, n int) {
	w.t.Helper()
	size, magic := chunkHeaderSize, magicStructured
	if w.extended {
		size, magic = extReplySize, magicExtReply
	}
	h := cursor{b: w.read(size)}
	if got := h.u32(); got != magic {
		w.t.Fatalf("chunk with the magic %#x", got)
	}
	flags, kind, cookie = h.u16(), h.u16(), h.u64()
	if !w.extended {
		return flags, kind, cookie, int(h.u32())
	}
	if off := h.u64(); off != w.offsetOf(cookie) {
		w.t.Fatalf("chunk of the offset %d, not that of its request", off)
	}
	return flags, kind, cookie, int(h.u64())
}

// expectError expects an error chunk, with whatever text.
func (w *wire) expectError(cookie uint64, e Error) {
	w.t.Helper()
	flags, kind, c, n := w.chunkHead()
	if flags != chunkFlagDone || kind != chunkError || c != cookie {
		w.t.Fatalf("chunk of flags %d, type %d, for %d; want an error for %d", flags, kind, c, cookie)
	}
	data := w.read(n)
	if got := Error(binary.BigEndian.Uint32(data)); got != e {
		w.t.Fatalf("error %v %q, want %v", got, data[6:], e)
	}
}

// alive checks that the connection still answers.
func (w *wire) alive() {
	w.t.Helper()
	w.request(0, cmdFlush, 0xa11e, 0, 0)
	w.expectSimple(0xa11e, 0)
}
