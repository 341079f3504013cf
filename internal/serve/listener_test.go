package serve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// TestListenerDies: when the control socket fails, requests that run are awaited.
func TestListenerDies(t *testing.T) {
	p := testPlane(t, vfs.OS())
	_, err := p.createVolume(t.Context(), CreateVolume{Name: "vol", Size: 1 << 20})
	must(t, err)
	e, err := p.find("vol")
	must(t, err)
	must(t, e.lock(t.Context()))

	socket := filepath.Join(p.state, "control")
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	must(t, err)
	l := &mortal{Listener: inner, died: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- (&controller{p: p, log: slog.New(slog.DiscardHandler)}).serve(context.Background(), l)
	}()
	extended := make(chan error, 1)
	go func() {
		_, err := NewClient(socket).ExtendVolume(context.Background(), "vol", 2<<20)
		extended <- err
	}()
	for l.accepted.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(l.died)
	select {
	case err := <-ended:
		t.Fatalf("serve returned while a request ran: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	e.unlock()
	must(t, <-extended)
	if err := <-ended; !errors.Is(err, errMortal) {
		t.Errorf("serve: %v", err)
	}
}

var errMortal = errors.New("the listener died")

// mortal is a listener that accepts one connection and then waits for its death.
type mortal struct {
	net.Listener
	died     chan struct{}
	accepted atomic.Int64
}

func (m *mortal) Accept() (net.Conn, error) {
	if m.accepted.Load() > 0 {
		<-m.died
		return nil, errMortal
	}
	c, err := m.Listener.Accept()
	m.accepted.Add(1)
	return c, err
}
