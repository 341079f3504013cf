package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// The answers to the options that are about exports.

// exportName ends negotiation the old way, which has no means to say no.
func (c *conn) exportName(ctx context.Context, data []byte) error {
	if len(data) > maxName {
		return errors.New("nbd: client asked for an export with too long a name")
	}
	if c.extended {
		return errors.New("nbd: client sent EXPORT_NAME, which the protocol forbids with extended headers")
	}
	e, ok := c.s.o.Lookup(string(data), c.peer)
	if !ok {
		return fmt.Errorf("nbd: client asked for the unknown export %q", data)
	}
	size, err := c.open(ctx, e, string(data))
	if err != nil {
		return err
	}
	c.out = binary.BigEndian.AppendUint64(c.out, size)
	c.out = binary.BigEndian.AppendUint16(c.out, c.flags(e))
	if !c.noZeroes {
		c.out = append(c.out, make([]byte, exportNamePadding)...)
	}
	return nil
}

// list answers LIST: one reply for each export, then an acknowledgement. The first
// list lets the client ask about each export that is in it.
func (c *conn) list(data []byte) {
	switch {
	case len(data) != 0:
		c.refuse(optList, repErrInvalid, "LIST takes no data")
		return
	case c.s.o.List == nil:
		c.refuse(optList, repErrPolicy, "this server does not list its exports")
		return
	}
	for _, e := range c.s.o.List(c.peer) {
		if c.outErr != nil {
			return
		}
		c.reply(optList, repServer, append(appendName(nil, e.Name), clipText(e.Description)...))
		if !c.listed {
			c.options += maxPerListed
		}
	}
	c.listed = true
	c.reply(optList, repAck, nil)
}

// info answers INFO and GO.
func (c *conn) info(ctx context.Context, opt uint32, data []byte) (done bool, err error) {
	r, ok := parseInfoRequest(data)
	if !ok {
		c.refuse(opt, repErrInvalid, "the lengths in the option do not add up")
		return false, nil
	}
	e, ok := c.s.o.Lookup(r.export, c.peer)
	if !ok {
		c.refuseUnknown(opt, r.export)
		return false, nil
	}
	size := uint64(max(e.Size(), 0))
	if opt == optGo {
		if size, err = c.open(ctx, e, r.export); err != nil {
			rep := repErrPolicy
			if errors.Is(err, fs.ErrNotExist) {
				rep = repErrUnknown
			}
			c.refuse(opt, rep, err.Error())
			return false, nil // the client was told; it may choose another
		}
	}
	b := binary.BigEndian.AppendUint16(nil, infoExport)
	b = binary.BigEndian.AppendUint64(b, size)
	c.reply(opt, repInfo, binary.BigEndian.AppendUint16(b, c.flags(e)))
	if slices.Contains(r.infos, infoName) {
		c.reply(opt, repInfo, append(binary.BigEndian.AppendUint16(nil, infoName), e.Name...))
	}
	if slices.Contains(r.infos, infoDescription) && e.Description != "" {
		c.reply(opt, repInfo, append(binary.BigEndian.AppendUint16(nil, infoDescription), clipText(e.Description)...))
	}
	b = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{1, preferredBlock, offeredPayload} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	c.reply(opt, repInfo, b)
	c.reply(opt, repAck, nil)
	return opt == optGo, nil
}

// open opens the export that was asked for as name. The time it takes is not
// the client's, so the deadline of the handshake rests meanwhile.
func (c *conn) open(ctx context.Context, e *Export, name string) (size uint64, err error) {
	if err = c.nc.SetDeadline(time.Time{}); err != nil {
		return 0, err
	}
	dev, err := e.Open(ctx, c.peer)
	if err != nil {
		return 0, fmt.Errorf("export %q cannot be opened: %w", e.Name, err)
	}
	if dev.Size() < 0 {
		closeQuietly(dev)
		return 0, fmt.Errorf("export %q has no size", e.Name)
	}
	if err = c.setDeadline(); err != nil {
		closeQuietly(dev)
		return 0, err
	}
	if c.meta.export != name {
		c.meta = metaSelection{}
	}
	c.export, c.dev = e, dev
	return uint64(dev.Size()), nil //nolint:gosec // checked above
}

// flags returns the transmission flags of an export for this client.
func (c *conn) flags(e *Export) uint16 {
	f := flagHasFlags | flagSendFlush | flagSendCache
	if e.ReadOnly {
		f |= flagReadOnly
	} else {
		f |= flagSendFUA | flagSendTrim | flagSendZeroes | flagSendFastZero
	}
	if c.structured {
		f |= flagSendDF
	}
	if c.extended {
		f |= flagStatusFilter
	}
	if e.MultiConn {
		f |= flagCanMultiConn
	}
	if e.Rotational {
		f |= flagRotational
	}
	return f
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (c *conn) metaContext(opt uint32, data []byte) {
	if opt == optSetMetaContext {
		c.meta = metaSelection{} // also when it fails
	}
	if !c.structured {
		c.refuse(opt, repErrInvalid, "metadata contexts need structured replies: negotiate those first")
		return
	}
	r, ok := parseMetaRequest(data)
	if !ok {
		c.refuse(opt, repErrInvalid, "the lengths in the option do not add up")
		return
	}
	e, ok := c.s.o.Lookup(r.export, c.peer)
	if !ok {
		c.refuseUnknown(opt, r.export)
		return
	}
	var offered []string
	if e.Contexts != nil {
		offered = e.Contexts()
	}
	found := r.list(offered)
	if opt == optSetMetaContext {
		if found = r.choose(offered); len(found) > maxContexts {
			c.refuse(opt, repErrTooBig, fmt.Sprintf("at most %d metadata contexts can be selected", maxContexts))
			return
		}
		c.meta = metaSelection{export: r.export, contexts: found}
	}
	for i, name := range found {
		id := uint32(i + 1)
		if opt == optListMetaContext { // IDs exist only once they are set
			id = 0
		}
		c.reply(opt, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), name...))
	}
	c.reply(opt, repAck, nil)
}

func (c *conn) refuseUnknown(opt uint32, name string) {
	c.refuse(opt, repErrUnknown, fmt.Sprintf("there is no export %q here", name))
}
