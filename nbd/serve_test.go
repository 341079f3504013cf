package nbd

import (
	"context"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"
)

// listen serves on a unix socket until the test ends, and returns its path.
func listen(tb testing.TB, s *Server) string {
	tb.Helper()
	path, l := socket(tb)
	serveOn(tb, s, l)
	return path
}

// socket listens on a unix socket.
func socket(tb testing.TB) (path string, l net.Listener) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	return path, l
}

// serveOn serves on l until the test ends, or stop is called, which returns when Serve has.
func serveOn(tb testing.TB, s *Server, l net.Listener) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Serve: %v", err)
		}
	})
	tb.Cleanup(stop)
	return stop
}

// dial connects a client for as long as the test runs.
func dial(tb testing.TB, uri string, o ClientOptions) *Client {
	tb.Helper()
	c, err := Dial(tb.Context(), uri, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Close(); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// waitFor waits until something has become true on another goroutine.
func waitFor(tb testing.TB, done func() bool) {
	tb.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(end) {
			tb.Fatal("waited for 20 seconds")
		}
	}
}
