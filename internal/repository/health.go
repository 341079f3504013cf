package repository

import (
	"sync"
	"time"
)

// strikesAside is how many reads have to bring wrong bytes within a while before
// the store is not read from for as long: a single damaged shard says nothing
// about the rest.
const strikesAside = 3

// lateAside is how many reads in a row a store must be too slow for before it is
// not read from for a while.
const lateAside = 3

// health remembers whether a store is worth reading from. A reader with other
// stores to read from must not pay for a broken one at every read.
type health struct {
	mu      sync.Mutex
	until   time.Time // aside until then
	strikes int
	struck  time.Time // when it last lied
	late    int       // reads in a row that others did in its place
}

func (h *health) aside(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Before(h.until)
}

// failed notes that the store did not answer.
func (h *health) failed(now time.Time, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.until = now.Add(d)
	h.strikes = 0
}

// lied notes bytes that are not what was stored.
func (h *health) lied(now time.Time, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Sub(h.struck) > d {
		h.strikes = 0 // long ago
	}
	h.struck = now
	if h.strikes++; h.strikes >= strikesAside {
		h.until = now.Add(d)
		h.strikes = 0
	}
}

// answered notes that the store answered a read in time.
func (h *health) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.late = 0
}

// overtaken notes that other stores were quicker with what they had to compute.
func (h *health) overtaken(now time.Time, d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.late++; h.late >= lateAside {
		h.until = now.Add(d)
		h.late = 0
	}
}
