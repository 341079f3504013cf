package nbd

import (
	"context"
	"net"
	"path/filepath"
	"testing"
)

// listen serves on a unix socket until the test ends, and returns its path.
func listen(t testing.TB, s *Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	serveUntilEnd(t, s, l)
	return path
}

// serveUntilEnd serves on l until the test ends.
func serveUntilEnd(t testing.TB, s *Server, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// dial connects a client for as long as the test runs.
func dial(t testing.TB, uri string, o ClientOptions) *Client {
	t.Helper()
	c, err := Dial(t.Context(), uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}
