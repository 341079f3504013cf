package nbd

import (
	"errors"
	"sync"
)

// ErrUnflushed is what Flush returns once a connection was lost, and made again,
// while changes had been answered that no flush had covered. The server may have
// been started anew without them, and nothing in the protocol would tell.
var ErrUnflushed = errors.New("nbd: a connection was lost with changes that no flush had covered, " +
	"so that the server may have lost them: connect again and write what came after the last flush once more")

// ledger knows which of a client's changes are durable by the server's word.
type ledger struct {
	mu      sync.Mutex
	done    uint64 // changes that were answered
	flushed uint64 // how many of them a flush has covered
	lost    bool   // a connection ended while others were left
}

// answered notes what the server says that it has done.
func (g *ledger) answered(c *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case c.volatile():
		g.done++
	case c.command == cmdFlush:
		g.flushed = max(g.flushed, c.covers)
	}
}

// now returns how many changes a flush that is sent now would cover.
func (g *ledger) now() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.done
}

// cut notes the end of a connection. All its answers have been noted.
func (g *ledger) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lost = g.lost || g.flushed < g.done
}

// doubtful reports whether changes may be lost.
func (g *ledger) doubtful() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lost
}
