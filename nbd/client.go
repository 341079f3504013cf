package nbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/blockmap"
)

// ClientOptions says how to connect.
type ClientOptions struct {
	// Contexts are the metadata contexts that Map will be asked for. Those that
	// the server does not offer are left out: see Client.Contexts.
	Contexts []string
	// Conns is how many connections to open; 0 is one. More than one is used
	// only with a server that promises that a flush covers them all.
	Conns int
	// DialTimeout bounds connecting and negotiating; 0 is 30 seconds.
	DialTimeout time.Duration
}

// Client reads and writes one export of a server. All methods may be called
// from many goroutines at once; requests are sent without waiting for others.
//
// A method returns when its whole range is done, or with the first error. An
// error that wraps an Error is the server's answer to this request. After any
// other error of a connection the client is of no more use: every later request
// fails with the same error, and a new client has to be dialed.
type Client struct {
	session *session
	links   []*link
	turn    atomic.Uint32
}

const (
	// maxRange is the most that one request without payload is about.
	maxRange = 1 << 30
	// maxMap bounds what Map collects.
	maxMap = 1 << 24
	// maxMapRange is the most that one request of Map is about: what 32 bits
	// can say, in whole MiB.
	maxMapRange = 1<<32 - 1<<20
	// mapPending is how many requests Map has on their way: a large volume is
	// many requests, and waiting for each alone would take its size and not what
	// is on it.
	mapPending = 16
	// zeroPiece is what Zero writes at a time where the server has no command.
	zeroPiece = 1 << 20
)

// Size is the export's length in bytes, as of when the client connected.
func (c *Client) Size() int64 { return c.session.size }

// ReadOnly reports whether the server refuses writes.
func (c *Client) ReadOnly() bool { return c.has(flagReadOnly) }

// CanFlush reports whether the server can make writes durable on request. If
// not, Flush returns an error, and only the server knows when they are.
func (c *Client) CanFlush() bool { return c.has(flagSendFlush) }

// CanTrim reports whether Trim reaches the server.
func (c *Client) CanTrim() bool { return c.has(flagSendTrim) }

// CanZero reports whether Zero is a request of its own, which costs no transfer.
func (c *Client) CanZero() bool { return c.has(flagSendZeroes) }

// Conns is the number of connections.
func (c *Client) Conns() int { return len(c.links) }

// BlockSizes returns what the server asks its clients to keep to.
func (c *Client) BlockSizes() BlockSizes { return c.session.blocks }

// Contexts returns those of the metadata contexts asked for that the server
// offers.
func (c *Client) Contexts() []string {
	names := make([]string, len(c.session.contexts))
	for i, s := range c.session.contexts {
		names[i] = s.name
	}
	return names
}

func (c *Client) has(flag uint16) bool { return c.session.flags&flag != 0 }

// ReadAt fills p from off. It never writes to p after it has returned, also
// when ctx has ended. After an error what p holds is undefined.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	return c.each("read", off, int64(len(p)), c.session.blocks.Maximum, func(at, n int64) error {
		k := &call{command: cmdRead, off: at, p: p[at-off : at-off+n]}
		return c.link().do(ctx, k, 0, uint32(n), nil) //nolint:gosec // each keeps to Maximum
	})
}

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
		k := &call{command: cmdWrite, off: at}
		return c.link().do(ctx, k, flags, uint32(n), p[at-off:at-off+n]) //nolint:gosec // each keeps to Maximum
	})
	if err == nil && fua && flags == 0 {
		return c.Flush(ctx)
	}
	return err
}

// Flush returns when everything that was written before, by any connection of
// this client, is durable. A server that does not offer that is an error that
// wraps errors.ErrUnsupported.
func (c *Client) Flush(ctx context.Context) error {
	if c.ReadOnly() {
		return nil
	}
	if !c.CanFlush() {
		return c.unsupported("flush")
	}
	if err := c.link().do(ctx, &call{command: cmdFlush}, 0, 0, nil); err != nil {
		return fmt.Errorf("nbd: flush: %w", err)
	}
	return nil
}

// Trim tells the server that a range is not needed any more. Where the server
// has no such command nothing happens.
func (c *Client) Trim(ctx context.Context, off, n int64) error {
	if !c.CanTrim() {
		return c.change("trim", off, n, n, func(int64, int64) error { return nil })
	}
	return c.change("trim", off, n, maxRange, func(at, n int64) error {
		return c.link().do(ctx, &call{command: cmdTrim, off: at}, 0, uint32(n), nil) //nolint:gosec // at most maxRange
	})
}

// Zero makes a range read as zeros, by writing them where the server has no
// command for it. With punch the server may give the space back.
func (c *Client) Zero(ctx context.Context, off, n int64, punch bool) error {
	if !c.CanZero() {
		size := min(zeroPiece, c.session.blocks.Maximum)
		zeros := make([]byte, min(max(n, 0), size))
		return c.change("zero", off, n, size, func(at, n int64) error {
			return c.link().do(ctx, &call{command: cmdWrite, off: at}, 0, uint32(n), zeros[:n]) //nolint:gosec // at most zeroPiece
		})
	}
	flags := cmdFlagNoHole
	if punch {
		flags = 0
	}
	return c.change("zero", off, n, maxRange, func(at, n int64) error {
		return c.link().do(ctx, &call{command: cmdWriteZeroes, off: at}, flags, uint32(n), nil) //nolint:gosec // at most maxRange
	})
}

// Map returns what nbdContext says of exactly the range: extents in order and
// without gaps, neighbors of one state joined. nbdContext must be one of
// Contexts, else the error wraps errors.ErrUnsupported. A range of more than 16
// Mi extents is refused: ask for it in parts.
func (c *Client) Map(ctx context.Context, nbdContext string, off, n int64) ([]blockmap.Extent, error) {
	i := slices.IndexFunc(c.session.contexts, func(s selectedContext) bool { return s.name == nbdContext })
	if i < 0 {
		return nil, c.unsupported("the metadata context " + nbdContext)
	}
	id := c.session.contexts[i].id
	var parts []*[]blockmap.Extent // in order, one for each request
	var room atomic.Int64
	room.Store(maxMap)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(mapPending)
	err := c.each("map", off, n, maxMapRange, func(at, n int64) error {
		part := new([]blockmap.Extent)
		parts = append(parts, part)
		group.Go(func() (err error) {
			if *part, err = c.status(gctx, id, at, n, &room); err != nil {
				err = fmt.Errorf("nbd: map %d bytes at %d: %w", n, at, err)
			}
			return err
		})
		return nil
	})
	if err = cmp.Or(err, group.Wait()); err != nil {
		return nil, err //nolint:wrapcheck // wrapped where it arose
	}
	var found []blockmap.Extent
	for _, part := range parts {
		for _, e := range *part {
			found = blockmap.Append(found, e)
		}
	}
	return found, nil
}

// status is Map for a range that one request can name. What it finds is taken
// off the room.
func (c *Client) status(ctx context.Context, nbdContext uint32, at, n int64, room *atomic.Int64) ([]blockmap.Extent, error) {
	var found []blockmap.Extent
	for end := at + n; at < end; {
		if room.Load() <= 0 {
			return nil, fmt.Errorf("more than %d extents: ask for a smaller range", maxMap)
		}
		k := &call{command: cmdBlockStatus, off: at, context: nbdContext, room: room}
		if err := c.link().do(ctx, k, 0, uint32(end-at), nil); err != nil { //nolint:gosec // at most maxMapRange
			return nil, err
		}
		for _, e := range blockmap.Clip(k.extents, at, end-at) {
			found = blockmap.Append(found, e)
			at = e.End() // a status has at least one extent, so this moves on
		}
	}
	return found, nil
}

// Close says goodbye to the server and ends the client. Requests on their way
// fail with ErrClosed.
func (c *Client) Close() error {
	var errs []error
	for _, l := range c.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// link picks the connection for the next request.
func (c *Client) link() *link {
	if len(c.links) == 1 {
		return c.links[0]
	}
	return c.links[int(c.turn.Add(1))%len(c.links)]
}

// change is each for what a read-only export refuses.
func (c *Client) change(op string, off, n, most int64, fn func(off, n int64) error) error {
	if c.ReadOnly() {
		return fmt.Errorf("nbd: %s %d bytes at %d: the export is read-only: %w", op, n, off, EPERM)
	}
	return c.each(op, off, n, most, fn)
}

// each checks a range and calls fn for parts of it, of at most the given length,
// in order.
func (c *Client) each(op string, off, n, most int64, fn func(off, n int64) error) error {
	fail := func(err error) error { return fmt.Errorf("nbd: %s %d bytes at %d: %w", op, n, off, err) }
	block := c.session.blocks.Minimum
	switch {
	case off < 0 || n < 0 || off > c.Size() || n > c.Size()-off:
		return fail(fmt.Errorf("beyond the export's %d bytes: %w", c.Size(), EINVAL))
	case off%block != 0 || n%block != 0:
		return fail(fmt.Errorf("not a multiple of the %d bytes that the server asks for: %w", block, EINVAL))
	}
	most = max(most-most%block, block)
	for at, end := off, off+n; at < end; at += most {
		if err := fn(at, min(most, end-at)); err != nil {
			return fail(err)
		}
	}
	return nil
}

func (c *Client) unsupported(what string) error {
	return fmt.Errorf("nbd: the server does not offer %s: %w", what, errors.ErrUnsupported)
}
