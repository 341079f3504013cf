package main

import (
	"runtime"
	"testing"
)

// TestServePlaces: the data plane gives the Go runtime more places than processors, unless
// it was told how many there are to be.
func TestServePlaces(t *testing.T) {
	was := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(was)
	t.Setenv("GOMAXPROCS", "3")
	setServePlaces()
	if got := runtime.GOMAXPROCS(0); got != was {
		t.Errorf("%d places, although it was said how many", got)
	}
	t.Setenv("GOMAXPROCS", "")
	setServePlaces()
	if got := runtime.GOMAXPROCS(0); got != was+servePlaces {
		t.Errorf("%d places, want %d and %d more", got, was, servePlaces)
	}
}
