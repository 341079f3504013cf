package nbd

import (
	"context"
	"errors"
	"fmt"
	"math"
)

const (
	// maxRange is the most that one request without payload is about, where the
	// header has 32 bits for it.
	maxRange = 1 << 30
	// zeroPiece is what Zero writes at a time where the server has no command.
	zeroPiece = 1 << 20
)

// WriteAt writes p at off; with fua it is durable when WriteAt returns. It does
// not keep p. When ctx ends early the server may have got all, some or nothing.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, fua bool) error {
	var flags uint16
	switch {
	case !fua:
	case c.has(flagSendFUA):
		flags = cmdFlagFUA
	case !c.CanFlush():
		return c.unsupported("durable writes")
	}
	err := c.change("write", off, int64(len(p)), c.session.blocks.Maximum, func(at, n int64) error {
		return c.do(ctx, &call{command: cmdWrite, flags: flags, off: at, n: n, payload: p[at-off : at-off+n]})
	})
	if err == nil && fua && flags == 0 {
		return c.Flush(ctx)
	}
	return err
}

// Flush returns when everything that was written before, by any connection of
// this client, is durable. A server that does not offer that is an error that
// wraps errors.ErrUnsupported; after a connection was lost and made again it can
// be ErrUnflushed.
func (c *Client) Flush(ctx context.Context) error {
	if c.ReadOnly() {
		return nil
	}
	if !c.CanFlush() {
		return c.unsupported("flush")
	}
	if err := c.do(ctx, &call{command: cmdFlush, covers: c.ledger.now()}); err != nil {
		return fmt.Errorf("nbd: flush: %w", err)
	}
	if c.o.Reconnect > 0 && c.ledger.doubtful() {
		return ErrUnflushed
	}
	return nil
}

// Trim tells the server that a range is not needed any more. Where the server
// has no such command nothing happens.
func (c *Client) Trim(ctx context.Context, off, n int64) error {
	if !c.CanTrim() {
		return c.change("trim", off, n, n, func(int64, int64) error { return nil })
	}
	return c.command(ctx, "trim", off, n, cmdTrim, 0)
}

// Zero makes a range read as zeros, by writing them where the server has no
// command for it. With punch the server may give the space back.
func (c *Client) Zero(ctx context.Context, off, n int64, punch bool) error {
	if c.CanZero() {
		return c.command(ctx, "zero", off, n, cmdWriteZeroes, holes(punch))
	}
	size := min(zeroPiece, c.session.blocks.Maximum)
	zeros := make([]byte, min(max(n, 0), size))
	return c.change("zero", off, n, size, func(at, n int64) error {
		return c.do(ctx, &call{command: cmdWrite, off: at, n: n, payload: zeros[:n]})
	})
}

// ZeroFast is Zero if that is faster than to write zeros; else it fails at once
// with an error that wraps errors.ErrUnsupported: of a server that cannot tell
// (see CanFastZero), or ENOTSUP as the server's answer. Of a range that takes
// several requests a part may be zero then.
func (c *Client) ZeroFast(ctx context.Context, off, n int64, punch bool) error {
	if !c.CanFastZero() {
		return c.unsupported("fast zeros")
	}
	return c.command(ctx, "zero", off, n, cmdWriteZeroes, holes(punch)|cmdFlagFastZero)
}

// holes returns the flags of zeros that may, or may not, become holes.
func holes(punch bool) uint16 {
	if punch {
		return 0
	}
	return cmdFlagNoHole
}

// command changes a range by requests without payload: one, if its header has
// room for the length and the server does not find it too much.
func (c *Client) command(ctx context.Context, op string, off, n int64, command, flags uint16) error {
	send := func(at, n int64) error {
		return c.do(ctx, &call{command: command, flags: flags, off: at, n: n})
	}
	if c.session.framing != extendedHeaders {
		return c.change(op, off, n, maxRange, send)
	}
	return c.change(op, off, n, math.MaxInt64, func(at, n int64) error {
		err := send(at, n)
		if n > maxRange && (errors.Is(err, EOVERFLOW) || errors.Is(err, EINVAL)) {
			return inParts(at, n, maxRange, send)
		}
		return err
	})
}

// change is each for what a read-only export refuses.
func (c *Client) change(op string, off, n, most int64, fn func(off, n int64) error) error {
	if c.ReadOnly() {
		return fmt.Errorf("nbd: %s %d bytes at %d: the export is read-only: %w", op, n, off, EPERM)
	}
	return c.each(op, off, n, most, fn)
}
