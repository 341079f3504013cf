package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/blockmap"
)

// maxStatusChunk bounds one BLOCK_STATUS chunk that the client takes. Extents
// are stored as they arrive, so the number alone costs nothing.
const maxStatusChunk = 16 << 20

// reply receives one simple reply or one chunk. Any error of it leaves the
// stream at an unknown place and ends the connection.
func (l *link) reply() error {
	if err := l.in.fill(simpleReplySize, clientBuffer); err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(l.in.buf[l.in.r:]); {
	case magic == magicSimple:
		return l.simple()
	case magic == magicStructured && l.session.structured:
		return l.chunk()
	default:
		return fmt.Errorf("the server sent the reply magic %#x", magic)
	}
}

func (l *link) find(cookie uint64) (*call, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.pending[cookie]
	if !ok {
		return nil, fmt.Errorf("the server answered the request %d, which is not pending", cookie)
	}
	return c, nil
}

func (l *link) simple() error {
	h := cursor{b: l.in.take(simpleReplySize)[4:]}
	code, cookie := h.u32(), h.u64()
	c, err := l.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case c.command == cmdRead && l.session.structured:
		return errors.New("the server answered a read with a simple reply after agreeing not to")
	case code != 0:
		c.refuse(Error(code), "")
	case c.command == cmdRead:
		if err := l.into(c, c.p); err != nil {
			return err
		}
	case c.command == cmdBlockStatus:
		return errors.New("the server answered BLOCK_STATUS without a status")
	}
	l.end(cookie, c)
	return nil
}

// end answers a call with what the server said about it.
func (l *link) end(cookie uint64, c *call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finish(cookie, c, c.err)
}

// refuse notes an error of the server; the first one stays.
func (c *call) refuse(code Error, text string) {
	switch {
	case c.err != nil:
	case text == "":
		c.err = code
	default:
		c.err = fmt.Errorf("%w (the server says: %s)", code, text)
	}
}

func (l *link) chunk() error {
	if err := l.in.fill(chunkHeaderSize, clientBuffer); err != nil {
		return midway(err)
	}
	h := cursor{b: l.in.take(chunkHeaderSize)[4:]}
	flags, kind, cookie, length := h.u16(), h.u16(), h.u64(), h.u32()
	c, err := l.find(cookie)
	if err != nil {
		return err
	}
	if flags&^chunkFlagDone != 0 {
		return fmt.Errorf("the server sent a chunk with the flags %#x", flags)
	}
	switch {
	case kind&chunkErrorBit != 0:
		err = l.errorChunk(c, kind, length)
	case kind == chunkNone && length == 0 && flags&chunkFlagDone != 0:
	case kind == chunkOffsetData && c.command == cmdRead:
		err = l.dataChunk(c, length)
	case kind == chunkOffsetHole && c.command == cmdRead:
		err = l.holeChunk(c, length)
	case kind == chunkBlockStatus && c.command == cmdBlockStatus:
		err = l.statusChunk(c, length)
	default:
		err = fmt.Errorf("the server answered command %d with a chunk of type %d and %d bytes", c.command, kind, length)
	}
	if err != nil || flags&chunkFlagDone == 0 {
		return err
	}
	if c.err == nil {
		if err := c.complete(); err != nil {
			return err
		}
	}
	l.end(cookie, c)
	return nil
}

// complete checks that a call that the server has ended without an error got all
// that it asked for.
func (c *call) complete() error {
	switch {
	case c.command == cmdRead && !c.arrived.whole(int64(len(c.p))):
		return fmt.Errorf("the server ended a read of %d bytes before all had come", len(c.p))
	case c.command == cmdBlockStatus && !c.mapped:
		return errors.New("the server ended BLOCK_STATUS without the context that was negotiated")
	default:
		return nil
	}
}

// part checks that n bytes at the wire's offset lie in the read and are new.
func (c *call) part(offset, n uint64) (start int64, err error) {
	at := offset - uint64(c.off) //nolint:gosec // not negative; a wrapped difference is out of range
	size := uint64(len(c.p))
	if offset < uint64(c.off) || n == 0 || at > size || n > size-at { //nolint:gosec // not negative
		return 0, fmt.Errorf("the server sent %d bytes at %d for a read of %d at %d", n, offset, size, c.off)
	}
	start = int64(at)                          //nolint:gosec // within p
	if !c.arrived.add(start, start+int64(n)) { //nolint:gosec // within p
		return 0, fmt.Errorf("the server sent %d bytes at %d twice, or in too many parts", n, offset)
	}
	return start, nil
}

func (l *link) dataChunk(c *call, length uint32) error {
	if length < 8 {
		return fmt.Errorf("the server sent a data chunk of %d bytes", length)
	}
	if err := l.in.fill(8, clientBuffer); err != nil {
		return midway(err)
	}
	n := uint64(length) - 8
	start, err := c.part(binary.BigEndian.Uint64(l.in.take(8)), n)
	if err != nil {
		return err
	}
	return l.into(c, c.p[start:start+int64(n)]) //nolint:gosec // within p
}

func (l *link) holeChunk(c *call, length uint32) error {
	if length != 12 {
		return fmt.Errorf("the server sent a hole chunk of %d bytes", length)
	}
	if err := l.in.fill(12, clientBuffer); err != nil {
		return midway(err)
	}
	h := cursor{b: l.in.take(12)}
	offset, n := h.u64(), h.u32()
	start, err := c.part(offset, uint64(n))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !c.abandoned {
		clear(c.p[start : start+int64(n)])
	}
	return nil
}

func (l *link) errorChunk(c *call, kind uint16, length uint32) error {
	if length < 6 || length > maxOptionData {
		return fmt.Errorf("the server sent an error chunk of %d bytes", length)
	}
	b := make([]byte, length)
	if err := l.in.readFull(b); err != nil {
		return err
	}
	h := cursor{b: b}
	code := Error(h.u32())
	text := h.bytes(uint32(h.u16()))
	if h.bad || kind == chunkError && len(h.b) != 0 || kind == chunkErrorOffset && len(h.b) != 8 {
		return errors.New("the server sent a malformed error chunk")
	}
	if code == 0 {
		code = EINVAL // an error that is none would pass for success
	}
	c.refuse(code, clean(string(text)))
	return nil
}

func (l *link) statusChunk(c *call, length uint32) error {
	if length < 4+8 || length%8 != 4 || length > maxStatusChunk+4 {
		return fmt.Errorf("the server sent a status chunk of %d bytes", length)
	}
	if err := l.in.fill(4, clientBuffer); err != nil {
		return midway(err)
	}
	if id := binary.BigEndian.Uint32(l.in.take(4)); id != c.context {
		if !l.selected(id) {
			return fmt.Errorf("the server sent the status of the context %d, which was not negotiated", id)
		}
		return l.in.discard(int64(length) - 4)
	}
	if c.mapped {
		return errors.New("the server sent the status of one context twice")
	}
	c.mapped = true
	count := int(length / 8)
	at := c.off
	for range count {
		if err := l.in.fill(8, clientBuffer); err != nil {
			return midway(err)
		}
		h := cursor{b: l.in.take(8)}
		n, state := h.u32(), h.u32()
		if n == 0 {
			return errors.New("the server sent an empty extent")
		}
		if at >= l.session.size || c.room.Add(-1) < 0 {
			return errors.New("the server sent more extents than the range can hold")
		}
		c.extents = blockmap.Append(c.extents, blockmap.Extent{Offset: at, Length: int64(n), State: blockmap.State(state)})
		at += int64(n)
	}
	return nil
}

// selected reports whether id is one of the contexts that were negotiated.
func (l *link) selected(id uint32) bool {
	for _, c := range l.session.contexts {
		if c.id == id {
			return true
		}
	}
	return false
}
