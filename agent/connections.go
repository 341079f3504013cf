package agent

import (
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// The connections that the agent has at once.
const (
	apiConnections = 256 // of the Block Storage API
	ownConnections = 512 // of its own socket, where commands wait for jobs
)

// connections bounds those of an HTTP server. One more than there may be takes the place
// of the one that has been silent for longest, whether it has never sent a whole header
// or waits between two requests: who opens many and leaves them locks nobody out. While
// all are at work, it waits for one of them.
type connections struct {
	net.Listener
	most int

	mu      sync.Mutex
	changed sync.Cond
	closed  bool
	silent  map[net.Conn]uint64 // and since when, in turns
	working map[net.Conn]struct{}
	turn    uint64
}

// boundConnections returns what srv is to serve, in place of l.
func boundConnections(srv *http.Server, l net.Listener, most int) net.Listener {
	c := &connections{Listener: l, most: most, silent: map[net.Conn]uint64{}, working: map[net.Conn]struct{}{}}
	c.changed.L = &c.mu
	srv.ConnState = c.moved
	return c
}

// Accept waits for a connection, and for its place. The server calls moved for it before
// it calls Accept again.
func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && len(c.silent)+len(c.working) >= c.most {
		if len(c.silent) == 0 {
			c.changed.Wait()
			continue
		}
		c.endOldest()
	}
	if c.closed {
		_ = conn.Close() // nothing was read
		return nil, net.ErrClosed
	}
	return conn, nil
}

// endOldest ends the connection that has been silent for longest; c.mu is held. Its
// descriptor is free at once, and the server notices.
func (c *connections) endOldest() {
	var oldest net.Conn
	for conn, turn := range c.silent {
		if oldest == nil || turn < c.silent[oldest] {
			oldest = conn
		}
	}
	delete(c.silent, oldest)
	if t, ok := oldest.(*tls.Conn); ok {
		oldest = t.NetConn() // a farewell could wait for the other side
	}
	_ = oldest.Close()
}

// moved is for [http.Server.ConnState].
func (c *connections) moved(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.silent, conn)
	delete(c.working, conn)
	switch state {
	case http.StateNew, http.StateIdle:
		c.turn++
		c.silent[conn] = c.turn
	case http.StateActive:
		c.working[conn] = struct{}{}
	case http.StateHijacked, http.StateClosed: // nothing is held of it
	}
	c.changed.Signal()
}

// Close ends Accept, also while it waits for a place.
func (c *connections) Close() error {
	c.mu.Lock()
	c.closed = true
	c.changed.Signal()
	c.mu.Unlock()
	return c.Listener.Close()
}
