package nbd

import (
	"context"
	"net"
	"path/filepath"
	"testing"
)

// What ConnContext puts into the context of a connection Open finds there, each its own.
func TestConnContext(t *testing.T) {
	type key struct{}
	made := make(chan net.Conn, 2)
	found := make(chan any, 2)
	export := &Export{Name: "e", Size: func() int64 { return 1 << 20 }, Open: func(ctx context.Context, _ Peer) (Device, error) {
		found <- ctx.Value(key{})
		return newMemory(1 << 20), nil
	}}
	srv := NewServer(ServerOptions{
		Lookup: func(string, Peer) (*Export, bool) { return export, true },
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			made <- nc
			return context.WithValue(ctx, key{}, nc)
		},
	})
	socket := filepath.Join(t.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for range 2 {
		c, err := Dial(t.Context(), URI(socket, "e"), ClientOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if nc := <-made; <-found != any(nc) {
			t.Errorf("another connection was found than that of %v", nc.LocalAddr())
		}
	}
}
