package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// reply receives one simple reply or one chunk. Any error of it leaves the
// stream at an unknown place and ends the connection.
func (l *link) reply() error {
	if err := l.in.fill(simpleReplySize, clientBuffer); err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(l.in.buf[l.in.r:]); {
	case magic == magicSimple && l.session.framing != extendedHeaders:
		return l.simple()
	case magic == magicStructured && l.session.framing == structuredReplies:
		return l.chunk(chunkHeaderSize)
	case magic == magicExtReply && l.session.framing == extendedHeaders:
		return l.chunk(extReplySize)
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
	case c.command == cmdRead && l.session.framing == structuredReplies:
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
	l.heard.Store(true)
	if c.err == nil {
		l.ledger.answered(c) // before the end of the connection can be noticed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finish(cookie, c, c.err)
}

// chunk receives one chunk, whose header has the given size.
func (l *link) chunk(size int) error {
	if err := l.in.fill(size, clientBuffer); err != nil {
		return midway(err)
	}
	h := cursor{b: l.in.take(size)[4:]}
	flags, kind, cookie := h.u16(), h.u16(), h.u64()
	c, err := l.find(cookie)
	if err != nil {
		return err
	}
	var length uint64
	if size == extReplySize {
		if offset := h.u64(); offset != uint64(c.off) { //nolint:gosec // not negative
			return fmt.Errorf("the server answered a request at %d as one at %d", c.off, offset)
		}
		length = h.u64()
	} else {
		length = uint64(h.u32())
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
	case kind == l.status().kind && c.command == cmdBlockStatus:
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

func (l *link) dataChunk(c *call, length uint64) error {
	if length < 8 {
		return fmt.Errorf("the server sent a data chunk of %d bytes", length)
	}
	if err := l.in.fill(8, clientBuffer); err != nil {
		return midway(err)
	}
	n := length - 8
	start, err := c.part(binary.BigEndian.Uint64(l.in.take(8)), n)
	if err != nil {
		return err
	}
	return l.into(c, c.p[start:start+int64(n)]) //nolint:gosec // within p
}

func (l *link) holeChunk(c *call, length uint64) error {
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

func (l *link) errorChunk(c *call, kind uint16, length uint64) error {
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
