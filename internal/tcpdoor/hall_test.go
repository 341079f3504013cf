package tcpdoor

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// fakeConn is a connection from an address.
type fakeConn struct {
	net.Conn
	from   string
	closed bool
}

func (c *fakeConn) RemoteAddr() net.Addr { return fakeAddr(c.from) }

func (c *fakeConn) Close() error {
	c.closed = true
	return nil
}

type fakeAddr string

func (fakeAddr) Network() string  { return "tcp" }
func (a fakeAddr) String() string { return string(a) }

func TestSite(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.0.1:7":               "10.0.0.1",
		"[::ffff:10.0.0.1]:7":      "10.0.0.1",
		"[2001:db8:1:2:3:4:5:6]:7": "2001:db8:1:2::/64",
		"[fe80::1%eth0]:7":         "fe80::/64",
		"@":                        "@",
	} {
		if got := site(fakeAddr(addr)); got != want {
			t.Errorf("%s counts as %s, want %s", addr, got, want)
		}
	}
	if got := site(nil); got != "" {
		t.Errorf("no address counts as %q", got)
	}
}

func TestOpenConnectionsAreBounded(t *testing.T) {
	h := newHall(bounds{greeting: 10, site: 10, open: 3, client: 2})
	enter := func() *conn { c, _ := h.enter(&fakeConn{from: "10.0.0.1:1"}); return c }
	admit := func(c *conn, client, want string) {
		t.Helper()
		if err := c.admit(client); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s is let in: %v, want %q", client, err, want)
		}
	}
	first, second, third := enter(), enter(), enter()
	admit(first, "a", "")
	admit(second, "a", "")
	admit(third, "a", `certificate "a" has 2 connections here`)
	admit(third, "b", "")
	fourth := enter()
	admit(fourth, "c", "3 connections are open here")
	third.retract() // its export could not be opened
	admit(fourth, "c", "")
	admit(third, "b", "3 connections are open here")
	for range 2 { // once by the server, once by somebody else
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
	}
	admit(third, "b", "")
	if err := first.admit("a"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("one that has ended is let in: %v", err)
	}
	first.retract()
	if h.open != 3 || len(h.greeting) != 0 || fmt.Sprint(h.clients) != "map[a:1 b:1 c:1]" {
		t.Errorf("%d open of %v, %d greeting", h.open, h.clients, len(h.greeting))
	}
}

// Whoever floods the door ends only connections that have no export, its own oldest
// first, and the oldest of all when all together are too many.
func TestHall(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := bounds{greeting: 6, site: 3, open: 5, client: 3}
		h := newHall(b)
		var waiting, inside []*conn // in the order of their coming
		closed := func(c *conn) bool { return c.Conn.(*fakeConn).closed }
		pick := func(l *[]*conn) *conn {
			i := rapid.IntRange(0, len(*l)-1).Draw(t, "which")
			c := (*l)[i]
			*l = slices.Delete(*l, i, i+1)
			return c
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			switch op := rapid.IntRange(0, 5).Draw(t, "op"); {
			case op <= 2:
				from := fmt.Sprintf("10.0.0.%d:1", rapid.IntRange(1, 4).Draw(t, "from"))
				c, ended := h.enter(&fakeConn{from: from})
				waiting = append(waiting, c)
				own := slices.DeleteFunc(slices.Clone(waiting), func(o *conn) bool { return o.site != c.site })
				victim := (*conn)(nil)
				if len(own) > b.site {
					victim = own[0]
				} else if len(waiting) > b.greeting {
					victim = waiting[0]
				}
				if ended != victim {
					t.Fatal("another connection was ended than should be")
				}
				for _, o := range waiting {
					if closed(o) != (o == victim) {
						t.Fatalf("connection from %s closed: %v, want %v", o.site, closed(o), o == victim)
					}
				}
				waiting = slices.DeleteFunc(waiting, closed)
			case op == 3 && len(waiting) > 0:
				c := pick(&waiting)
				client := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "client")
				n := len(slices.DeleteFunc(slices.Clone(inside), func(o *conn) bool { return o.client != client }))
				err := c.admit(client)
				if want := n < b.client && len(inside) < b.open; (err == nil) != want {
					t.Fatalf("%s with %d of %d is let in: %v", client, n, len(inside), err)
				}
				switch {
				case err != nil:
					_ = c.Close() // a fake's never fails
				case rapid.Bool().Draw(t, "opened"):
					inside = append(inside, c)
				default:
					c.retract()
					waiting = append(waiting, c)
				}
			case op == 4 && len(waiting) > 0:
				_ = pick(&waiting).Close() // as above
			case op == 5 && len(inside) > 0:
				_ = pick(&inside).Close() // as above
			}
			if slices.ContainsFunc(inside, closed) {
				t.Fatal("an open connection was ended for another")
			}
			if h.open != len(inside) || !slices.Equal(h.greeting, waiting) {
				t.Fatalf("the hall has %d open and %d greeting, want %d and %d", h.open, len(h.greeting), len(inside), len(waiting))
			}
		}
	})
}
