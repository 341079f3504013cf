package nbd

import (
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTurn keeps the only place of the runtime busy, as a connection does whose client is
// never behind. What others wait for has come meanwhile: they have their turn at once,
// and not only when the runtime's monitor comes by.
func TestTurn(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var came atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		for p := make([]byte, 1); ; came.Add(1) {
			if _, err := r.Read(p); err != nil {
				return
			}
		}
	}()
	defer func() {
		closeQuietly(w)
		<-done
		closeQuietly(r)
	}()
	fd := int(w.Fd())
	everybody.waiting.Add(2)
	defer everybody.waiting.Add(-2)
	prompt := 0
	const times = 100
	for i := range int32(times) {
		for came.Load() < i { // the last one, at the latest by the monitor
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Millisecond) // until it waits again
		if n, err := unix.Write(fd, []byte{1}); n != 1 {
			t.Fatal(err)
		}
		l := linger{counts: 1, awake: time.Now().Add(-turnEvery)}
		l.turn()
		runtime.Gosched() // or both have been found at once, and this one is the first
		if came.Load() > i {
			prompt++
		}
	}
	if prompt < times*9/10 {
		t.Errorf("of %d times the others had their turn %d times at once", times, prompt)
	}
}

// TestTurnOfMany has two busy connections on the only place of the runtime: the one does
// not go on while the other waits for its turn to end, which nobody would look after.
func TestTurnOfMany(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	everybody.waiting.Add(2)
	defer everybody.waiting.Add(-2)
	var turns atomic.Int32 // of the other one
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			l := linger{counts: 1}
			l.turn()
			turns.Add(1)
		}
	}()
	const mine, most = 100, 10
	fair := 0
	for range mine {
		before := turns.Load()
		l := linger{counts: 1}
		l.turn()
		if turns.Load()-before <= most {
			fair++
		}
	}
	stop.Store(true)
	<-done
	if fair < mine*9/10 {
		t.Errorf("in %d of %d turns another connection had more than %d", mine-fair, mine, most)
	}
}
