package nbd

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

const (
	// outputBatch is how much is collected before it is written.
	outputBatch = 64 << 10
	// outputCopy is the largest payload that is copied to where replies are
	// collected; larger ones are written from where they are.
	outputCopy = 16 << 10
)

// output collects replies and writes them to the connection. The loop leaves its
// replies here until input runs out; deferred requests write theirs at once,
// unless another is about to, which then takes both along.
type output struct {
	nc     net.Conn
	w      io.Writer       // to nc
	socket net.Conn        // under nc, or nc itself
	raw    syscall.RawConn // of nc, nil when it is not a kernel socket

	waiting atomic.Int32 // deferred requests about to lock mu
	mu      sync.Mutex
	buf     []byte
	err     error // of the first write that failed; the connection is closed then
}

// reply adds a whole reply. soon means that it must not stay here.
func (o *output) reply(b []byte, soon bool) error {
	o.lock(soon)
	defer o.mu.Unlock()
	o.buf = append(o.buf, b...)
	return o.settle(soon)
}

// payload adds a reply whose last part is a large buffer, in pieces that follow
// each other without a gap.
func (o *output) payload(head, body []byte, soon bool) error {
	if len(body) <= outputCopy {
		o.lock(soon)
		defer o.mu.Unlock()
		o.buf = append(append(o.buf, head...), body...)
		return o.settle(soon)
	}
	o.lock(soon)
	defer o.mu.Unlock()
	if o.err != nil {
		return o.err
	}
	o.buf = append(o.buf, head...)
	parts := net.Buffers{o.buf, body}
	_, err := parts.WriteTo(o.nc)
	o.buf = o.buf[:0]
	return o.written(err)
}

// flush writes what has been collected.
func (o *output) flush() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.flushLocked()
}

func (o *output) lock(soon bool) {
	if !soon {
		o.mu.Lock()
		return
	}
	o.waiting.Add(1)
	o.mu.Lock()
	o.waiting.Add(-1)
}

// settle decides whether what has been added goes out now.
func (o *output) settle(soon bool) error {
	if len(o.buf) >= outputBatch || soon && o.waiting.Load() == 0 {
		return o.flushLocked()
	}
	return o.err
}

func (o *output) flushLocked() error {
	if o.err != nil || len(o.buf) == 0 {
		return o.err
	}
	_, err := o.w.Write(o.buf)
	o.buf = o.buf[:0]
	return o.written(err)
}

// written notes the outcome of a write to the connection. After a failure
// nobody knows where the stream stands, so it is closed; that wakes the loop.
func (o *output) written(err error) error {
	if err != nil && o.err == nil {
		o.err = err
		closeQuietly(o.socket)
	}
	return o.err
}

// appendHead adds the start of a successful reply that carries data, at offset,
// of n bytes: that of a simple reply, or of one chunk.
func (t *transmission) appendHead(b []byte, r request, done bool, offset uint64, n int) []byte {
	if !t.structured {
		return appendSimple(b, r.cookie, 0)
	}
	b = t.appendChunk(b, r, done, chunkOffsetData, 8+n)
	return binary.BigEndian.AppendUint64(b, offset)
}

func appendSimple(b []byte, cookie uint64, e Error) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// appendChunk adds the header of a chunk with n bytes of payload.
func (t *transmission) appendChunk(b []byte, r request, done bool, kind uint16, n int) []byte {
	var flags uint16
	if done {
		flags = chunkFlagDone
	}
	magic := magicStructured
	if t.extended {
		magic = magicExtReply
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, r.cookie)
	if !t.extended {
		return binary.BigEndian.AppendUint32(b, uint32(n)) //nolint:gosec // at most maxPayload and a header
	}
	b = binary.BigEndian.AppendUint64(b, r.offset)     // of the request, whatever the chunk is about
	return binary.BigEndian.AppendUint64(b, uint64(n)) //nolint:gosec // not negative
}

// finish answers a request that has no payload to send with its outcome.
func (t *transmission) finish(r request, err error, soon bool) error {
	if err != nil {
		return t.fail(r, wireError(err), err.Error(), soon)
	}
	var b [extReplySize]byte
	if t.extended || t.structured && r.command == cmdRead {
		return t.out.reply(t.appendChunk(b[:0], r, true, chunkNone, 0), soon)
	}
	return t.out.reply(appendSimple(b[:0], r.cookie, 0), soon)
}

// finishSoon is finish for deferred requests, to whom a lost connection is
// nothing more to do.
func (t *transmission) finishSoon(r request, err error) {
	_ = t.finish(r, err, true) // output keeps the error, and the loop meets it
}

// fail answers a request with an error, and ends its reply. text is for people.
func (t *transmission) fail(r request, e Error, text string, soon bool) error {
	t.counters.Failed.Add(1)
	if !t.structured {
		var b [simpleReplySize]byte
		return t.out.reply(appendSimple(b[:0], r.cookie, e), soon)
	}
	text = clipText(text)
	b := t.appendChunk(nil, r, true, chunkError, 6+len(text))
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text))) //nolint:gosec // clipped
	return t.out.reply(append(b, text...), soon)
}
