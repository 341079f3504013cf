package main

import (
	"runtime"
	"testing"
)

// TestServePlaces: the data plane gives the Go runtime more places than processors, unless
// somebody said how many there are to be, or it is not to use all processors.
func TestServePlaces(t *testing.T) {
	n := runtime.NumCPU()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(n))
	for _, c := range []struct {
		said     string
		was, now int
	}{
		{"3", n, n},
		{"", n, n + servePlaces},
		{"", n + 1, n + 1}, // as with a control group: not what there is
	} {
		t.Setenv("GOMAXPROCS", c.said)
		runtime.GOMAXPROCS(c.was)
		setServePlaces()
		if got := runtime.GOMAXPROCS(0); got != c.now {
			t.Errorf("GOMAXPROCS=%q, %d places: %d then, want %d", c.said, c.was, got, c.now)
		}
	}
}
