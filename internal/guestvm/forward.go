package guestvm

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/cairnbackup/cairn/internal/guestvm/wire"
)

// Forward makes a unix socket on the host of one in the guest, which need not be there
// yet: connections to the one reach the other, and break when the guest ends. It returns
// the socket's path, which is gone after the test.
func (v *VM) Forward(guestSocket string) string {
	v.tb.Helper()
	// A unix socket's path must be short.
	dir, err := os.MkdirTemp("", "guest-")
	if err != nil {
		v.tb.Fatal(err)
	}
	path := filepath.Join(dir, filepath.Base(guestSocket))
	var lc net.ListenConfig
	l, err := lc.Listen(v.tb.Context(), "unix", path)
	if err != nil {
		v.tb.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { v.carry(c, guestSocket) })
		}
	})
	v.tb.Cleanup(func() {
		_ = l.Close() // nothing else can fail
		v.Kill()      // which breaks the connections
		wg.Wait()
		if err := os.RemoveAll(dir); err != nil {
			v.tb.Error(err)
		}
	})
	return path
}

// carry carries one connection into the guest, until either end has had enough.
func (v *VM) carry(c net.Conn, guestSocket string) {
	s, err := v.port.open(wire.Dial, guestSocket)
	if err != nil {
		_ = c.Close() // that is the message
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		s.copyFrom(c)
	}()
	_ = s.copyTo(context.Background(), c) // whoever has the connection sees that it ends
	_ = c.Close()                         // as above
	<-sent
}

// copyFrom sends to the guest what r has, and then that it has ended.
func (s *stream) copyFrom(r net.Conn) {
	p := make([]byte, wire.MaxPayload)
	for {
		n, err := r.Read(p)
		if n > 0 {
			if s.l.write(wire.Frame{Stream: s.id, Kind: wire.Data, Payload: p[:n]}) != nil {
				return // copyTo sees that too
			}
		}
		if err != nil {
			_ = s.l.write(wire.Frame{Stream: s.id, Kind: wire.EOF}) // as above
			return
		}
	}
}
