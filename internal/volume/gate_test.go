package volume

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestGateExcludes(t *testing.T) {
	var g gate
	g.init()
	var inside atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				g.enter()
				if inside.Add(1) <= 0 {
					t.Error("a writer is inside a gate held exclusively")
				}
				inside.Add(-1)
				g.leave()
			}
		})
	}
	for range 300 {
		g.lock()
		if n := inside.Add(-1000); n != -1000 {
			t.Errorf("%d writers are inside a gate held exclusively", n+1000)
		}
		inside.Add(1000)
		g.unlock()
	}
	close(stop)
	wg.Wait()
}

// A writer may enter on one goroutine and leave on another.
func TestGateLeavesElsewhere(*testing.T) {
	var g gate
	g.init()
	for range 100 {
		g.enter()
		done := make(chan struct{})
		go func() { g.leave(); close(done) }()
		g.lock()
		g.unlock()
		<-done
	}
}

func BenchmarkGate(b *testing.B) {
	b.Run("gate", func(b *testing.B) {
		var g gate
		g.init()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				g.enter()
				g.leave()
			}
		})
	})
	b.Run("rwmutex", func(b *testing.B) {
		var m sync.RWMutex
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				m.RLock()
				m.RUnlock() //nolint:staticcheck // only its cost is of interest
			}
		})
	})
}
