package nbd

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
)

// extRequest and extChunk are messages with extended headers, as the protocol
// document lays them out.
func extRequest(flags, command uint16, cookie, offset, length uint64, payload ...any) []byte {
	return encode(uint32(0x21e41c71), flags, command, cookie, offset, length, encode(payload...))
}

func extChunk(flags, kind uint16, cookie, offset uint64, parts ...any) []byte {
	data := encode(parts...)
	return encode(uint32(0x6e8a278c), flags, kind, cookie, offset, uint64(len(data)), data)
}

// Every request as it is on the wire, and every kind of answer.
func TestExtendedHeaders(t *testing.T) {
	const size = 1 << 50
	done := func(cookie, offset uint64) []byte { return extChunk(1, 0, cookie, offset) }
	uri := fakeServer(t, func(w *wire) {
		w.t = strictTB{t}
		w.welcomeExtended(size, rwFlags|flagSendFastZero)
		w.expect(extRequest(0, 0, 1, 1<<40, 8))
		w.send(extChunk(0, 1, 1, 1<<40, uint64(1<<40), "abcd"), extChunk(1, 2, 1, 1<<40, uint64(1<<40+4), uint32(4)))
		w.expect(extRequest(1<<5, 1, 2, 4, 5, "cairn"))
		w.send(done(2, 4))
		w.expect(extRequest(1<<5|1, 1, 3, 4, 5, "CAIRN"))
		w.send(done(3, 4))
		w.expect(extRequest(0, 3, 4, 0, 0))
		w.send(done(4, 0))
		w.expect(extRequest(0, 4, 5, 0, size)) // a PiB in one request
		w.send(done(5, 0))
		w.expect(extRequest(1<<1, 6, 6, 4096, size-4096))
		w.send(extChunk(1, 1<<15|1, 6, 4096, EOVERFLOW, uint16(3), "big")) // which is too much, so it comes in parts
		w.expect(extRequest(1<<1, 6, 7, 4096, maxRange))
		w.send(extChunk(1, 1<<15|1, 7, 4096, ENOSPC, uint16(0)))
		w.expect(extRequest(1<<4, 6, 8, 0, 1<<33))
		w.send(extChunk(1, 1<<15|1, 8, 0, ENOTSUP, uint16(0)))
		w.expect(extRequest(0, 7, 9, 0, size))
		w.send(extChunk(1, 6, 9, 0, uint32(5), uint32(2), uint64(1<<40), uint64(0), uint64(1<<41), uint64(3)))
		w.expect(extRequest(0, 7, 10, 3<<40, size-3<<40)) // it goes on where the answer ended
		w.send(extChunk(1, 6, 10, 3<<40, uint32(5), uint32(0), uint64(math.MaxUint64), uint64(3)))
		w.expect(extRequest(0, 2, 0, 0, 0))
	})
	c := dial(t, uri, ClientOptions{Contexts: []string{ContextAllocation}})
	ctx := t.Context()
	p := []byte("????????")
	if err := c.ReadAt(ctx, p, 1<<40); err != nil || string(p) != "abcd\x00\x00\x00\x00" {
		t.Errorf("%q, %v", p, err)
	}
	if err := errors.Join(c.WriteAt(ctx, []byte("cairn"), 4, false), c.WriteAt(ctx, []byte("CAIRN"), 4, true), c.Flush(ctx), c.Trim(ctx, 0, size)); err != nil {
		t.Error(err)
	}
	if err := c.Zero(ctx, 4096, size-4096, false); !errors.Is(err, ENOSPC) {
		t.Error(err)
	}
	if err := c.ZeroFast(ctx, 0, 1<<33, true); !errors.Is(err, ENOTSUP) || !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	got, err := c.Map(ctx, ContextAllocation, 0, size)
	want := []blockmap.Extent{{Offset: 0, Length: 1 << 40, State: blockmap.Data}, {Offset: 1 << 40, Length: size - 1<<40, State: blockmap.Hole | blockmap.Zero}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Error(got, err)
	}
}

// Each field of an answer wrong once.
func TestHostileServerExtendedReplies(t *testing.T) {
	head := func(kind uint16, length uint64) []byte {
		return encode(magicExtReply, chunkFlagDone, kind, uint64(1), uint64(8192), length, make([]byte, 64))
	}
	status := func(parts ...any) []byte { return extChunk(1, chunkStatusExt, 1, 8192, parts...) }
	read := []struct {
		name, want string
		reply      []byte
	}{
		{"bad magic", "reply magic 0x1", encode(uint32(1), make([]byte, 28))},
		{"simple reply", "reply magic 0x67446698", encode(magicSimple, uint32(0), uint64(1))},
		{"structured reply", "reply magic 0x668e33ef", encode(magicStructured, chunkFlagDone, chunkNone, uint64(1), uint32(0))},
		{"request", "reply magic 0x21e41c71", extRequest(0, 0, 1, 8192, 4096)},
		{"unknown cookie", "not pending", extChunk(1, chunkNone, 2, 8192)},
		{"unknown flags", "the flags 0x3", extChunk(3, chunkNone, 1, 8192)},
		{"offset of the data", "as one at 8196", extChunk(1, chunkOffsetData, 1, 8196, uint64(8196), "abcd")},
		{"no offset", "as one at 0", extChunk(1, chunkNone, 1, 0)},
		{"far offset", "as one at 18446744073709551615", extChunk(1, chunkNone, 1, math.MaxUint64)},
		{"unknown type", "chunk of type 9", extChunk(1, 9, 1, 8192)},
		{"status for a read", "chunk of type 6", status(uint32(5), uint32(1), uint64(1), uint64(0))},
		{"none with data", "chunk of type 0", extChunk(1, chunkNone, 1, 8192, "x")},
		{"none that is huge", "chunk of type 0", head(chunkNone, math.MaxUint64)},
		{"none without done", "chunk of type 0", extChunk(0, chunkNone, 1, 8192)},
		{"end without data", "before all had come", extChunk(1, chunkNone, 1, 8192)},
		{"before the range", "bytes at 8191", extChunk(1, chunkOffsetData, 1, 8192, uint64(8191), "abc")},
		{"beyond the range", "bytes at 12287", extChunk(1, chunkOffsetData, 1, 8192, uint64(12287), "ab")},
		{"far away", "18446744073709551615", extChunk(1, chunkOffsetData, 1, 8192, uint64(math.MaxUint64), "ab")},
		{"more than all", "18446744073709551607 bytes", encode(magicExtReply, uint16(1), chunkOffsetData, uint64(1), uint64(8192), uint64(math.MaxUint64), uint64(8192))},
		{"32 bits of a length", "4294967296 bytes", encode(magicExtReply, uint16(1), chunkOffsetData, uint64(1), uint64(8192), uint64(1<<32+8), uint64(8192))},
		{"data twice", "twice", append(extChunk(0, chunkOffsetData, 1, 8192, uint64(8200), "abcd"), extChunk(0, chunkOffsetData, 1, 8192, uint64(8203), "e")...)},
		{"short data chunk", "data chunk of 7", head(chunkOffsetData, 7)},
		{"short hole chunk", "hole chunk of 11", head(chunkOffsetHole, 11)},
		{"hole of 64 bits", "hole chunk of 16", extChunk(1, chunkOffsetHole, 1, 8192, uint64(8192), uint64(4096))},
		{"hole too long", "for a read", extChunk(1, chunkOffsetHole, 1, 8192, uint64(8192), uint32(4097))},
		{"short error", "error chunk of 5", head(chunkError, 5)},
		{"huge error", "error chunk of 4294967302", head(chunkError, 1<<32+6)},
		{"hang up in the header", "EOF", extChunk(1, chunkNone, 1, 8192)[:31]},
	}
	maps := []struct {
		name, want string
		reply      []byte
	}{
		{"status of 32 bits", "chunk of type 5", extChunk(1, chunkBlockStatus, 1, 8192, uint32(5), uint32(4096), uint32(0))},
		{"missing", "without the context", extChunk(1, chunkNone, 1, 8192)},
		{"another context", "not negotiated", status(uint32(6), uint32(1), uint64(4096), uint64(0))},
		{"twice", "twice", append(extChunk(0, chunkStatusExt, 1, 8192, uint32(5), uint32(1), uint64(9), uint64(0)), status(uint32(5), uint32(1), uint64(9), uint64(0))...)},
		{"no extents", "status chunk of 8", status(uint32(5), uint32(0))},
		{"odd", "status chunk of 25", status(uint32(5), uint32(1), uint64(9), uint64(0), "x")},
		{"half an extent", "status chunk of 16", status(uint32(5), uint32(1), uint64(9))},
		{"huge", "status chunk of 18446744073709551608", head(chunkStatusExt, math.MaxUint64-7)},
		{"too long", "status chunk of 16777240", head(chunkStatusExt, maxStatusChunk+24)},
		{"counted wrong", "sent 1 extents as 2", status(uint32(5), uint32(2), uint64(9), uint64(0))},
		{"counted far", "sent 1 extents as 4294967295", status(uint32(5), uint32(math.MaxUint32), uint64(9), uint64(0))},
		{"empty extent", "empty extent", status(uint32(5), uint32(1), uint64(0), uint64(0))},
		{"beyond the end", "more extents", status(uint32(5), uint32(2), uint64(math.MaxUint64), uint64(0), uint64(1), uint64(1))},
		{"around the end", "more extents", status(uint32(5), uint32(3), uint64(1<<63), uint64(0), uint64(1<<63), uint64(1), uint64(1), uint64(0))},
	}
	try := func(t *testing.T, want string, reply []byte, ask func(c *Client) error) {
		t.Helper()
		c := dial(t, fakeServer(t, func(w *wire) {
			w.welcomeExtended(1<<20, rwFlags)
			w.read(extRequestSize)
			w.send(reply)
		}), ClientOptions{Contexts: []string{ContextAllocation}})
		if err := ask(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want something of %q", err, want)
		}
		if c.Flush(t.Context()) == nil {
			t.Error("the client goes on")
		}
	}
	noLeaks(t)
	for _, test := range read {
		t.Run("read/"+test.name, func(t *testing.T) {
			try(t, test.want, test.reply, func(c *Client) error { return c.ReadAt(t.Context(), make([]byte, 4096), 8192) })
		})
	}
	for _, test := range maps {
		t.Run("map/"+test.name, func(t *testing.T) {
			try(t, test.want, test.reply, func(c *Client) error {
				_, err := c.Map(t.Context(), ContextAllocation, 8192, 4096)
				return err
			})
		})
	}
}

// A server that takes extended headers keeps to what comes with them.
func TestHostileServerExtendedHandshake(t *testing.T) {
	uri := fakeServer(t, func(w *wire) {
		w.greet()
		w.answer(w.readOption(), repAck)
		w.answer(w.readOption(), repErrUnsup)
	})
	if _, err := Dial(t.Context(), uri, ClientOptions{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err) // and not EXPORT_NAME
	}
	uri = fakeServer(t, func(w *wire) {
		w.greetOption()
		w.answer(optStructuredReply, repErrExtHdrReqd)
		w.answer(w.readOption(), repErrExtHdrReqd)
	})
	if _, err := Dial(t.Context(), uri, ClientOptions{}); err == nil || !strings.Contains(err.Error(), "requires extended headers") {
		t.Error(err)
	}
}

// A server that can tell about one context alone is asked for that one.
func TestExtendedFilter(t *testing.T) {
	c := dial(t, fakeServer(t, func(w *wire) {
		w.t = strictTB{t}
		w.greet()
		w.answer(w.readOption(), repAck)
		w.readOption()
		w.answer(optSetMetaContext, repMetaContext, uint32(5), ContextAllocation)
		w.answer(optSetMetaContext, repMetaContext, uint32(9), dirtyName)
		w.answer(optSetMetaContext, repAck)
		w.readOption()
		w.answer(optGo, repInfo, infoExport, uint64(1<<40), rwFlags|1<<12)
		w.answer(optGo, repAck)
		w.expect(extRequest(1<<5, 7, 1, 4096, 12, uint64(1<<40-4096), uint32(9)))
		w.send(extChunk(1, 6, 1, 4096, uint32(9), uint32(1), uint64(1<<40), uint64(1)))
		w.expect(extRequest(0, 2, 0, 0, 0))
	}), ClientOptions{Contexts: []string{ContextAllocation, dirtyName}})
	if e, err := c.Map(t.Context(), dirtyName, 4096, 1<<40-4096); err != nil || len(e) != 1 || e[0].End() != 1<<40 || e[0].State != blockmap.Dirty {
		t.Error(e, err)
	}
}

// A state of more than 32 bits is that request's trouble and nobody else's.
func TestExtendedState(t *testing.T) {
	c := dial(t, fakeServer(t, func(w *wire) {
		w.welcomeExtended(1<<20, rwFlags)
		w.read(extRequestSize)
		w.send(extChunk(1, chunkStatusExt, 1, 0, uint32(5), uint32(1), uint64(1<<20), uint64(1<<32)))
		w.read(extRequestSize)
		w.send(extChunk(1, chunkNone, 2, 0))
		w.read(extRequestSize)
	}), ClientOptions{Contexts: []string{ContextAllocation}})
	if e, err := c.Map(t.Context(), ContextAllocation, 0, 1<<20); err == nil || !strings.Contains(err.Error(), "0x100000000") {
		t.Error(e, err)
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// Fast zeros are not asked for where the server does not know them.
func TestZeroFastUnsupported(t *testing.T) {
	asked := make(chan byte, 3)
	for _, has := range []uint16{flagHasFlags, flagHasFlags | flagSendFastZero, flagHasFlags | flagSendZeroes} {
		c := dial(t, fakeServer(t, func(w *wire) {
			w.welcomeExtended(1<<20, has)
			asked <- w.read(extRequestSize)[7]
		}), ClientOptions{Contexts: []string{ContextAllocation}})
		if err := c.ZeroFast(t.Context(), 0, 4096, true); !errors.Is(err, errors.ErrUnsupported) || c.CanFastZero() {
			t.Error(has, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if command := <-asked; command != byte(cmdDisc) {
			t.Errorf("the server was asked %d", command)
		}
	}
}
