package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"time"
)

// conn is one connection of a server, from its first byte on.
type conn struct {
	s      *Server
	nc     net.Conn // what the client is talked to over: socket, or TLS on it
	socket net.Conn // to hang up by closing it, which waits for nobody
	in     input
	peer   Peer
	out    []byte // replies to the present option that have not been sent
	outErr error  // of sending replies; what follows is dropped

	noZeroes bool
	options  int  // how many more the client may send
	listed   bool // it has had its list
	// What options have chosen. STARTTLS throws all of it away.
	chosen

	export *Export
	dev    Device // set when negotiation has ended well
}

// chosen is what a client has negotiated by options.
type chosen struct {
	structured bool // replies are chunks; so they are with extended headers
	extended   bool
	meta       metaSelection
}

// metaSelection is what SET_META_CONTEXT chose, and for which export.
type metaSelection struct {
	export   string
	contexts []string // a context's ID is its index plus one
}

const (
	handshakeBuffer = 4 << 10
	maxSkippedData  = 16 * maxOptionData // of an option that is refused unread
)

// serve negotiates, then answers requests until the client leaves. cancel ends
// ctx, which the device was opened with.
func (c *conn) serve(ctx context.Context, cancel context.CancelFunc) error {
	c.in = input{nc: c.nc}
	c.in.resize(handshakeBuffer)
	if err := c.setDeadline(); err != nil {
		return err
	}
	err := c.negotiate(ctx)
	c.out = nil // not for as long as the connection lasts
	if c.dev == nil {
		return err
	}
	if err == nil {
		err = c.nc.SetDeadline(time.Time{})
	}
	if err == nil {
		err = newTransmission(c).run(ctx, cancel)
	}
	if closeErr := c.dev.Close(); closeErr != nil && err == nil {
		err = fmt.Errorf("nbd: close %q: %w", c.export.Name, closeErr)
	}
	return err
}

func (c *conn) setDeadline() error {
	return c.nc.SetDeadline(time.Now().Add(c.s.o.HandshakeTimeout))
}

// negotiate runs the fixed newstyle handshake. It leaves c.dev nil when the
// client ended it without choosing an export, or with an error.
func (c *conn) negotiate(ctx context.Context) error {
	b := binary.BigEndian.AppendUint64(c.out[:0], magicNBD)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint16(b, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	c.out = b[:0]
	if err := c.in.fill(4, 4); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(c.in.take(4))
	if flags&^uint32(flagFixedNewstyle|flagNoZeroes) != 0 {
		return fmt.Errorf("nbd: client sent the unknown handshake flags %#x", flags)
	}
	c.noZeroes = flags&uint32(flagNoZeroes) != 0
	for c.options = maxOptions; c.options > 0; c.options-- {
		done, err := c.option(ctx)
		if err != nil || done {
			return err
		}
	}
	return fmt.Errorf("nbd: client sent more options than the %d, and %d for each export in its list, that are served", maxOptions, maxPerListed)
}

// option reads one option and answers it. done means that no other follows.
func (c *conn) option(ctx context.Context) (done bool, err error) {
	if err = c.in.fill(optionHeaderSize, handshakeBuffer); err != nil {
		return false, err
	}
	h := cursor{b: c.in.take(optionHeaderSize)}
	if magic := h.u64(); magic != magicOption {
		return false, fmt.Errorf("nbd: client sent the option magic %#x", magic)
	}
	opt, length := h.u32(), h.u32()
	switch {
	case c.mustEncrypt(opt):
		return false, c.skip(opt, length, repErrTLSReqd, "this server requires TLS: negotiate STARTTLS first")
	case length > maxOptionData:
		return false, c.skip(opt, length, repErrTooBig, fmt.Sprintf("option data is limited to %d bytes", maxOptionData))
	}
	data := make([]byte, length)
	if err = c.in.readFull(data); err != nil {
		return false, err
	}
	done, err = c.dispatch(ctx, opt, data)
	if sendErr := c.send(); err == nil {
		err = sendErr
	}
	return done, err
}

// skip refuses an option whose data have not been read and will not be looked at.
func (c *conn) skip(opt, length, rep uint32, text string) error {
	if length > maxSkippedData || opt == optExportName {
		return fmt.Errorf("nbd: client sent option %d with %d bytes of data: %s", opt, length, text)
	}
	if err := c.in.discard(int64(length)); err != nil {
		return err
	}
	c.refuse(opt, rep, text)
	return c.send()
}

// dispatch answers one option into c.out.
func (c *conn) dispatch(ctx context.Context, opt uint32, data []byte) (done bool, err error) {
	switch opt {
	case optExportName:
		return true, c.exportName(ctx, data)
	case optAbort:
		c.reply(opt, repAck, nil)
		return true, nil
	case optStartTLS:
		return false, c.startTLS(ctx, data)
	case optList:
		c.list(data)
	case optInfo, optGo:
		return c.info(ctx, opt, data)
	case optStructuredReply:
		switch {
		case len(data) != 0:
			c.refuse(opt, repErrInvalid, "STRUCTURED_REPLY takes no data")
		case c.extended:
			c.refuse(opt, repErrExtHdrReqd, "extended headers are on already, and go before structured replies")
		default:
			c.structured = true
			c.reply(opt, repAck, nil)
		}
	case optExtendedHeaders:
		switch {
		case len(data) != 0:
			c.refuse(opt, repErrInvalid, "EXTENDED_HEADERS takes no data")
		case c.extended:
			c.refuse(opt, repErrInvalid, "extended headers are on already")
		default:
			c.structured, c.extended = true, true
			c.reply(opt, repAck, nil)
		}
	case optListMetaContext, optSetMetaContext:
		c.metaContext(opt, data)
	default:
		c.refuse(opt, repErrUnsup, "")
	}
	return false, nil
}

func (c *conn) refuse(opt, rep uint32, text string) { c.reply(opt, rep, []byte(clipText(text))) }

// reply adds one reply to what send will write. Where an option has very many, they
// leave as they come.
func (c *conn) reply(opt, rep uint32, data []byte) {
	c.out = binary.BigEndian.AppendUint64(c.out, magicOptReply)
	c.out = binary.BigEndian.AppendUint32(c.out, opt)
	c.out = binary.BigEndian.AppendUint32(c.out, rep)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(len(data))) //nolint:gosec // names and texts are capped
	c.out = append(c.out, data...)
	if len(c.out) >= outputBatch {
		_ = c.send() // which says so again
	}
}

// send writes the replies that are waiting.
func (c *conn) send() error {
	if len(c.out) > 0 && c.outErr == nil {
		_, c.outErr = c.nc.Write(c.out)
	}
	c.out = c.out[:0]
	return c.outErr
}
