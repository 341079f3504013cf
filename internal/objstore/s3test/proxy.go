package s3test

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// Trouble is what a Proxy does to connections. The zero value is none.
type Trouble struct {
	Delay   time.Duration // before every piece that a server sends
	Hang    bool          // nothing comes from the server any more
	Refuse  bool          // connections end at once, those that there are too
	CutTo   int           // from the server: > 0 ends a connection behind so many bytes
	CutFrom int           // to the server: > 0 ends a connection behind so many bytes
	Corrupt bool          // a bit of every large piece from the server is another
}

// Proxy stands between a client and a server.
type Proxy struct {
	Addr string

	target  string
	mu      sync.Mutex
	trouble Trouble
	changed chan struct{} // closed at every change
	conns   map[net.Conn]struct{}
}

// NewProxy starts a proxy before the server at target, and ends it with the
// test.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), target: target, changed: make(chan struct{}), conns: make(map[net.Conn]struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { p.serve(ctx, c) })
		}
	})
	tb.Cleanup(func() {
		cancel()
		_ = l.Close()
		p.drop()
		wg.Wait()
	})
	return p
}

// Set replaces the trouble, also of connections that there are.
func (p *Proxy) Set(tr Trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = tr
	if tr.Refuse {
		for c := range p.conns {
			_ = c.Close()
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) now() (Trouble, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trouble, p.changed
}

// drop ends all connections.
func (p *Proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

func (p *Proxy) keep(c net.Conn, in bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if in {
		p.conns[c] = struct{}{}
	} else {
		delete(p.conns, c)
	}
}

func (p *Proxy) serve(ctx context.Context, client net.Conn) {
	defer client.Close()
	if tr, _ := p.now(); tr.Refuse {
		return
	}
	var d net.Dialer
	server, err := d.DialContext(ctx, "tcp", p.target)
	if err != nil {
		return
	}
	defer server.Close()
	for _, c := range []net.Conn{client, server} {
		p.keep(c, true)
		defer p.keep(c, false)
	}
	var wg sync.WaitGroup
	end := func() { _ = client.Close(); _ = server.Close() }
	wg.Go(func() { defer end(); p.pump(ctx, server, client, false) })
	wg.Go(func() { defer end(); p.pump(ctx, client, server, true) })
	wg.Wait()
}

func (p *Proxy) pump(ctx context.Context, to, from net.Conn, answers bool) {
	buf := make([]byte, 16<<10)
	total := 0
	for {
		n, err := from.Read(buf)
		if err != nil || n == 0 {
			return
		}
		tr, changed := p.now()
		for answers && tr.Hang {
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
			tr, changed = p.now()
		}
		if answers && tr.Delay > 0 {
			select {
			case <-time.After(tr.Delay):
			case <-ctx.Done():
				return
			}
		}
		if answers && tr.Corrupt && n > 4096 {
			buf[n-1] ^= 1
		}
		limit := tr.CutFrom
		if answers {
			limit = tr.CutTo
		}
		cut := limit > 0 && total+n > limit
		if cut {
			n = max(limit-total, 0)
		}
		if _, err := to.Write(buf[:n]); err != nil || cut {
			return
		}
		total += n
	}
}
