package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

const defaultDialTimeout = 30 * time.Second

// longAgo, as a deadline, wakes whatever is blocked on a connection.
var longAgo = time.Unix(1, 0)

// Dial connects to the export that uri names, nbd+unix:///NAME?socket=PATH or
// nbd://HOST[:PORT]/NAME, and negotiates. The context only bounds that; it does
// not end the client.
func Dial(ctx context.Context, uri string, o ClientOptions) (*Client, error) {
	e, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = defaultDialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, o.DialTimeout)
	defer cancel()
	first, err := dialLink(ctx, e, o.Contexts)
	if err != nil {
		return nil, fmt.Errorf("nbd: connect to %s: %w", uri, err)
	}
	c := &Client{session: first.session, links: []*link{first}}
	for c.session.flags&flagCanMultiConn != 0 && len(c.links) < o.Conns {
		l, err := dialLink(ctx, e, o.Contexts)
		if err == nil && !l.session.same(c.session) {
			closeQuietly(l)
			err = errors.New("the server described the export differently on another connection")
		}
		if err != nil {
			closeQuietly(c)
			return nil, fmt.Errorf("nbd: connect to %s: %w", uri, err)
		}
		c.links = append(c.links, l)
	}
	return c, nil
}

// dialLink makes one connection and negotiates on it.
func dialLink(ctx context.Context, e endpoint, contexts []string) (*link, error) {
	var l *link
	err := withConn(ctx, e, func(nc net.Conn) error {
		h := greeter{in: input{nc: nc}}
		s, err := h.choose(e.export, contexts)
		if err != nil {
			return err
		}
		if raw := rawConn(nc); raw != nil {
			raiseSendBuffer(raw)
		}
		l = newLink(nc, h.in, s)
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.start()
	return l, nil
}

// withConn dials and calls fn, whose use of the connection ends with ctx. It
// closes the connection if either fails.
func withConn(ctx context.Context, e endpoint, fn func(net.Conn) error) error {
	var d net.Dialer
	nc, err := d.DialContext(ctx, e.network, e.address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = nc.SetDeadline(longAgo) // a closed connection is awake already
	})
	err = fn(nc)
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
	err = withConn(ctx, e, func(nc net.Conn) error {
		h := greeter{in: input{nc: nc}}
		defer closeQuietly(nc)
		var listErr error
		found, listErr = h.list()
		return listErr
	})
	if err != nil {
		return nil, fmt.Errorf("nbd: list the exports of %s: %w", uri, err)
	}
	return found, nil
}
