package nbd

import (
	"context"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// listen serves on a unix socket until the test ends, and returns its path.
func listen(tb testing.TB, s *Server) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	serveUntilEnd(tb, s, l)
	return path
}

// serveUntilEnd serves on l until the test ends.
func serveUntilEnd(tb testing.TB, s *Server, l net.Listener) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Serve: %v", err)
		}
	})
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
