package nbd

import (
	"sync/atomic"
	"time"
)

const (
	// A request that takes longer than this, and a nanosecond for each byte, has
	// waited for something: a preimage, a log, a disk that cannot keep up – or for
	// its processor, which is nothing that deferring it would help against.
	slowRequest = 500 * time.Microsecond
	// So a slow one counts for as much as this many others that were not, and what
	// follows is deferred only when there have been two for less than that.
	slowWeight = 8
	// slowBegin, and a nanosecond for each byte, is what a device's BeginWrite takes at most
	// that waits for nothing: it may copy, but takes a processor for so short a time that
	// it is hardly ever there that this is lost.
	slowBegin = 100 * time.Microsecond
	// verySlow is longer than anybody waits for a processor, and counts at once.
	verySlow = 20 * time.Millisecond
	// slowSpell is how many of the following ones are then deferred.
	slowSpell = 64
)

// patience is whether a connection's loop does requests of a kind itself, of which it cannot
// know whether they wait for something. Only the loop uses it, but for lose.
type patience struct {
	slow  int          // slowWeight for each slow one, less the others since, and at most twice that
	spell atomic.Int32 // of requests still to be deferred
}

// lost reports whether to defer the next request.
func (p *patience) lost() bool {
	if p.spell.Load() == 0 {
		return false
	}
	p.spell.Add(-1)
	return true
}

// took notes how long a request of n bytes has kept the loop, or a part of it. After a spell
// the first slow one begins another.
func (p *patience) took(d time.Duration, n int) {
	if d <= slowRequest+time.Duration(n) {
		p.slow = max(0, p.slow-1)
		return
	}
	p.slow = min(p.slow+slowWeight, 2*slowWeight)
	if p.slow > slowWeight || d > verySlow {
		p.lose()
	}
}

// lose begins a spell, or has the one that is go on: a request has waited for the device, in
// the loop or behind it.
func (p *patience) lose() { p.spell.Store(slowSpell) }
