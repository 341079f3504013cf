package tcpdoor

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
)

// bounds of the connections of one door.
type bounds struct {
	greeting int // without an export yet, in all
	site     int // of these, from one address
	open     int // with an export, in all
	client   int // of these, of one certificate
}

var defaultBounds = bounds{greeting: 256, site: 16, open: 1024, client: 256}

// hall knows the connections of a door. Each is greeting until its client has
// shown a certificate and got an export; then it is open. One greeting too many
// ends the oldest, of its own address if that has too many, so that neither who
// opens many nor who opens some and says nothing keeps others out: an honest
// client is through in moments. Open ones are never ended for others, so one
// certificate may have only a part of them.
type hall struct {
	bounds bounds

	mu       sync.Mutex
	greeting []*conn // oldest first
	open     int
	clients  map[string]int // open ones by certificate
}

// conn is a connection of a hall. Its fields are guarded by hall.mu.
type conn struct {
	net.Conn
	hall   *hall
	site   string
	client string // whose open connection it is
	state  state
}

type state int

const (
	greeting state = iota
	open
	gone
)

func newHall(b bounds) *hall {
	return &hall{bounds: b, clients: map[string]int{}}
}

// enter takes a new connection in. It returns the one that was ended for it, or nil.
func (h *hall) enter(nc net.Conn) (c, ended *conn) {
	c = &conn{Conn: nc, hall: h, site: site(nc.RemoteAddr())}
	if ended = h.add(c); ended != nil {
		_ = ended.Close() // whoever serves it notices
	}
	return c, ended
}

// add returns the connection that has to go for c, or nil.
func (h *hall) add(c *conn) *conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.greeting = append(h.greeting, c)
	n, oldest := 0, (*conn)(nil)
	for _, o := range h.greeting {
		if o.site == c.site {
			if n++; oldest == nil {
				oldest = o
			}
		}
	}
	switch {
	case n > h.bounds.site:
		return oldest
	case len(h.greeting) > h.bounds.greeting:
		return h.greeting[0]
	}
	return nil
}

// admit makes a connection an open one of the client's, or says why not.
func (c *conn) admit(client string) error {
	h := c.hall
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case c.state == gone:
		return fmt.Errorf("the connection has ended: %w", net.ErrClosed)
	case h.clients[client] >= h.bounds.client:
		return fmt.Errorf("certificate %q has %d connections here, and one may have no more: end some", client, h.clients[client])
	case h.open >= h.bounds.open:
		return fmt.Errorf("%d connections are open here, and there may be no more: end some", h.open)
	}
	h.forget(c)
	c.state, c.client = open, client
	h.open++
	h.clients[client]++
	return nil
}

// retract undoes admit.
func (c *conn) retract() {
	h := c.hall
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.state == open {
		h.forget(c)
		c.state = greeting
		h.greeting = append(h.greeting, c)
	}
}

// Close ends the connection, whose place is free then. It may be called again.
func (c *conn) Close() error {
	c.hall.mu.Lock()
	c.hall.forget(c)
	c.state = gone
	c.hall.mu.Unlock()
	return c.Conn.Close()
}

// forget takes c out of what it counts among; h.mu is held.
func (h *hall) forget(c *conn) {
	switch c.state {
	case greeting:
		if i := slices.Index(h.greeting, c); i >= 0 {
			h.greeting = slices.Delete(h.greeting, i, i+1)
		}
	case open:
		h.open--
		if h.clients[c.client]--; h.clients[c.client] == 0 {
			delete(h.clients, c.client)
		}
	case gone:
	}
}

// site is what counts as one address: of IPv6 the network, of which one host may
// have all addresses.
func site(a net.Addr) string {
	const network = 64
	if a == nil {
		return ""
	}
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if p, err := ip.Prefix(network); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
