package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// wire is a connection on which a test says and hears exact bytes.
type wire struct {
	t  testing.TB
	nc net.Conn
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
	return &wire{tb, nc}
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
	if structured {
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
	w.send(magicRequest, flags, command, cookie, offset, length, encode(payload...))
}

func (w *wire) expectSimple(cookie uint64, e Error) {
	w.t.Helper()
	w.expect(magicSimple, e, cookie)
}

func (w *wire) expectChunk(flags, kind uint16, cookie uint64, parts ...any) {
	w.t.Helper()
	data := encode(parts...)
	w.expect(magicStructured, flags, kind, cookie, uint32(len(data)), data)
}

// expectError expects a structured error, with whatever text.
func (w *wire) expectError(cookie uint64, e Error) {
	w.t.Helper()
	w.expect(magicStructured, chunkFlagDone, chunkError, cookie)
	data := w.read(int(binary.BigEndian.Uint32(w.read(4))))
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
