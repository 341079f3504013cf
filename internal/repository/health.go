package repository

import (
	"sync"
	"time"
)

// strikesAside is how many reads in a row have to go wrong, other than by the
// store being down, before it is not read from for a while: a single damaged
// shard says nothing about the rest.
const strikesAside = 3

// health remembers whether a store is worth reading from. A reader with other
// stores to read from must not pay for a broken one at every read.
type health struct {
	mu      sync.Mutex
	until   time.Time // aside until then
	strikes int
}

func (h *health) aside(now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return now.Before(h.until)
}

// worked notes a read that was right.
func (h *health) worked() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.strikes = 0
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
	if h.strikes++; h.strikes >= strikesAside {
		h.until = now.Add(d)
		h.strikes = 0
	}
}
