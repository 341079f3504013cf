package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	defaultDialTimeout = 30 * time.Second
	// silentTime is how long the machine of a server may be silent before a client
	// that may reconnect gives its connection up.
	silentTime = 30 * time.Second
)

// longAgo, as a deadline, wakes whatever is blocked on a connection.
var longAgo = time.Unix(1, 0)

// Dial connects to the export that uri names and negotiates. The context only
// bounds that; it does not end the client. URIs are those of the NBD project:
//
//	nbd://HOST[:PORT]/NAME
//	nbd+unix:///NAME?socket=PATH
//	nbds://HOST[:PORT]/NAME?tls-certificates=DIR
//	nbds+unix:///NAME?socket=PATH&tls-hostname=NAME&tls-certificates=DIR
//
// The latter two speak TLS or fail; no server can talk them out of it, and none
// can talk the former into it. DIR holds ca-cert.pem, and client-cert.pem with
// client-key.pem if the server wants them; without it the authorities that the
// system trusts are asked about the server. Its certificate must be for HOST or
// tls-hostname, unless tls-verify-peer=0.
func Dial(ctx context.Context, uri string, o ClientOptions) (*Client, error) {
	e, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	c := &Client{o: o, endpoint: e, closing: make(chan struct{}), redialing: make(chan struct{}, 1)}
	if c.links, err = c.connect(ctx); err != nil {
		return nil, fmt.Errorf("nbd: connect to %s: %w", uri, err)
	}
	c.session = c.links.all[0].session
	return c, nil
}

// connect makes all connections of a client.
func (c *Client) connect(parent context.Context) (*links, error) {
	ctx, cancel := context.WithTimeout(parent, c.o.dialTimeout())
	defer cancel()
	s := new(links)
	for {
		l, err := c.dialLink(ctx)
		if err == nil {
			s.all = append(s.all, l)
			if !l.session.same(s.all[0].session) {
				err = errors.New("the server described the export differently on another connection")
			}
		}
		if err != nil {
			closeQuietly(s)
			if ctx.Err() != nil && parent.Err() == nil {
				err = fmt.Errorf("no answer within %v (%w)", c.o.dialTimeout(), err)
			}
			return nil, err
		}
		if l.session.flags&flagCanMultiConn == 0 || len(s.all) >= c.o.Conns {
			return s, nil
		}
	}
}

// dialLink makes one connection and negotiates on it.
func (c *Client) dialLink(ctx context.Context) (*link, error) {
	var l *link
	err := withConn(ctx, c.endpoint, c.o.TLS, func(g *greeter, socket net.Conn) error {
		s, err := g.choose(c.endpoint.export, c.o.Contexts)
		if err != nil {
			return err
		}
		if raw := rawConn(socket); raw != nil {
			raiseSendBuffer(raw)
			if c.o.Reconnect > 0 {
				noticeDeath(raw)
			}
		}
		l = newLink(socket, g.in, s, &c.ledger)
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.start()
	return l, nil
}

// noticeDeath makes a TCP connection end some silentTime after the other machine
// has fallen silent, where the system would wait for a quarter of an hour. It is
// for those who can connect again.
func noticeDeath(raw syscall.RawConn) {
	const probe = silentTime / 6
	_ = raw.Control(func(fd uintptr) { // a unix socket has none of these, and needs none
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silentTime/time.Millisecond))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(2*probe/time.Second))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(probe/time.Second))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4)
	})
}

// withConn dials, greets the server and calls fn, whose use of the connection ends
// with ctx. It closes the connection if any of that fails.
func withConn(ctx context.Context, e endpoint, own *tls.Config, fn func(g *greeter, socket net.Conn) error) error {
	config, err := e.clientTLS(own)
	if err != nil {
		return err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, e.network, e.address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = nc.SetDeadline(longAgo) // a closed connection is awake already
	})
	g := greeter{in: input{nc: nc}}
	if err = g.begin(ctx, config); err == nil {
		err = explainTLS(fn(&g, nc), config)
	}
	if !stop() && err == nil || err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		closeQuietly(nc)
	}
	return err
}

// ExportInfo is an export as a server lists it.
type ExportInfo struct{ Name, Description string }

// List returns the exports that the server at uri shows; the name in uri does
// not matter.
func List(ctx context.Context, uri string) ([]ExportInfo, error) {
	e, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, defaultDialTimeout)
	defer cancel()
	var found []ExportInfo
	err = withConn(ctx, e, nil, func(g *greeter, socket net.Conn) error {
		defer closeQuietly(socket)
		var listErr error
		found, listErr = g.list()
		return listErr
	})
	if err != nil {
		return nil, fmt.Errorf("nbd: list the exports of %s: %w", uri, err)
	}
	return found, nil
}
