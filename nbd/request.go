package nbd

import (
	"context"
	"encoding/binary"
	"net"
	"time"
)

// do sends a request and waits for its answer. When ctx ends first, c.p is no
// longer touched after do has returned; the answer will be discarded.
func (l *link) do(ctx context.Context, c *call) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-l.done:
		return l.cause()
	}
	select {
	case l.writing <- struct{}{}:
	case <-ctx.Done():
		<-l.slots
		return ctx.Err()
	case <-l.done:
		<-l.slots
		return l.cause()
	}
	c.finished, c.released = make(chan struct{}), make(chan struct{})
	cookie, err := l.register(c)
	if err != nil {
		<-l.writing
		<-l.slots
		return err
	}
	head, payload := l.message(c, cookie)
	err = l.send(ctx, head, payload)
	<-l.writing
	if err != nil {
		l.fail(&lostError{what: "send", err: err})
	}
	select {
	case <-c.finished:
		return c.err
	case <-ctx.Done():
		l.abandon(c)
		return ctx.Err()
	}
}

// message returns a request's header and payload.
func (l *link) message(c *call, cookie uint64) (head, payload []byte) {
	n := uint64(c.n) //nolint:gosec // not negative
	magic, flags, payload := magicRequest, c.flags, c.payload
	extended := l.session.framing == extendedHeaders
	if extended {
		magic = magicExtRequest
		if c.command == cmdBlockStatus && l.session.filters() {
			payload = binary.BigEndian.AppendUint64(nil, n)
			payload = binary.BigEndian.AppendUint32(payload, l.session.id(c.context))
		}
		if len(payload) > 0 {
			flags, n = flags|cmdFlagPayloadLen, uint64(len(payload))
		}
	}
	b := make([]byte, 0, extRequestSize+min(len(payload), joinPayload))
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, c.command)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(c.off)) //nolint:gosec // not negative
	if extended {
		return binary.BigEndian.AppendUint64(b, n), payload
	}
	return binary.BigEndian.AppendUint32(b, uint32(n)), payload //nolint:gosec // Client keeps to 32 bits without extended headers
}

// register gives the call a cookie. From then on the receiver owns its slot.
func (l *link) register(c *call) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	l.cookie++
	l.pending[l.cookie] = c
	return l.cookie, nil
}

// send writes a header and its payload.
func (l *link) send(ctx context.Context, head, payload []byte) error {
	late := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = l.nc.SetWriteDeadline(time.Now().Add(sendGrace)) // a closed connection needs no deadline
		close(late)
	})
	var err error
	if len(payload) <= joinPayload {
		_, err = l.nc.Write(append(head, payload...))
	} else {
		parts := net.Buffers{head, payload}
		_, err = parts.WriteTo(l.nc)
	}
	if !stop() {
		<-late
		_ = l.nc.SetWriteDeadline(time.Time{}) // a closed connection needs no deadline
	}
	return err
}

// abandon gives up on a call and returns when its buffer is free.
func (l *link) abandon(c *call) {
	l.mu.Lock()
	c.abandoned = true
	receiving := c.receiving
	l.mu.Unlock()
	if receiving {
		_ = l.nc.SetReadDeadline(longAgo) // a closed connection is awake already
		<-c.released
	}
}
