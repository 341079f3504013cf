package agent

import (
	"context"
	"sync"
	"time"
)

// guests counts the connections of one export. A connection counts before it
// may do anything. The zero value is open.
type guests struct {
	mu     sync.Mutex
	n      int
	shut   bool
	inside sync.WaitGroup // n of them
}

// enter admits a connection, which calls leave once; it refuses when the export
// is about to end.
func (g *guests) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return refuse(CodeConflict, "the export is being ended")
	}
	g.n++
	g.inside.Add(1)
	return nil
}

func (g *guests) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	g.inside.Done()
}

func (g *guests) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

// close lets nobody in any more, unless somebody is inside; for those who are
// leaving it waits a moment, because a client that has closed its connection is
// not gone at once.
func (g *guests) close(ctx context.Context) bool {
	const moment, step = time.Second, 10 * time.Millisecond
	for range moment / step {
		g.mu.Lock()
		g.shut = g.n == 0
		shut := g.shut
		g.mu.Unlock()
		if shut || !pause(ctx, step) {
			return shut
		}
	}
	return false
}

// drain lets nobody in any more, and returns when all have left.
func (g *guests) drain() {
	g.mu.Lock()
	g.shut = true
	g.mu.Unlock()
	g.inside.Wait()
}

// open undoes close.
func (g *guests) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}
