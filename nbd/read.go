package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

// read answers READ: at once if the bytes are there for the taking, else
// deferred. What is a hole in the file is not in the page cache, so it is the
// deferred path that looks for holes, and the fast one need not ask.
func (t *transmission) read(r request) error {
	n := int(r.size())
	if t.readsInline(n) {
		f, _ := t.file.DataFile()
		done, err := false, error(nil)
		start := t.stopwatch()
		switch {
		case n <= largeRead:
			done, err = t.readCached(r, int(f.Fd()))
		case t.cached(r, int(f.Fd())):
			done, err = t.readSpliced(r, int(f.Fd()))
		}
		if !start.IsZero() {
			t.reads.took(time.Since(start), n)
		}
		if done || err != nil {
			return err
		}
	}
	return t.deferred(bufferMemory(int(min(r.size(), t.piece(r)))), func() { t.readDeferred(r) })
}

// readsInline reports whether the loop tries to read n bytes, a large range only by
// splice. Where the file system cannot tell whether that would wait, it does until it
// has waited.
func (t *transmission) readsInline(n int) bool {
	if t.file == nil {
		return false
	}
	if _, splice := t.file.DataFile(); n > largeRead && (!splice || t.raw == nil) {
		return false
	}
	return t.nowait || !t.reads.lost()
}

// stopwatch returns the time, if reading may have to wait.
func (t *transmission) stopwatch() time.Time {
	if t.nowait {
		return time.Time{}
	}
	return time.Now()
}

// single reports whether the reply must be in one piece.
func (t *transmission) single(r request) bool { return !t.structured || r.flags&cmdFlagDF != 0 }

// readCached reads straight into the reply what the page cache holds. Without
// done nothing has happened, and the reading is still to do.
func (t *transmission) readCached(r request, fd int) (done bool, err error) {
	n := int(r.size())
	o := &t.out
	o.mu.Lock()
	defer o.mu.Unlock()
	base := len(o.buf)
	o.buf = slices.Grow(o.buf, headRoom+n)
	b := t.appendHead(o.buf, r, true, r.offset, n)
	b = b[:len(b)+n]
	if t.peek(fd, b[len(b)-n:], r.start()) != n {
		o.buf = o.buf[:base]
		return false, nil
	}
	o.buf = b
	t.counters.Reads.Add(1)
	t.counters.ReadBytes.Add(int64(n))
	return true, o.settle(false)
}

// cached guesses from the ends of a range whether reading it would wait for a
// disk.
func (t *transmission) cached(r request, fd int) bool {
	var b [1]byte
	off := r.start()
	return t.peek(fd, b[:], off) == 1 && t.peek(fd, b[:], off+r.size()-1) == 1
}

// readSpliced sends a range of the file without copying it. What is sent has
// been read before its header promises it. Without done nothing was sent.
func (t *transmission) readSpliced(r request, fd int) (done bool, err error) {
	off, rest := r.offset, int(r.size())
	for rest > 0 {
		p, err := t.openPipe()
		if err != nil {
			return false, nil //nolint:nilerr // no descriptors left: copy
		}
		n := min(rest, p.room(off))
		n, readErr := p.fromFile(fd, int64(off), n) //nolint:gosec // within the device's size
		if n < rest && (t.single(r) || readErr != nil) {
			if off == r.offset {
				return false, t.dropPipe()
			}
			if err := t.dropPipe(); err != nil {
				return true, err
			}
			return true, t.fail(r, wireError(readErr), readErr.Error(), false)
		}
		var head [headRoom]byte
		if err := t.out.spliced(t.appendHead(head[:0], r, n == rest, off, n), p, n); err != nil {
			return true, err
		}
		off, rest = off+uint64(n), rest-n //nolint:gosec // n is not negative
	}
	t.counters.Reads.Add(1)
	t.counters.ReadBytes.Add(r.size())
	return true, nil
}

// readDeferred answers a read from the device, in as many chunks as the client
// takes and as memory asks for.
func (t *transmission) readDeferred(r request) {
	err := t.readPieces(r)
	if err != nil {
		t.finishSoon(r, err)
		return
	}
	t.counters.Reads.Add(1)
	t.counters.ReadBytes.Add(r.size())
}

// readPieces sends all of r; an error has still to be told to the client.
func (t *transmission) readPieces(r request) (err error) {
	off, end := r.start(), r.start()+r.size()
	parts := []blockmap.Extent{{Offset: off, Length: end - off, State: blockmap.Data}}
	if t.asksForHoles(r) {
		parts = t.holes(off, end, t.single(r))
	}
	if t.single(r) && r.length > maxPiece && parts[0].State == blockmap.Data {
		return t.readWhole(r)
	}
	withBuffer(int(min(end-off, t.piece(r))), func(b []byte) {
		for _, e := range parts {
			if e.State == blockmap.Data {
				err = t.readRange(r, b, e.Offset, e.End())
			} else {
				t.sendHole(r, e, end)
			}
			if err != nil {
				return
			}
		}
	})
	return err
}

// piece is the most that is read and sent at once of a read.
func (t *transmission) piece(r request) int64 {
	if t.background && !t.single(r) {
		return smallPiece
	}
	return maxPiece
}

// readRange sends a part of r, in chunks no larger than b, which has room for all of the
// part, or for one piece.
func (t *transmission) readRange(r request, b []byte, off, end int64) error {
	last := r.start() + r.size()
	for off < end {
		n := int(min(end-off, t.piece(r)))
		if err := readFull(t.dev, b[headRoom:headRoom+n], off); err != nil {
			return err
		}
		// Straight before the data, so that both leave in one piece.
		head := t.appendHead(make([]byte, 0, headRoom), r, off+int64(n) == last, uint64(off), n) //nolint:gosec // not negative
		start := headRoom - len(head)
		copy(b[start:], head)
		if err := t.out.payload(nil, b[start:headRoom+n], true); err != nil {
			return nil //nolint:nilerr // the connection is gone; there is nobody to tell
		}
		if t.background {
			yield()
		}
		off += int64(n)
	}
	return nil
}

// readWhole sends a read that is larger than a piece and must have one header.
// All of it is read first if memory allows. If not, an error that comes after
// the header can only be told by hanging up.
func (t *transmission) readWhole(r request) error {
	n, off := int(r.size()), r.start()
	head := t.appendHead(nil, r, true, r.offset, n)
	if t.lane.shared.try(int64(n)) {
		defer t.lane.shared.give(int64(n))
		body := make([]byte, n)
		if err := readFull(t.dev, body, off); err != nil {
			return err
		}
		_ = t.out.payload(head, body, true) // the connection is gone; there is nobody to tell
		return nil
	}
	if t.structured { // so the client asked for DF, and may be told to do without
		return EOVERFLOW
	}
	b, done := takeBuffer(maxPiece)
	defer done()
	b = b[:maxPiece]
	if err := readFull(t.dev, b, off); err != nil {
		return err
	}
	o := &t.out
	o.lock(true)
	defer o.mu.Unlock()
	o.buf = append(o.buf, head...)
	if o.flushLocked() != nil {
		return nil
	}
	for {
		if _, err := o.nc.Write(b); o.written(err) != nil {
			return nil // the connection is gone; there is nobody to tell
		}
		n, off = n-len(b), off+int64(len(b))
		if n == 0 {
			return nil
		}
		b = b[:min(n, maxPiece)]
		if err := readFull(t.dev, b, off); err != nil {
			_ = o.written(err) // hangs up
			return nil
		}
	}
}

// asksForHoles reports whether r is worth a look at the map of holes first.
func (t *transmission) asksForHoles(r request) bool {
	return t.structured && t.mapHoles && r.length >= holeProbe
}

// holes divides a range into data, and holes that are worth a chunk of their
// own. With single set it does so only if one hole covers it all. A map that
// cannot be had is all data: this is only about speed.
func (t *transmission) holes(off, end int64, single bool) []blockmap.Extent {
	const worth = 64 << 10
	data := blockmap.Extent{Offset: off, Length: end - off, State: blockmap.Data}
	extents, err := t.mapRange(ContextAllocation, off, end-off)
	if err != nil {
		return []blockmap.Extent{data}
	}
	var out []blockmap.Extent
	for _, e := range extents {
		hole := e.State&blockmap.Hole != 0 && e.State&blockmap.Zero != 0
		if whole := e.Offset == off && e.Length == end-off; !hole || e.Length < worth || single && !whole {
			continue
		}
		if e.Offset > data.Offset {
			out = append(out, blockmap.Extent{Offset: data.Offset, Length: e.Offset - data.Offset, State: blockmap.Data})
		}
		out = append(out, e)
		data.Offset = e.End()
	}
	if data.Offset < end {
		out = append(out, blockmap.Extent{Offset: data.Offset, Length: end - data.Offset, State: blockmap.Data})
	}
	return out
}

func (t *transmission) sendHole(r request, e blockmap.Extent, end int64) {
	b := t.appendChunk(make([]byte, 0, headRoom), r, e.End() == end, chunkOffsetHole, 12)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Offset)) //nolint:gosec // not negative
	b = binary.BigEndian.AppendUint32(b, uint32(e.Length)) //nolint:gosec // at most maxPayload
	_ = t.out.reply(b, true)                               // the connection is gone; there is nobody to tell
}

// readFull reads all of p. The end of the device cannot come within it.
func readFull(d Device, p []byte, off int64) error {
	n, err := d.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
