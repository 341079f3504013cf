package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
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
	socket := filepath.Join(p.state, "control")
	inner, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	must(t, err)
	l := &mortal{Listener: inner, died: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		ended <- (&controller{p: p, log: slog.New(slog.DiscardHandler)}).serve(context.Background(), l)
	}()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
	must(t, err)
	defer c.Close()
	body := `{"size":2097152}`
	_, err = fmt.Fprintf(c, "POST /v1/volumes/vol/extend HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", len(body))
	must(t, err)
	// The handler runs when it asks for the body.
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if must(t, err); !strings.Contains(line, "100 Continue") {
		t.Fatal(line)
	}
	close(l.died)
	select {
	case early := <-ended:
		t.Fatalf("serve returned while a request ran: %v", early)
	case <-time.After(100 * time.Millisecond):
	}
	_, err = c.Write([]byte(body))
	must(t, err)
	all, err := io.ReadAll(in)
	if must(t, err); !strings.Contains(string(all), "200 OK") || !strings.Contains(string(all), "2097152") {
		t.Errorf("answer %q", all)
	}
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
