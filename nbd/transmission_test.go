package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
)

func TestTransmission(t *testing.T) {
	const size = 1<<20 + 512
	pattern := bytes.Repeat([]byte{0xca, 0x17}, 4096)
	tests := []struct {
		name string
		talk func(w *wire, m *memory)
	}{
		{"read", func(w *wire, m *memory) {
			copy(m.data[100:], pattern)
			w.request(0, cmdRead, 1, 100, 64)
			w.expectChunk(1, chunkOffsetData, 1, uint64(100), pattern[:64])
			w.request(cmdFlagDF, cmdRead, 2, 100, 64)
			w.expectChunk(1, chunkOffsetData, 2, uint64(100), pattern[:64])
			w.request(cmdFlagFUA, cmdRead, 3, 100, 64)
			w.expectChunk(1, chunkOffsetData, 3, uint64(100), pattern[:64])
			w.request(0, cmdRead, 4, size, 0)
			w.expectChunk(1, chunkNone, 4)
		}},
		{"read of a hole", func(w *wire, m *memory) {
			w.request(0, cmdRead, 1, 0, holeProbe)
			w.expectChunk(1, chunkOffsetHole, 1, uint64(0), uint32(holeProbe))
			m.WriteAt(pattern[:memBlock], 128<<10)
			w.request(cmdFlagDF, cmdRead, 2, 0, holeProbe) // no longer one hole, and one chunk it must be
			w.expectChunk(1, chunkOffsetData, 2, uint64(0), m.content(0, holeProbe))
			w.request(0, cmdRead, 3, 0, holeProbe)
			w.expectChunk(0, chunkOffsetHole, 3, uint64(0), uint32(128<<10))
			w.expectChunk(0, chunkOffsetData, 3, uint64(128<<10), pattern[:memBlock])
			w.expectChunk(1, chunkOffsetHole, 3, uint64(132<<10), uint32(124<<10))
			m.failWith(func(op string, _, _ int64) error { // a map that fails costs nothing but speed
				if op == "map" {
					return errors.New("no map")
				}
				return nil
			})
			w.request(0, cmdRead, 4, 0, holeProbe)
			w.expectChunk(1, chunkOffsetData, 4, uint64(0), m.content(0, holeProbe))
		}},
		{"write", func(w *wire, m *memory) {
			w.request(0, cmdWrite, 1, 512, uint32(len(pattern)), pattern)
			w.expectSimple(1, 0)
			if !bytes.Equal(m.content(512, len(pattern)), pattern) || m.flush.Load() != 0 {
				w.t.Error("not written, or flushed")
			}
			w.request(cmdFlagFUA, cmdWrite, 2, size-2, 2, "ok")
			w.expectSimple(2, 0)
			if string(m.content(size-2, 2)) != "ok" || m.flush.Load() != 1 {
				w.t.Error("not written, or not flushed once")
			}
			w.request(0, cmdFlush, 3, 0, 0)
			w.expectSimple(3, 0)
			w.request(0, cmdCache, 4, 0, size)
			w.expectSimple(4, 0)
		}},
		{"zeroes and trim", func(w *wire, m *memory) {
			m.WriteAt(bytes.Repeat(pattern, 8), 0)
			w.request(cmdFlagNoHole|cmdFlagFUA, cmdWriteZeroes, 1, 1000, 9000)
			w.expectSimple(1, 0)
			w.request(cmdFlagFUA, cmdTrim, 2, 16<<10, 4096)
			w.expectSimple(2, 0)
			if !bytes.Equal(m.content(1000, 9000), make([]byte, 9000)) || m.content(999, 1)[0] == 0 || m.content(10000, 1)[0] == 0 || m.content(16<<10, 1)[0] != 0 {
				w.t.Error("not zeroed exactly")
			}
			if m.flush.Load() != 2 {
				w.t.Errorf("%d flushes, want 2", m.flush.Load())
			}
		}},
		{"fast zeroes of a device that has none", func(w *wire, m *memory) {
			m.WriteAt(pattern, 0)
			w.request(cmdFlagFastZero, cmdWriteZeroes, 1, 0, 512)
			w.expectError(1, ENOTSUP)
			w.request(cmdFlagFastZero|cmdFlagFUA|cmdFlagNoHole, cmdWriteZeroes, 2, 0, size)
			w.expectError(2, ENOTSUP)
			w.request(cmdFlagFastZero, cmdWriteZeroes, 3, size, 1)
			w.expectError(3, ENOSPC)
			if !bytes.Equal(m.content(0, len(pattern)), pattern) {
				w.t.Error("zeroed all the same")
			}
		}},
		{"block status", func(w *wire, m *memory) {
			m.WriteAt(pattern[:memBlock], 2*memBlock)
			m.Trim(4*memBlock, memBlock)
			w.request(0, cmdBlockStatus, 1, memBlock, 8*memBlock)
			w.expectChunk(0, chunkBlockStatus, 1, uint32(1), uint32(memBlock), uint32(3), uint32(memBlock), uint32(0), uint32(6*memBlock), uint32(3))
			w.expectChunk(1, chunkBlockStatus, 1, uint32(2), uint32(memBlock), uint32(0), uint32(memBlock), uint32(1),
				uint32(memBlock), uint32(0), uint32(memBlock), uint32(1), uint32(4*memBlock), uint32(0))
			w.request(cmdFlagReqOne, cmdBlockStatus, 2, 3*memBlock, size-3*memBlock)
			w.expectChunk(0, chunkBlockStatus, 2, uint32(1), uint32(size-3*memBlock), uint32(3))
			w.expectChunk(1, chunkBlockStatus, 2, uint32(2), uint32(memBlock), uint32(0))
			w.request(0, cmdBlockStatus, 3, 0, 0)
			w.expectError(3, EINVAL)
		}},
		{"beyond the end", func(w *wire, m *memory) {
			before := m.content(0, size)
			for _, r := range []struct {
				command uint16
				offset  uint64
				length  uint32
				want    Error
			}{
				{cmdRead, size, 1, EINVAL},
				{cmdRead, size - 1, 2, EINVAL},
				{cmdRead, math.MaxUint64, 2, EINVAL},
				{cmdRead, math.MaxUint64 - 1, math.MaxUint32, EINVAL},
				{cmdRead, 1 << 63, 1, EINVAL},
				{cmdRead, 0, math.MaxUint32, EINVAL},
				{cmdTrim, 1, size, EINVAL},
				{cmdWriteZeroes, size - 1, 2, ENOSPC},
				{cmdWriteZeroes, math.MaxUint64, math.MaxUint32, ENOSPC},
				{cmdBlockStatus, size, 1, EINVAL},
				{cmdCache, size, 1, EINVAL},
			} {
				w.request(0, r.command, 7, r.offset, r.length)
				w.expectError(7, r.want)
			}
			w.request(0, cmdWrite, 1, size-1, 2, "xx")
			w.expectError(1, ENOSPC)
			w.request(0, cmdWrite, 2, math.MaxUint64-1, 4, "xxxx")
			w.expectError(2, ENOSPC)
			if !bytes.Equal(m.content(0, size), before) {
				w.t.Error("something was written")
			}
		}},
		{"unknown flags and commands", func(w *wire, _ *memory) {
			w.request(cmdFlagFastZero, cmdTrim, 1, 0, 512)
			w.expectError(1, EINVAL)
			w.request(1<<15, cmdWrite, 2, 0, 4, "drop")
			w.expectError(2, EINVAL)
			w.request(cmdFlagDF, cmdWrite, 3, 0, 4, "drop")
			w.expectError(3, EINVAL)
			w.request(0, 8, 4, 0, 1<<30) // RESIZE: a length, and no payload
			w.expectError(4, EINVAL)
			w.request(0, 0xffff, 5, 0, 512)
			w.expectError(5, EINVAL)
			w.request(0, cmdFlush, 6, 4096, 0)
			w.expectError(6, EINVAL)
		}},
		{"errors of the device", func(w *wire, m *memory) {
			for i, c := range []struct {
				err  error
				want Error
			}{
				{syscall.EDQUOT, ENOSPC},
				{fmt.Errorf("write: %w", syscall.EFBIG), ENOSPC},
				{&fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, ENOSPC},
				{syscall.EROFS, EPERM},
				{fs.ErrPermission, EPERM},
				{syscall.ENOMEM, ENOMEM},
				{syscall.ENOTSUP, EINVAL},
				{syscall.ENXIO, EIO},
				{ESHUTDOWN, ESHUTDOWN},
				{Error(9999), EIO},
				{errors.New(strings.Repeat("ä", maxText)), EIO},
			} {
				m.failWith(func(string, int64, int64) error { return c.err })
				cookie := uint64(10 * i)
				w.request(0, cmdRead, cookie, 0, 512)
				w.expectError(cookie, c.want)
				w.request(0, cmdWrite, cookie+1, 0, 2, "xx")
				w.expectError(cookie+1, c.want)
				w.request(0, cmdFlush, cookie+2, 0, 0)
				w.expectError(cookie+2, c.want)
				w.request(0, cmdTrim, cookie+3, 0, 512)
				w.expectError(cookie+3, c.want)
				w.request(0, cmdWriteZeroes, cookie+4, 0, 512)
				w.expectError(cookie+4, c.want)
				w.request(0, cmdBlockStatus, cookie+5, 0, 512)
				w.expectError(cookie+5, c.want)
			}
			m.failWith(nil)
		}},
		{"a write too large", func(w *wire, m *memory) {
			if w.extended {
				return // the protocol wants such a client to be disconnected
			}
			w.request(0, cmdWrite, 1, 0, 65<<20)
			for range 65 {
				w.send(bytes.Repeat([]byte{1}, 1<<20))
			}
			w.expectError(1, ENOSPC)
			if m.content(0, 1)[0] != 0 {
				w.t.Error("written")
			}
		}},
	}
	for _, test := range tests {
		for _, extended := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, extended=%v", test.name, extended), func(t *testing.T) {
				m := newMemory(size)
				w := connect(t, listen(t, serverOf(t, m.export("disk"))))
				w.extended = extended
				w.enter("disk", true, ContextAllocation, dirtyName)
				test.talk(w, m)
				w.alive()
			})
		}
	}
}

// hasty is a device whose fast zeros a test decides about.
type hasty struct {
	*memory
	fast func(off, n int64, punch bool) error
}

func (h hasty) ZeroFast(off, n int64, punch bool) error { return h.fast(off, n, punch) }

func TestTransmissionFastZero(t *testing.T) {
	m := newMemory(1 << 20)
	var decide func(punch bool) error
	e := m.export("disk")
	e.Open = func(context.Context, Peer) (Device, error) {
		return hasty{m, func(off, n int64, punch bool) error {
			if err := decide(punch); err != nil {
				return err
			}
			return m.Zero(off, n, punch)
		}}, nil
	}
	w := connect(t, listen(t, serverOf(t, e)))
	w.enter("disk", true)
	m.WriteAt([]byte("abcdefgh"), 0)
	punched := false
	decide = func(punch bool) error { punched = punch; return nil }
	w.request(cmdFlagFastZero, cmdWriteZeroes, 1, 0, 2)
	w.expectSimple(1, 0)
	if !punched {
		t.Error("space may not be freed, though the client does not mind")
	}
	w.request(cmdFlagFastZero|cmdFlagNoHole, cmdWriteZeroes, 2, 2, 2)
	w.expectSimple(2, 0)
	if got := string(m.content(0, 8)); punched || got != "\x00\x00\x00\x00efgh" {
		t.Errorf("punched %v, content %q", punched, got)
	}
	for _, c := range []struct {
		err  error
		want Error
	}{
		{errors.ErrUnsupported, ENOTSUP},
		{fmt.Errorf("fallocate: %w", syscall.EOPNOTSUPP), ENOTSUP},
		{syscall.ENOSYS, ENOTSUP},
		{syscall.ENOSPC, ENOSPC},
		{syscall.EIO, EIO},
	} {
		decide = func(bool) error { return c.err }
		w.request(cmdFlagFastZero, cmdWriteZeroes, 3, 0, 8)
		w.expectError(3, c.want)
		w.request(0, cmdWriteZeroes, 4, 0, 2) // has nothing to do with it
		w.expectSimple(4, 0)
	}
	w.alive()
}

func TestTransmissionSimple(t *testing.T) {
	m := newMemory(4 << 20)
	for i := range m.data {
		m.data[i] = byte(i >> 8)
	}
	w := connect(t, listen(t, serverOf(t, m.export("disk"))))
	w.enter("disk", false)
	w.request(0, cmdRead, 1, 256, 3<<20)
	w.expect(magicSimple, uint32(0), uint64(1), m.data[256:256+3<<20])
	w.request(0, cmdRead, 2, 4<<20, 1)
	w.expectSimple(2, EINVAL)
	w.request(cmdFlagDF, cmdRead, 3, 0, 1)
	w.expectSimple(3, EINVAL)
	w.request(0, cmdBlockStatus, 4, 0, 1)
	w.expectSimple(4, EINVAL)
	m.failWith(func(string, int64, int64) error { return syscall.EIO })
	w.request(0, cmdRead, 5, 0, 2<<20)
	w.expectSimple(5, EIO) // before any payload was promised
	w.alive2(m)
}

// alive2 is alive for a device that was told to fail.
func (w *wire) alive2(m *memory) {
	w.t.Helper()
	m.failWith(nil)
	w.alive()
}

// Without memory for all of a large simple read its end may fail, and then the
// client must not take what it got for the whole.
func TestTransmissionStreamedRead(t *testing.T) {
	m := newMemory(4 << 20)
	s := serverOf(t, m.export("disk"))
	s.memory.limit = 1
	w := connect(t, listen(t, s))
	w.enter("disk", false)
	w.request(0, cmdRead, 1, 0, 4<<20)
	w.expect(magicSimple, uint32(0), uint64(1), m.content(0, 4<<20))
	m.failWith(func(_ string, off, _ int64) error {
		if off >= 2<<20 {
			return syscall.EIO
		}
		return nil
	})
	w.request(0, cmdRead, 2, 0, 4<<20)
	w.expect(magicSimple, uint32(0), uint64(2), m.content(0, 2<<20))
	w.expectEnd()

	m.failWith(nil)
	w = connect(t, listen(t, s))
	w.enter("disk", true)
	w.request(cmdFlagDF, cmdRead, 3, 0, 4<<20)
	w.expectChunk(1, chunkOffsetHole, 3, uint64(0), uint32(4<<20))
	m.WriteAt([]byte{1}, 0)
	w.request(cmdFlagDF, cmdRead, 4, 0, 4<<20)
	w.expectError(4, EOVERFLOW)
	w.alive()
}

func TestTransmissionReadOnly(t *testing.T) {
	m := newMemory(1 << 20)
	e := m.export("disk")
	e.ReadOnly = true
	w := connect(t, listen(t, serverOf(t, e)))
	w.enter("disk", true)
	w.request(0, cmdWrite, 1, 0, 300<<10, make([]byte, 300<<10))
	w.expectError(1, EPERM)
	w.request(0, cmdTrim, 2, 0, 512)
	w.expectError(2, EPERM)
	w.request(cmdFlagFUA, cmdWriteZeroes, 3, 0, 512)
	w.expectError(3, EPERM)
	if m.isDirty() {
		t.Error("something was written")
	}
	w.alive()
}

// A device that lies about its map cannot make the server lie.
func TestTransmissionBadMap(t *testing.T) {
	for _, bad := range [][]blockmap.Extent{
		nil,
		{{Offset: 1, Length: 10}},
		{{Offset: 0, Length: 0}},
		{{Offset: 0, Length: 10}, {Offset: 11, Length: 10}},
		{{Offset: 0, Length: -1}},
	} {
		m := newMemory(1 << 20)
		e := m.export("disk")
		e.Open = func(context.Context, Peer) (Device, error) { return badMap{m, bad}, nil }
		w := connect(t, listen(t, serverOf(t, e)))
		w.enter("disk", true, ContextAllocation)
		w.request(0, cmdBlockStatus, 1, 0, 4096)
		w.expectError(1, EIO)
		w.alive()
	}
}

type badMap struct {
	*memory
	extents []blockmap.Extent
}

func (m badMap) Map(string, int64, int64) ([]blockmap.Extent, error) { return m.extents, nil }

// Slow requests do not hold up others, and at least 64 are in flight.
func TestTransmissionInFlight(t *testing.T) {
	m := newMemory(1 << 20)
	release := make(chan struct{})
	reached := make(chan struct{}, 100)
	m.failWith(func(op string, off, _ int64) error {
		if op == "read" && off == 0 {
			reached <- struct{}{}
			<-release
		}
		return nil
	})
	w := connect(t, listen(t, serverOf(t, m.export("disk"))))
	w.enter("disk", false)
	for i := range maxInFlight - 1 {
		w.request(0, cmdRead, uint64(i), 0, 1)
	}
	for range maxInFlight - 1 {
		<-reached
	}
	w.request(0, cmdRead, 1000, 4096, 1)
	w.expect(magicSimple, uint32(0), uint64(1000), "\x00")
	close(release)
	seen := map[uint64]bool{}
	for range maxInFlight - 1 {
		w.expect(magicSimple, uint32(0))
		seen[binary.BigEndian.Uint64(w.read(8))] = true
		w.read(1)
	}
	if len(seen) != maxInFlight-1 {
		t.Errorf("%d different replies, want %d", len(seen), maxInFlight-1)
	}
}

// DISC waits for what is in flight; the device is closed once, after that.
func TestTransmissionDisconnect(t *testing.T) {
	m := newMemory(1 << 20)
	release, reached := make(chan struct{}), make(chan struct{})
	m.failWith(func(op string, _, _ int64) error {
		if op == "flush" {
			close(reached)
			<-release
			if m.closed.Load() != 0 {
				return errors.New("closed before the last request")
			}
		}
		return nil
	})
	w := connect(t, listen(t, serverOf(t, m.export("disk"))))
	w.enter("disk", false)
	w.request(0, cmdFlush, 1, 0, 0)
	w.request(0, cmdDisc, 2, 0, 0)
	<-reached
	close(release)
	w.expectSimple(1, 0)
	w.expectEnd()
	if m.closed.Load() != 1 {
		t.Errorf("closed %d times", m.closed.Load())
	}
}

// The end of Serve does not wait for clients, but for their requests.
func TestServeStops(t *testing.T) {
	m := newMemory(64 << 20)
	m.WriteAt(bytes.Repeat([]byte{1}, 64<<20), 0)
	path, l := socket(t)
	stop := serveOn(t, serverOf(t, m.export("disk")), l)
	connect(t, path).hello()
	w := connect(t, path)
	w.enter("disk", true)
	stopUnread(w, m, stop)
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("the socket still takes connections")
	}
}

// stopUnread stops a server while the one client that is in never takes the replies to
// what it asks for.
func stopUnread(w *wire, m *memory, stop func()) {
	w.t.Helper()
	for i := range 4 {
		w.request(0, cmdRead, uint64(i), 0, 32<<20)
	}
	w.read(1)
	stop()
	if m.opened.Load() != 1 || m.closed.Load() != 1 {
		w.t.Errorf("opened %d times, closed %d times", m.opened.Load(), m.closed.Load())
	}
}

// A connection that is no kernel socket is served all the same.
func TestServePipe(t *testing.T) {
	m := newMemory(1 << 20)
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		serverOf(t, m.export("disk")).ServeConn(t.Context(), a)
		close(done)
	}()
	w := &wire{t: t, nc: b}
	w.enter("disk", true)
	w.request(0, cmdWrite, 1, 0, 200<<10, bytes.Repeat([]byte{9}, 200<<10))
	w.expectSimple(1, 0)
	w.request(0, cmdRead, 2, 0, 200<<10)
	w.expectChunk(1, chunkOffsetData, 2, uint64(0), m.content(0, 200<<10))
	w.request(0, cmdDisc, 3, 0, 0)
	<-done
}

func TestCounters(t *testing.T) {
	m := newMemory(1 << 20)
	e := m.export("disk")
	e.Counters = new(Counters)
	w := connect(t, listen(t, serverOf(t, e)))
	w.enter("disk", true)
	w.request(0, cmdRead, 1, 0, 10)
	w.read(chunkHeaderSize + 8 + 10)
	w.request(cmdFlagFUA, cmdWrite, 2, 0, 3, "abc")
	w.expectSimple(2, 0)
	w.request(0, cmdTrim, 3, 0, 7)
	w.expectSimple(3, 0)
	w.request(0, cmdRead, 4, 1<<20, 1)
	w.expectError(4, EINVAL)
	w.alive()
	k := e.Counters
	if n := k.Connections.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
	w.request(0, cmdDisc, 5, 0, 0)
	w.expectEnd() // a deferred request is counted behind its reply
	got := []int64{k.Connections.Load(), k.Reads.Load(), k.ReadBytes.Load(), k.Writes.Load(), k.WriteBytes.Load(), k.Flushes.Load(), k.Trims.Load(), k.TrimBytes.Load(), k.Failed.Load()}
	want := []int64{0, 1, 10, 1, 3, 2, 1, 7, 1}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
}
