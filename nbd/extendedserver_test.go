package nbd

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

func TestExtendedHandshake(t *testing.T) {
	path := listen(t, serverOf(t, newMemory(1<<20).export("disk")))
	ask := func(w *wire, opt, rep uint32, parts ...any) {
		w.t.Helper()
		w.option(opt, parts...)
		w.expectReply(opt, rep, nil)
	}
	for _, test := range []struct {
		name string
		talk func(w *wire)
	}{
		{"alone", func(w *wire) { ask(w, optExtendedHeaders, repAck) }},
		{"after structured replies", func(w *wire) {
			ask(w, optStructuredReply, repAck)
			ask(w, optExtendedHeaders, repAck)
		}},
		{"before structured replies", func(w *wire) {
			ask(w, optExtendedHeaders, repAck)
			ask(w, optStructuredReply, repErrExtHdrReqd)
		}},
		{"twice", func(w *wire) {
			ask(w, optExtendedHeaders, repAck)
			ask(w, optExtendedHeaders, repErrInvalid)
		}},
		{"with data", func(w *wire) {
			ask(w, optExtendedHeaders, repErrInvalid, "x")
			ask(w, optExtendedHeaders, repAck)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := connect(t, path)
			w.hello()
			test.talk(w)
			w.option(optSetMetaContext, name("disk"), uint32(1), name(ContextAllocation))
			w.expectReply(optSetMetaContext, repMetaContext, encode(uint32(1), ContextAllocation))
			w.expectReply(optSetMetaContext, repAck, nil)
			w.option(optGo, name("disk"), uint16(0))
			w.expectReply(optGo, repInfo, encode(infoExport, uint64(1<<20), rwFlags|uint16(1<<12)))
			w.expectReply(optGo, repInfo, nil)
			w.expectReply(optGo, repAck, nil)
			w.extended = true
			w.alive()
		})
	}
	t.Run("and EXPORT_NAME", func(t *testing.T) {
		w := connect(t, path)
		w.hello()
		ask(w, optExtendedHeaders, repAck)
		w.option(optExportName, "disk")
		w.expectEnd()
	})
	t.Run("and compact requests", func(t *testing.T) {
		w := connect(t, path)
		w.extended = true
		w.enter("disk", true)
		w.send(magicRequest, uint16(0), cmdFlush, uint64(1), uint64(0), uint32(0), uint32(0))
		w.expectEnd()
	})
	t.Run("and none in a compact session", func(t *testing.T) {
		w := connect(t, path)
		w.enter("disk", true)
		w.send(magicExtRequest, uint16(0), cmdFlush, uint64(1), uint64(0), uint64(0))
		w.expectEnd()
	})
}

// Requests and replies byte by byte, written down from the protocol's text and
// not by way of this package's numbers.
func TestExtendedBytes(t *testing.T) {
	unhex := func(s string) []byte {
		t.Helper()
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	m := newMemory(1 << 20)
	m.WriteAt([]byte("abcd"), 0x2000)
	path := listen(t, serverOf(t, m.export("disk")))
	for _, test := range []struct{ name, request, reply string }{
		{
			"READ",
			"21e41c71 0000 0000 0102030405060708 0000000000002000 0000000000000004",
			"6e8a278c 0001 0001 0102030405060708 0000000000002000 000000000000000c" + "0000000000002000 61626364",
		},
		{
			"READ of nothing",
			"21e41c71 0000 0000 0102030405060708 0000000000002000 0000000000000000",
			"6e8a278c 0001 0000 0102030405060708 0000000000002000 0000000000000000",
		},
		{
			"READ of a hole",
			"21e41c71 0000 0000 0102030405060708 0000000000040000 0000000000040000",
			"6e8a278c 0001 0002 0102030405060708 0000000000040000 000000000000000c" + "0000000000040000 00040000",
		},
		{
			"WRITE, with PAYLOAD_LEN and FUA",
			"21e41c71 0021 0001 a000000000000001 0000000000001000 0000000000000003" + "787978",
			"6e8a278c 0001 0000 a000000000000001 0000000000001000 0000000000000000",
		},
		{
			"WRITE, without PAYLOAD_LEN as qemu sends it",
			"21e41c71 0001 0001 a000000000000001 0000000000001003 0000000000000003" + "787978",
			"6e8a278c 0001 0000 a000000000000001 0000000000001003 0000000000000000",
		},
		{
			"FLUSH",
			"21e41c71 0000 0003 0000000000000002 0000000000000000 0000000000000000",
			"6e8a278c 0001 0000 0000000000000002 0000000000000000 0000000000000000",
		},
		{
			"TRIM",
			"21e41c71 0000 0004 0000000000000003 0000000000010000 0000000000010000",
			"6e8a278c 0001 0000 0000000000000003 0000000000010000 0000000000000000",
		},
		{
			"CACHE",
			"21e41c71 0000 0005 0000000000000003 0000000000010000 0000000000010000",
			"6e8a278c 0001 0000 0000000000000003 0000000000010000 0000000000000000",
		},
		{
			"WRITE_ZEROES, with NO_HOLE",
			"21e41c71 0002 0006 0000000000000004 0000000000010000 0000000000010000",
			"6e8a278c 0001 0000 0000000000000004 0000000000010000 0000000000000000",
		},
		{
			"BLOCK_STATUS", // of both contexts: each with its ID, the number of extents, and those
			"21e41c71 0000 0007 0000000000000005 0000000000001000 0000000000003000",
			"6e8a278c 0000 0006 0000000000000005 0000000000001000 0000000000000028" + "00000001 00000002" +
				"0000000000002000 0000000000000000" + "0000000000001000 0000000000000003" +
				"6e8a278c 0001 0006 0000000000000005 0000000000001000 0000000000000028" + "00000002 00000002" +
				"0000000000002000 0000000000000001" + "0000000000001000 0000000000000000",
		},
		{
			"BLOCK_STATUS, with REQ_ONE",
			"21e41c71 0008 0007 0000000000000006 0000000000001000 0000000000003000",
			"6e8a278c 0000 0006 0000000000000006 0000000000001000 0000000000000018" + "00000001 00000001" + "0000000000002000 0000000000000000" +
				"6e8a278c 0001 0006 0000000000000006 0000000000001000 0000000000000018" + "00000002 00000001" + "0000000000002000 0000000000000001",
		},
		{
			"BLOCK_STATUS, with a payload that asks about the second context",
			"21e41c71 0020 0007 0000000000000007 0000000000001000 000000000000000c" + "0000000000003000 00000002",
			"6e8a278c 0001 0006 0000000000000007 0000000000001000 0000000000000028" + "00000002 00000002" +
				"0000000000002000 0000000000000001" + "0000000000001000 0000000000000000",
		},
		{
			"READ beyond the end", // EINVAL, 28 bytes of text
			"21e41c71 0000 0000 0000000000000008 0000000000100000 0000000000000001",
			"6e8a278c 0001 8001 0000000000000008 0000000000100000 0000000000000022" + "00000016 001c" + hex.EncodeToString([]byte("beyond the end of the export")),
		},
		{
			"WRITE_ZEROES of 2^63 bytes", // ENOSPC
			"21e41c71 0000 0006 0000000000000009 0000000000000001 8000000000000000",
			"6e8a278c 0001 8001 0000000000000009 0000000000000001 0000000000000022" + "0000001c 001c" + hex.EncodeToString([]byte("beyond the end of the export")),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := connect(t, path)
			w.extended = true
			w.enter("disk", true, ContextAllocation, dirtyName)
			w.send(unhex(test.request))
			w.expect(unhex(test.reply))
			w.alive()
			w.send(unhex("21e41c71 0000 0002 0000000000000000 0000000000000000 0000000000000000")) // DISC
			w.expectEnd()
		})
	}
}

// A payload that a request must not have, or that is not well formed, is taken out
// of the way, and only one that is too large costs the connection.
func TestExtendedPayloads(t *testing.T) {
	m := newMemory(1 << 20)
	path := listen(t, serverOf(t, m.export("disk")))
	enter := func(t *testing.T) *wire {
		t.Helper()
		w := connect(t, path)
		w.extended = true
		w.enter("disk", true, ContextAllocation, dirtyName)
		return w
	}
	for _, test := range []struct {
		name    string
		flags   uint16
		command uint16
		length  uint64
		payload []byte
	}{
		{"READ", cmdFlagPayloadLen, cmdRead, 512, make([]byte, 512)},
		{"FLUSH", cmdFlagPayloadLen, cmdFlush, 3, []byte("abc")},
		{"TRIM", cmdFlagPayloadLen, cmdTrim, 512, make([]byte, 512)},
		{"CACHE", cmdFlagPayloadLen, cmdCache, 512, make([]byte, 512)},
		{"WRITE_ZEROES, 1 MiB", cmdFlagPayloadLen, cmdWriteZeroes, 1 << 20, make([]byte, 1<<20)},
		{"unknown command", cmdFlagPayloadLen, 99, 7, []byte("unknown")},
		{"unknown flag of a WRITE", cmdFlagPayloadLen | 1<<9, cmdWrite, 512, make([]byte, 512)},
		{"BLOCK_STATUS, empty", cmdFlagPayloadLen, cmdBlockStatus, 0, nil},
		{"BLOCK_STATUS, short", cmdFlagPayloadLen, cmdBlockStatus, 7, make([]byte, 7)},
		{"BLOCK_STATUS, odd", cmdFlagPayloadLen, cmdBlockStatus, 14, encode(uint64(4096), uint32(1), uint16(0))},
		{"BLOCK_STATUS of no context", cmdFlagPayloadLen, cmdBlockStatus, 8, encode(uint64(4096))},
		{"BLOCK_STATUS of context 0", cmdFlagPayloadLen, cmdBlockStatus, 12, encode(uint64(4096), uint32(0))},
		{"BLOCK_STATUS of an unknown context", cmdFlagPayloadLen, cmdBlockStatus, 16, encode(uint64(4096), uint32(1), uint32(3))},
		{"BLOCK_STATUS of context 2^32-1", cmdFlagPayloadLen, cmdBlockStatus, 12, encode(uint64(4096), uint32(math.MaxUint32))},
		{"BLOCK_STATUS of one context twice", cmdFlagPayloadLen, cmdBlockStatus, 16, encode(uint64(4096), uint32(2), uint32(2))},
		{"BLOCK_STATUS of more contexts than there are", cmdFlagPayloadLen, cmdBlockStatus, 20, encode(uint64(4096), uint32(1), uint32(2), uint32(1))},
		{"BLOCK_STATUS of 0 bytes", cmdFlagPayloadLen, cmdBlockStatus, 12, encode(uint64(0), uint32(1))},
		{"BLOCK_STATUS beyond the end", cmdFlagPayloadLen, cmdBlockStatus, 12, encode(uint64(math.MaxUint64), uint32(1))},
		{"BLOCK_STATUS with 64 MiB", cmdFlagPayloadLen, cmdBlockStatus, maxPayload, make([]byte, maxPayload)},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := enter(t)
			w.requestExtended(test.flags, test.command, 1, 0, test.length, test.payload)
			w.expectError(1, EINVAL)
			w.alive()
		})
	}
	for _, length := range []uint64{maxPayload + 1, 1 << 32, 1 << 63, math.MaxUint64} {
		for _, command := range []uint16{cmdWrite, cmdRead, cmdBlockStatus, 99} {
			w := enter(t)
			w.requestExtended(cmdFlagPayloadLen, command, 1, 0, length)
			w.expectEnd()
		}
		w := enter(t)
		w.requestExtended(0, cmdWrite, 1, 0, length)
		w.expectEnd()
	}
	if m.isDirty() {
		t.Error("something was written")
	}
	w := enter(t)
	w.requestExtended(0, cmdRead, 1, 0, math.MaxUint64)
	w.expectError(1, EINVAL)
	w.requestExtended(cmdFlagPayloadLen, cmdBlockStatus, 2, 0, 16, uint64(4096), uint32(2), uint32(1)) // in that order
	w.expectChunk(0, chunkBlockStatus, 2, uint32(2), uint32(4096), uint32(0))
	w.expectChunk(1, chunkBlockStatus, 2, uint32(1), uint32(4096), uint32(3))
}

// vast is a device of many TiB that keeps account of what it is asked to do.
type vast struct {
	*memory
	size int64

	mu    sync.Mutex
	calls []blockmap.Extent
	block func(nth int) // called at each change
}

func (d *vast) Size() int64 { return d.size }

func (d *vast) change(off, n int64) error {
	d.mu.Lock()
	d.calls = append(d.calls, blockmap.Extent{Offset: off, Length: n})
	nth := len(d.calls)
	d.mu.Unlock()
	if d.block != nil {
		d.block(nth)
	}
	return nil
}

func (d *vast) Trim(off, n int64) error { return d.change(off, n) }

func (d *vast) Zero(off, n int64, _ bool) error { return d.change(off, n) }

// Map calls the odd ones of every 8 GiB holes, and in the dirty bitmap every 1 GiB
// of them dirty.
func (d *vast) Map(name string, off, n int64) ([]blockmap.Extent, error) {
	unit := int64(8 << 30)
	if name == dirtyName {
		unit = 1 << 30
	}
	var out []blockmap.Extent
	for at := off; at < off+n; {
		next := (at/unit + 1) * unit
		out = append(out, blockmap.Extent{Offset: at, Length: next - at, State: blockmap.State(at / unit % 2 * 3)}) // goes beyond the range
		at = next
	}
	return out, nil
}

func newVast(t *testing.T) (*vast, *wire) {
	t.Helper()
	d := &vast{memory: newMemory(0), size: 16 << 40}
	e := d.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
	w := connect(t, listen(t, serverOf(t, e)))
	w.extended = true
	w.enter("disk", true, ContextAllocation, dirtyName)
	return d, w
}

// A change of 16 TiB comes to the device in pieces that are all there, once, in
// order, and aligned.
func TestExtendedVastChange(t *testing.T) {
	for _, command := range []uint16{cmdTrim, cmdWriteZeroes} {
		for _, off := range []uint64{0, 12345} {
			d, w := newVast(t)
			w.requestExtended(0, command, 1, off, uint64(d.size)-off)
			w.expectSimple(1, 0)
			at := int64(off)
			for _, c := range d.calls {
				if c.Offset != at || c.Length <= 0 || c.Length > changePiece || c.End()%changePiece != 0 {
					t.Fatalf("piece %v at %d", c, at)
				}
				at = c.End()
			}
			if at != d.size {
				t.Errorf("%d bytes changed, want %d", at, d.size)
			}
		}
	}
}

// A large change does not hold up others. It is done when its client says goodbye,
// and given up when that is just gone.
func TestExtendedVastGoodbye(t *testing.T) {
	for _, goodbye := range []bool{false, true} {
		t.Run(fmt.Sprintf("goodbye=%v", goodbye), func(t *testing.T) {
			d, w := newVast(t)
			reached, release := make(chan struct{}), make(chan struct{})
			d.block = func(nth int) {
				if nth == 3 {
					close(reached)
					<-release
				} else if nth > 3 && !goodbye {
					time.Sleep(time.Millisecond) // all of it would take minutes
				}
			}
			w.requestExtended(0, cmdWriteZeroes, 1, 0, uint64(d.size))
			<-reached
			w.alive()
			if goodbye {
				w.request(0, cmdDisc, 0, 0, 0)
				close(release)
				w.expectChunk(chunkFlagDone, chunkNone, 1)
				w.expectEnd()
			} else {
				closeQuietly(w.nc)
				close(release)
			}
			waitFor(t, func() bool { return d.closed.Load() == 1 })
			if all := int(d.size / changePiece); (len(d.calls) == all) != goodbye {
				t.Errorf("%d pieces of %d", len(d.calls), all)
			}
		})
	}
}

// The map of 16 TiB is one answer, with lengths above 32 bits.
func TestExtendedVastStatus(t *testing.T) {
	d, w := newVast(t)
	var allocation, dirty []byte
	for i := range uint64(16 << 40 / (8 << 30)) {
		allocation = append(allocation, encode(uint64(8<<30), i%2*3)...)
	}
	for i := range uint64(16 << 40 / (1 << 30)) {
		dirty = append(dirty, encode(uint64(1<<30), i%2*3)...)
	}
	w.requestExtended(0, cmdBlockStatus, 1, 0, uint64(d.size))
	w.expect(magicExtReply, uint16(0), chunkStatusExt, uint64(1), uint64(0), uint64(8+len(allocation)), uint32(1), uint32(len(allocation)/16), allocation)
	w.expect(magicExtReply, uint16(1), chunkStatusExt, uint64(1), uint64(0), uint64(8+len(dirty)), uint32(2), uint32(len(dirty)/16), dirty)
	w.requestExtended(cmdFlagReqOne, cmdBlockStatus, 2, 5<<30, 1<<40)
	w.expect(magicExtReply, uint16(0), chunkStatusExt, uint64(2), uint64(5<<30), uint64(24), uint32(1), uint32(1), uint64(3<<30), uint64(0))
	w.expect(magicExtReply, uint16(1), chunkStatusExt, uint64(2), uint64(5<<30), uint64(24), uint32(2), uint32(1), uint64(1<<30), uint64(3))
	w.requestExtended(0, cmdBlockStatus, 3, 1, 5<<30)
	w.expect(magicExtReply, uint16(0), chunkStatusExt, uint64(3), uint64(1), uint64(24), uint32(1), uint32(1), uint64(5<<30), uint64(0))
	w.read(extReplySize + 8 + 6*16)
	w.alive()
}

// Large requests and many of them are served with extended headers as without.
func TestExtendedLarge(t *testing.T) {
	for _, kind := range kinds[:3] {
		t.Run(kind.name, func(t *testing.T) {
			d, m := kind.device(t, maxPayload)
			e := m.export("disk")
			e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
			w := connect(t, listen(t, serverOf(t, e)))
			w.extended = true
			w.enter("disk", true)
			w.large()
		})
	}
}

// What was negotiated for one export name is not there for another, with either
// kind of header.
func TestExtendedOtherExport(t *testing.T) {
	w := connect(t, listen(t, serverOf(t, newMemory(1<<20).export("disk"), newMemory(1<<20).export("other"))))
	w.extended = true
	w.hello()
	w.option(optExtendedHeaders)
	w.expectReply(optExtendedHeaders, repAck, nil)
	w.option(optSetMetaContext, name("disk"), uint32(1), name(ContextAllocation))
	w.expectReply(optSetMetaContext, repMetaContext, nil)
	w.expectReply(optSetMetaContext, repAck, nil)
	w.option(optGo, name("other"), uint16(0))
	w.expectReply(optGo, repInfo, nil)
	w.expectReply(optGo, repInfo, nil)
	w.expectReply(optGo, repAck, nil)
	w.requestExtended(cmdFlagPayloadLen, cmdBlockStatus, 1, 0, 12, uint64(4096), uint32(1))
	w.expectError(1, EINVAL)
	w.request(0, cmdBlockStatus, 2, 0, 4096)
	w.expectError(2, EINVAL)
	w.request(0, cmdWrite, 3, 0, 3, bytes.Repeat([]byte{1}, 3))
	w.expectSimple(3, 0)
}
