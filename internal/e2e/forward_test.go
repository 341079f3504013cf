package e2e

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
)

// socket connects to the volume on its socket.
func (a *attached) socket(ctx context.Context) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", a.volume.Socket)
}

// door connects to the data plane's door over TCP, which is somewhere else each time that
// it starts.
func (a *attached) door(ctx context.Context) (net.Conn, error) {
	v, err := a.data.Volume(ctx, "disk")
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(v.TCPURI)
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, "tcp", u.Host)
}

// forwardTCP carries connections to a TCP port, whose address it returns, to wherever dial
// connects until the test ends, as a guest reaches only the host's ports.
func forwardTCP(t *testing.T, dial func(ctx context.Context) (net.Conn, error)) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(t.Context(), c, dial) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // nothing else can fail
		wg.Wait()     // the guest and the data plane have ended
	})
	return l.Addr().String()
}

func carry(ctx context.Context, c net.Conn, dial func(ctx context.Context) (net.Conn, error)) {
	defer c.Close()
	s, err := dial(ctx)
	if err != nil {
		return // whoever connected sees that it ends
	}
	defer s.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(s, c) // one of the two ends, and with it the other
		_ = s.Close()
	}()
	_, _ = io.Copy(c, s) // as above
	_ = c.Close()
	<-done
}
