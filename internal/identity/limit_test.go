package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	l, c := newLimiter(), newClock()
	wait := func(name string, addr netip.Addr) time.Duration {
		t.Helper()
		err := l.check(name, addr, c.Now())
		if err == nil {
			return 0
		}
		e, ok := asError(err)
		if !ok || e.Status != http.StatusTooManyRequests || e.RetryAfter <= 0 {
			t.Fatal(err)
		}
		return e.RetryAfter
	}
	expect := func(name string, addr netip.Addr, want time.Duration) {
		t.Helper()
		if got := wait(name, addr); got != want {
			t.Fatalf("%s from %s waits %v, want %v", name, addr, got, want)
		}
	}
	for range limitFree {
		expect("u", a, 0)
		l.failed("u", a, c.Now())
	}
	expect("u", a, 0)
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300} {
		want := time.Duration(seconds) * time.Second
		l.failed("u", a, c.Now())
		expect("u", a, want)
		expect("x", a, want)                   // the address is closed for all names
		expect("u", b, min(want, maxWaitName)) // the name for all addresses, for a short time
		expect("y", b, 0)                      // nobody else is
		expect("u", netip.Addr{}, min(want, maxWaitName))
		c.turn(want)
		expect("u", a, 0)
	}
	// A place where the user has been is open all the same.
	l.succeeded("u", b, c.Now())
	l.failed("u", a, c.Now())
	expect("u", b, 0)
	for range limitFree + 1 {
		l.failed("u", b, c.Now())
	}
	expect("u", b, time.Second)
	expect("other", b, 0)
	for range 20 {
		l.failed("u", b, c.Now())
	}
	expect("u", b, maxWaitKnown)
	// A right password elsewhere does not open the address for guesses at others.
	l.succeeded("attacker", a, c.Now())
	expect("attacker", a, 0)
	expect("u", a, maxWaitAddr)
	// All is forgotten in time.
	c.turn(limitForget + maxWaitAddr)
	l.failed("u", a, c.Now())
	expect("u", a, 0)
	c.turn(limitKnown)
	for range limitFree + 20 {
		l.failed("u", netip.MustParseAddr("10.9.9.9"), c.Now())
	}
	expect("u", b, maxWaitName)
}

// Whoever guesses from everywhere does not keep a user out of where they always are,
// nor anybody for long.
func TestNobodyIsLockedOut(t *testing.T) {
	l, c := newLimiter(), newClock()
	home, hotel := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	l.succeeded("u", home, c.Now())
	for i := range 20000 {
		from := netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)})
		if l.check("u", from, c.Now()) == nil {
			l.failed("u", from, c.Now())
		}
		if err := l.check("u", home, c.Now()); err != nil {
			t.Fatalf("attempt %d: %v", i, err)
		}
		if i%100 == 0 {
			c.turn(time.Second)
		}
	}
	c.turn(maxWaitName)
	if err := l.check("u", hotel, c.Now()); err != nil {
		t.Fatal(err)
	}
}

// Memory is bounded, however many names and addresses there are.
func TestLimiterIsBounded(t *testing.T) {
	l, c := newLimiter(), newClock()
	for i := range 3 * limitEntries {
		addr := netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)})
		l.failed(strconv.Itoa(i), addr, c.Now())
		l.succeeded(strconv.Itoa(i), addr, c.Now())
	}
	if n := []int{len(l.addrs.items), len(l.names.items), len(l.known.items), l.known.order.Len()}; n[0] > limitEntries || n[1] > limitEntries || n[2] != limitEntries || n[3] != limitEntries {
		t.Fatalf("%v entries", n)
	}
}

// Who logs in from everywhere makes the places of nobody else be forgotten.
func TestPlacesOfOthersStay(t *testing.T) {
	l, c := newLimiter(), newClock()
	home := netip.MustParseAddr("10.0.0.1")
	l.succeeded("u", home, c.Now())
	for i := range 3 * limitEntries {
		l.succeeded("attacker", netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), c.Now())
	}
	if l.knownPlace("u", home, c.Now()) == nil {
		t.Fatal("forgotten")
	}
	if places, _ := l.known.get("attacker"); len(places.items) != limitPlaces {
		t.Fatalf("%d places are kept", len(places.items))
	}
}

func TestSource(t *testing.T) {
	for remote, want := range map[string]string{
		"10.0.0.1:5": "10.0.0.1", "[::ffff:10.0.0.1]:5": "10.0.0.1", "[2001:db8:1:2:3:4:5:6]:7": "2001:db8:1:2::", "[fe80::1%eth0]:7": "fe80::", "@": "invalid IP", "": "invalid IP",
	} {
		if got := source(&http.Request{RemoteAddr: remote}).String(); got != want {
			t.Errorf("%s: %s, want %s", remote, got, want)
		}
	}
}

func TestTooManyWrongPasswords(t *testing.T) {
	r := newRig(t)
	var a *answer
	for range limitFree + 1 {
		if a = r.do(t, "POST", tokens, auth("demo", "wrong", "")); a.status != http.StatusUnauthorized {
			t.Fatalf("%d %s", a.status, a.text)
		}
	}
	// By ID it is the same user; the right password does not help now.
	byID := fmt.Sprintf(`{"auth":{"identity":{"methods":["password"],"password":{"user":{"id":%q,"password":%q}}}}}`, r.ids["user demo"], secret)
	for _, body := range []string{auth("demo", secret, ""), byID} {
		if a = r.do(t, "POST", tokens, body); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "1" || a.at("error/title") != "Too Many Requests" {
			t.Fatalf("%d %v %s", a.status, a.header, a.text)
		}
	}
	r.clock.turn(time.Second)
	if a = r.do(t, "POST", tokens, byID); a.status != http.StatusCreated {
		t.Fatalf("%d %s", a.status, a.text)
	}
}

// Many guesses at once get no further than one after the other.
func TestGuessesAtOnce(t *testing.T) {
	r := newRig(t)
	tried := make(chan struct{}, 100)
	var wg sync.WaitGroup
	for range 60 {
		wg.Go(func() {
			_, _, err := r.login(context.WithoutCancel(t.Context()), attempt{name: "demo", password: []byte("wrong")})
			if errors.Is(err, ErrUnauthorized) {
				tried <- struct{}{}
			}
		})
	}
	wg.Wait()
	if n := len(tried); n < limitFree || n > limitFree+maxHashing {
		t.Fatalf("%d passwords were tried", n)
	}
}

// Log-ins that wait are bounded in number, and each gives up in time.
func TestHashingIsBounded(t *testing.T) {
	h := newHashing()
	for range maxHashing {
		must(t, h.begin(t.Context()))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range maxWaiting {
		wg.Go(func() {
			if err := h.begin(ctx); !errors.Is(err, ErrUnavailable) {
				t.Error(err)
			}
		})
	}
	for len(h.waiting) < maxWaiting {
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("they do not wait")
		}
	}
	if err := h.begin(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	cancel()
	wg.Wait()
	h.end()
	must(t, h.begin(t.Context()))
}
