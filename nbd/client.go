package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"time"
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
	// TLS is how to speak TLS where the URI asks for it (nbds), in the place of
	// tls-certificates in the URI. Without a ServerName the URI's host is verified.
	// Versions below 1.2 are not spoken. Other URIs do not use it.
	TLS *tls.Config
	// Reconnect is for how long a request is tried over new connections once its
	// connection is lost, or the server says that it shuts down. 0 is not at all:
	// the client ends with its connection. See Client for what that can promise.
	Reconnect time.Duration
}

func (o ClientOptions) dialTimeout() time.Duration {
	if o.DialTimeout <= 0 {
		return defaultDialTimeout
	}
	return o.DialTimeout
}

// Client reads and writes one export of a server. All methods may be called
// from many goroutines at once; requests are sent without waiting for others.
//
// A method returns when its whole range is done, or with the first error. An
// error that wraps an Error is the server's answer to this request. After any
// other error of a connection the client is of no more use, unless it may
// reconnect: every later request fails with the same error, and a new client has
// to be dialed.
//
// # Reconnecting
//
// With ClientOptions.Reconnect a request whose connection ended before its answer
// is sent again over a new one. The export must still have the same size, be as
// writable, and the server able to do all that it could, else this client has
// ended; that the same disk is behind it is for the caller to know. A server that breaks the protocol is not
// given a second chance.
//
// Nothing in the protocol tells a server that was started anew from one that was
// there all the time. So this is what holds:
//
//   - What a flush has covered, and what was written with fua, is durable, as the
//     server has promised.
//   - Changes that were answered, but not covered by a flush when the connection
//     was lost, may be gone with the server. They are not sent again, as nobody
//     has kept them. Flush, and WriteAt with fua where it needs a flush, return
//     ErrUnflushed from then on, also when the server happens to have lost
//     nothing. Reads go on, and so do writes, for whoever writes with fua only.
//   - A change that was not answered is sent again. The server may so do it twice;
//     if it outlived the connection it may do the first late, even after later
//     requests. Whoever writes a range again, with other data, before the next
//     flush must not use Reconnect. A restore that writes every block once may.
type Client struct {
	o        ClientOptions
	endpoint endpoint
	session  *session
	ledger   ledger

	mu     sync.Mutex
	links  *links
	closed bool

	closing   chan struct{} // closed when the client is
	redialing chan struct{} // held by who connects again, and guards what follows
	dialed    time.Time     // the last attempt
	pause     time.Duration // until the next
	moved     error         // why there is no connecting again any more
}

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

// CanFastZero reports whether the server can tell whether zeros are cheap: see
// ZeroFast.
func (c *Client) CanFastZero() bool { return c.CanZero() && c.has(flagSendFastZero) }

// Conns is the number of connections.
func (c *Client) Conns() int { return len(c.current().all) }

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
		k := &call{command: cmdRead, off: at, n: n, p: p[at-off : at-off+n]}
		return c.do(ctx, k)
	})
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
	if err := inParts(off, n, max(most-most%block, block), fn); err != nil {
		return fail(err)
	}
	return nil
}

// inParts calls fn for parts of a range, in order, up to the first error.
func inParts(off, n, most int64, fn func(off, n int64) error) error {
	for end := off + n; off < end; {
		part := min(most, end-off)
		if err := fn(off, part); err != nil {
			return err
		}
		off += part
	}
	return nil
}

// Close says goodbye to the server and ends the client. Requests on their way
// fail with ErrClosed.
func (c *Client) Close() error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.closing)
	}
	s := c.links
	c.mu.Unlock()
	return s.Close()
}

func (c *Client) unsupported(what string) error {
	return fmt.Errorf("nbd: the server does not offer %s: %w", what, errors.ErrUnsupported)
}
