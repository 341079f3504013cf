package volume

import (
	"sync"
	"sync/atomic"
	"unsafe"
)

// gate is a shared/exclusive lock whose shared side is two uncontended atomic
// additions. Writers pass it on every request; the exclusive side (snapshot,
// resize) is rare and waits until all writers inside have left.
//
// A writer counts itself into one of the padded shards and out of any shard:
// only the sums matter. The exclusive side first raises closed, then adds up the
// exits and after that the entries. An entry that the sum misses happened after
// closed was raised, so that writer sees it and turns back; and every exit that
// was added up has its entry added up too. Equal sums therefore mean that nobody
// is inside.
//
// Go has no number of the CPU, so the shard is a hash of the stack's address:
// one goroutine serves one connection and so keeps to one shard.
type gate struct {
	closed atomic.Bool
	excl   sync.RWMutex  // held for writing while closed; turned-back writers wait for it
	left   chan struct{} // capacity 1: somebody left while closed
	shards [gateShards]gateShard
}

const gateShards = 32

// gateShard fills two cache lines, because processors fetch lines in pairs.
type gateShard struct {
	in  atomic.Uint64
	out atomic.Uint64
	_   [112]byte
}

func (g *gate) init() { g.left = make(chan struct{}, 1) }

func (g *gate) shard() *gateShard {
	var here byte
	// Goroutine stacks are powers of two of at least 2 KiB; the address is only hashed, never followed.
	a := uint64(uintptr(unsafe.Pointer(&here))) >> 11
	return &g.shards[(a*0x9E3779B97F4A7C15)>>(64-5)]
}

// enter admits a writer; it waits while the gate is held exclusively.
func (g *gate) enter() {
	s := g.shard()
	for {
		s.in.Add(1)
		if !g.closed.Load() {
			return
		}
		g.leave()
		g.excl.RLock()
		g.excl.RUnlock() //nolint:staticcheck // waits for the exclusive holder, protects nothing
	}
}

// leave lets a writer out.
func (g *gate) leave() {
	g.shard().out.Add(1)
	if g.closed.Load() {
		select {
		case g.left <- struct{}{}:
		default:
		}
	}
}

// lock takes the gate exclusively: no writer is inside when it returns.
func (g *gate) lock() {
	g.excl.Lock()
	g.closed.Store(true)
	for !g.empty() {
		<-g.left
	}
}

func (g *gate) unlock() {
	g.closed.Store(false)
	g.excl.Unlock()
}

// traffic returns how often writers have entered, and whether one that had
// entered before the call is still inside.
func (g *gate) traffic() (entered uint64, inside bool) {
	entered, left := g.sums()
	return entered, entered != left
}

func (g *gate) empty() bool {
	in, out := g.sums()
	return in == out
}

// sums adds up the exits, and after that the entries.
func (g *gate) sums() (in, out uint64) {
	for i := range g.shards {
		out += g.shards[i].out.Load()
	}
	for i := range g.shards {
		in += g.shards[i].in.Load()
	}
	return in, out
}
