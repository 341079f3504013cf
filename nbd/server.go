package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Defaults of ServerOptions.
const (
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultMaxConns         = 128
	DefaultMemoryLimit      = 32 << 20
)

// ServerOptions says what a server serves, and its limits.
type ServerOptions struct {
	// Lookup finds the export that a client asked for by name; the empty name
	// asks for the default one. It is required, and called from many goroutines.
	Lookup func(name string, p Peer) (*Export, bool)
	// List returns the exports that a client may see. Nil refuses to list.
	List func(p Peer) []*Export
	// TLS, when set, is what every client has to encrypt its connection with, by
	// STARTTLS, before it can do or learn anything. Who may connect is for its
	// ClientAuth and ClientCAs to say. It takes TLS 1.2 or newer in any case.
	TLS *tls.Config
	// ConnContext, when set, returns the context of a connection, made from the one
	// given. Export.Open gets it, or one made from it.
	ConnContext func(ctx context.Context, nc net.Conn) context.Context

	// HandshakeTimeout is how long a client may take from connecting to the end
	// of negotiation, not counting the time that Export.Open takes.
	HandshakeTimeout time.Duration
	// MaxConns is how many connections are served at once; further ones are
	// closed at once.
	MaxConns int
	// MemoryLimit bounds the buffers of requests that are waiting for a device,
	// in bytes, over all connections. Each connection may use up to 1 MiB
	// beyond it, so that none waits for another.
	MemoryLimit int64
	// Logger gets one line for each connection that ends in an error; nil is
	// silence.
	Logger *slog.Logger
}

// Server serves exports on any number of listeners.
type Server struct {
	o      ServerOptions
	memory budget

	mu    sync.Mutex
	conns int
}

// NewServer returns a server; zero options become the defaults.
func NewServer(o ServerOptions) *Server {
	if o.HandshakeTimeout <= 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.MaxConns <= 0 {
		o.MaxConns = DefaultMaxConns
	}
	if o.MemoryLimit <= 0 {
		o.MemoryLimit = DefaultMemoryLimit
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.TLS != nil {
		o.TLS = serverTLS(o.TLS)
	}
	s := &Server{o: o}
	s.memory.limit = o.MemoryLimit
	return s
}

// Serve accepts connections from l and serves them until ctx ends. It then
// closes l and every connection, waits for the requests that are with a device
// and for the devices to be closed, and returns nil. Any other end of l is an
// error. Serve may run for several listeners at once; they share the limits.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { closeQuietly(l) })
	defer func() {
		cancel()
		stop()
		closeQuietly(l)
		wg.Wait()
	}()
	for backoff := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				closeQuietly(nc)
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("nbd: accept on %s: %w", l.Addr(), err)
		case err != nil:
			// Out of descriptors, most likely: it passes when clients leave.
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			s.o.Logger.LogAttrs(ctx, slog.LevelWarn, "nbd accept failed", slog.Any("error", err))
			pause(ctx, backoff)
			continue
		}
		backoff = 0
		if !s.enter() {
			s.o.Logger.LogAttrs(ctx, slog.LevelWarn, "nbd connection refused: too many", slog.Int("max_conns", s.o.MaxConns))
			closeQuietly(nc)
			continue
		}
		wg.Go(func() {
			defer s.leave()
			s.ServeConn(ctx, nc)
		})
	}
}

// ServeConn serves one connection that came by other means than a listener,
// and closes it. It returns when the client has left or ctx has ended, and all
// its requests are done. It does not count against MaxConns.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) {
	if s.o.ConnContext != nil {
		ctx = s.o.ConnContext(ctx, nc)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Closing wakes whatever is blocked on the connection.
	stop := context.AfterFunc(ctx, func() { closeQuietly(nc) })
	defer stop()
	defer closeQuietly(nc)

	c := &conn{s: s, nc: nc, socket: nc, peer: peerOf(nc)}
	err := c.serve(ctx, cancel)
	if err != nil && ctx.Err() == nil && !disconnected(err) {
		s.o.Logger.LogAttrs(ctx, slog.LevelInfo, "nbd connection ended",
			slog.Any("error", err), slog.Int("pid", c.peer.PID), slog.String("addr", c.peer.Addr),
			slog.String("common_name", c.peer.CommonName))
	}
	c.sayGoodbye()
}

func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns >= s.o.MaxConns {
		return false
	}
	s.conns++
	return true
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns--
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// closeQuietly closes what may have been closed already, or whose state no
// longer matters.
func closeQuietly(c interface{ Close() error }) {
	_ = c.Close()
}
