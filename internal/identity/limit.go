package identity

import (
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// limiter slows down whoever guesses passwords.
//
// Wrong passwords are counted by source address (an IPv6 network of 64 bits is one)
// and by user name, whether there is such a user or not. Behind ten of either, each
// further one closes the address for twice as long, from a second up to five minutes,
// and the name for up to fifteen seconds. Where a user has logged in within the last
// thirty days, neither counts: that user from that address has a count of their own,
// with up to a minute. So whoever guesses from elsewhere can delay a user who logs in
// from a new place, a quarter of a minute at a time, and never one who is where they
// always are; and who guesses many names from one address is stopped for all of them.
// A count is forgotten a quarter of an hour after its last failure. Attempts while it
// is closed are refused unseen and not counted.
//
// Each list keeps the 4096 that were last used, and of a user the 16 addresses. Behind
// a proxy all clients have one address; it should limit by itself.
type limiter struct {
	mu    sync.Mutex
	addrs *recent[netip.Addr, *failures]
	names *recent[string, *failures]
	known *recent[string, *recent[netip.Addr, *failures]] // where users have logged in
}

// failures counts wrong passwords.
type failures struct {
	count   int
	last    time.Time // of the last one
	until   time.Time // closed until then
	success time.Time // of the last right one, where that is known
}

const (
	limitEntries = 4096
	limitPlaces  = 16
	limitFree    = 10
	limitForget  = 15 * time.Minute
	limitKnown   = 30 * 24 * time.Hour

	maxWaitAddr  = 5 * time.Minute
	maxWaitName  = 15 * time.Second
	maxWaitKnown = time.Minute
)

func newLimiter() *limiter {
	return &limiter{
		addrs: newRecent[netip.Addr, *failures](limitEntries),
		names: newRecent[string, *failures](limitEntries),
		known: newRecent[string, *recent[netip.Addr, *failures]](limitEntries),
	}
}

// source is the address that a request counts for.
func source(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // a unix socket: one source for all
	}
	addr := ap.Addr().Unmap().WithZone("")
	if addr.Is6() {
		if p, err := addr.Prefix(64); err == nil {
			addr = p.Addr()
		}
	}
	return addr
}

// check refuses an attempt, with ErrTooMany, as long as it is too early for one.
func (l *limiter) check(name string, addr netip.Addr, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var until time.Time
	if k := l.knownPlace(name, addr, now); k != nil {
		until = k.until
	} else {
		if f, ok := l.addrs.get(addr); ok {
			until = f.until
		}
		if f, ok := l.names.get(name); ok && f.until.After(until) {
			until = f.until
		}
	}
	wait := until.Sub(now)
	if wait <= 0 {
		return nil
	}
	seconds := int64((wait + time.Second - 1) / time.Second)
	e := refuse(http.StatusTooManyRequests, "Too many wrong passwords: try again in %d seconds.", seconds)
	e.RetryAfter = time.Duration(seconds) * time.Second
	return e
}

func (l *limiter) knownPlace(name string, addr netip.Addr, now time.Time) *failures {
	places, ok := l.known.get(name)
	if !ok {
		return nil
	}
	f, ok := places.get(addr)
	if !ok || now.Sub(f.success) > limitKnown {
		return nil
	}
	return f
}

// failed counts a wrong password.
func (l *limiter) failed(name string, addr netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.knownPlace(name, addr, now); k != nil {
		k.add(now, maxWaitKnown)
		return
	}
	count(l.addrs, addr, now, maxWaitAddr)
	count(l.names, name, now, maxWaitName)
}

func count[K comparable](r *recent[K, *failures], key K, now time.Time, most time.Duration) {
	f, ok := r.get(key)
	if !ok {
		f = &failures{}
		r.put(key, f)
	}
	f.add(now, most)
}

func (f *failures) add(now time.Time, most time.Duration) {
	if now.Sub(f.last) > limitForget {
		f.count = 0
	}
	f.count++
	f.last = now
	if over := f.count - limitFree; over > 0 {
		wait := most
		if over < 16 { // or it is long beyond most
			wait = min(most, time.Second<<(over-1))
		}
		f.until = now.Add(wait)
	}
}

// succeeded remembers where a user logged in. What others failed at from there, or at
// that name, stays counted.
func (l *limiter) succeeded(name string, addr netip.Addr, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	places, ok := l.known.get(name)
	if !ok {
		places = newRecent[netip.Addr, *failures](limitPlaces)
		l.known.put(name, places)
	}
	places.put(addr, &failures{success: now})
}
