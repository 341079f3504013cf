package nbd

import "sync"

const (
	// maxInFlight is how many deferred requests a connection may have.
	maxInFlight = 64
	// laneMemory is how much memory they may hold together.
	laneMemory = 16 << 20
)

// inDevices bounds the goroutines that are inside devices, over all servers of
// the process: each may hold a thread of the operating system, and the Go
// runtime gives up at 10,000.
var inDevices = make(chan struct{}, 4096)

// lane is the deferred requests of one connection. Its memory comes out of the
// budget that all connections share; but when the lane is empty the next request
// may always enter, so that no connection ever waits for another.
type lane struct {
	shared *budget

	mu      sync.Mutex
	left    sync.Cond // signaled when a request leaves
	running int
	memory  int64
}

// grant is room for one deferred request.
type grant struct {
	memory int64
	shared int64 // the part of it that must go back to the budget
}

func (l *lane) init(shared *budget) {
	l.shared, l.left.L = shared, &l.mu
}

// try makes room for one more request if that needs no waiting.
func (l *lane) try(memory int64) (grant, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.admit(memory)
}

// enter waits for room.
func (l *lane) enter(memory int64) grant {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if g, ok := l.admit(memory); ok {
			return g
		}
		l.left.Wait()
	}
}

func (l *lane) admit(memory int64) (grant, bool) {
	g := grant{memory: memory}
	switch {
	case l.running >= maxInFlight:
		return grant{}, false
	case memory == 0:
	case l.memory+memory <= laneMemory && l.shared.try(memory):
		g.shared = memory
	case l.memory > 0:
		return grant{}, false
	}
	l.running++
	l.memory += memory
	return g, true
}

// idle reports whether no request is deferred.
func (l *lane) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running == 0
}

// start runs fn with the room that was granted.
func (l *lane) start(g grant, fn func()) {
	go func() {
		inDevices <- struct{}{}
		defer func() {
			<-inDevices
			l.leave(g)
		}()
		fn()
	}()
}

// leave gives room back.
func (l *lane) leave(g grant) {
	if g.shared > 0 {
		l.shared.give(g.shared)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	l.memory -= g.memory
	l.left.Broadcast()
}

// wait returns when the lane is empty. Nothing may enter meanwhile.
func (l *lane) wait() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.running > 0 {
		l.left.Wait()
	}
}
