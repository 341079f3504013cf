// Package tcpdoor serves NBD over TCP. A client has to show a certificate of a
// known authority in a TLS handshake; its common name says which exports there
// are for it. Any other export is unknown to it, whether it exists or not.
package tcpdoor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/nbd"
)

// Settings say where a door is, and who may come in.
type Settings struct {
	Listeners []net.Listener // at least one; whoever gets the settings closes them
	TLS       *tls.Config    // which verifies the certificate of a client
	Grants    func() Grants  // those in force; called for each request of a handshake
	Host      string         // HOST:PORT by which clients reach the door, and which the certificate of TLS names
}

// URI is where clients reach an export through the door; empty if there is none.
func (s *Settings) URI(export string) string {
	if s == nil {
		return ""
	}
	u := url.URL{Scheme: "nbds", Host: s.Host, Path: "/" + export}
	return u.String()
}

// Listen names the addresses of the door; empty if there is none.
func (s *Settings) Listen() string {
	if s == nil {
		return ""
	}
	var at []string
	for _, l := range s.Listeners {
		at = append(at, l.Addr().String())
	}
	return strings.Join(at, " ")
}

// Close closes the listeners of a door, of which there may be none, that was
// served or not.
func (s *Settings) Close() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, l := range s.Listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close %s: %w", l.Addr(), err))
		}
	}
	return errors.Join(errs...)
}

// Export is something behind a door.
type Export struct {
	*nbd.Export
	// End is closed when its connections have to end; nil is never.
	End <-chan struct{}
}

// Source has the exports behind a door. They come and go: it is asked each time,
// from many goroutines.
type Source interface {
	// Export finds the export of this name.
	Export(name string) (Export, bool)
	// Exports are all there are.
	Exports() iter.Seq[Export]
}

// Door serves a source's exports.
type Door struct {
	s      *Settings
	source Source
	log    *slog.Logger
	hall   *hall

	mu   sync.Mutex
	told map[string]time.Time // what was said last in the log, and when
}

// New makes a door.
func New(s *Settings, source Source, log *slog.Logger) *Door {
	return &Door{s: s, source: source, log: log, hall: newHall(defaultBounds), told: map[string]time.Time{}}
}

// Serve serves all listeners until ctx ends, and returns when the last
// connection has ended. An error is that a listener failed.
func (d *Door) Serve(ctx context.Context) error {
	b := d.hall.bounds
	srv := nbd.NewServer(nbd.ServerOptions{
		Lookup:      d.lookup,
		List:        d.list,
		TLS:         d.s.TLS,
		ConnContext: withConn,
		MaxConns:    2 * (b.greeting + b.open), // the hall has the bounds; those that it ends take a moment
		Logger:      newSparing(d.log),
	})
	var wg sync.WaitGroup
	errs := make([]error, len(d.s.Listeners))
	for i, l := range d.s.Listeners {
		wg.Go(func() {
			errs[i] = srv.Serve(ctx, &listener{Listener: l, hall: d.hall, ended: d.sayEnded})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// connKey is that of a connection in its context.
type connKey struct{}

func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc)
}

// lookup finds what the client may use.
func (d *Door) lookup(name string, p nbd.Peer) (*nbd.Export, bool) {
	if !d.grants(p).allow(p.CommonName, name) {
		return nil, false
	}
	e, ok := d.source.Export(name)
	if !ok {
		return nil, false
	}
	return d.guarded(e), true
}

// maxListed bounds one list. Clients take no longer ones.
const maxListed = 10_000

// list has what the client may use.
func (d *Door) list(p nbd.Peer) []*nbd.Export {
	var found []*nbd.Export
	g := d.grants(p)
	if len(g[p.CommonName]) == 0 {
		return nil
	}
	for e := range d.source.Exports() {
		if !g.allow(p.CommonName, e.Name) {
			continue
		}
		if len(found) == maxListed {
			if d.worth("list", p.CommonName) {
				d.log.LogAttrs(context.Background(), slog.LevelWarn, "nbd client is shown only a part of its exports: no list is longer", slog.String("certificate", p.CommonName), slog.Int("listed", maxListed))
			}
			break
		}
		found = append(found, e.Export)
	}
	return found
}

// grants are those in force. Who has none is named in the log.
func (d *Door) grants(p nbd.Peer) Grants {
	g := d.s.Grants()
	if len(g[p.CommonName]) == 0 && d.worth("grants", p.CommonName) {
		d.log.LogAttrs(context.Background(), slog.LevelWarn, "nbd client sees no export, as none is given to the name in its certificate", slog.String("certificate", p.CommonName), slog.String("addr", p.Addr))
	}
	return g
}

// sayEnded logs that a connection was ended for another.
func (d *Door) sayEnded(c *conn) {
	if d.worth("flood", c.site) {
		d.log.LogAttrs(context.Background(), slog.LevelWarn, "nbd connection ended that had no export yet: its address, or all together, opened too many", slog.String("addr", c.site))
	}
}

// guarded is an export whose connections the hall counts, and which end with it.
func (d *Door) guarded(e Export) *nbd.Export {
	g := *e.Export
	g.Open = func(ctx context.Context, p nbd.Peer) (nbd.Device, error) {
		c, ok := ctx.Value(connKey{}).(*conn)
		if !ok {
			return nil, errors.New("the connection is not one of this door")
		}
		if err := c.admit(p.CommonName); err != nil {
			if d.worth("bounds", p.CommonName) {
				d.log.LogAttrs(ctx, slog.LevelWarn, "nbd client turned away", slog.String("certificate", p.CommonName), slog.String("addr", p.Addr), slog.Any("error", err))
			}
			return nil, err
		}
		dev, err := e.Open(ctx, p)
		if err != nil {
			c.retract()
			return nil, err
		}
		d.log.LogAttrs(ctx, slog.LevelInfo, "nbd client connected", slog.String("export", e.Name), slog.String("certificate", p.CommonName), slog.String("addr", p.Addr))
		if e.End != nil {
			go c.endWith(ctx, e.End)
		}
		return dev, nil
	}
	return &g
}

// endWith ends the connection when its export does; ctx is the connection's.
func (c *conn) endWith(ctx context.Context, end <-chan struct{}) {
	select {
	case <-end:
		_ = c.Close() // whoever serves it notices
	case <-ctx.Done():
	}
}

// worth says whether what happened to somebody is to be logged: once a minute, as it
// may happen as often as clients like.
func (d *Door) worth(what, who string) bool {
	const (
		pause = time.Minute
		most  = 1000
	)
	d.mu.Lock()
	defer d.mu.Unlock()
	key, now := what+" "+who, time.Now()
	if last, ok := d.told[key]; ok && now.Sub(last) < pause {
		return false
	}
	if len(d.told) >= most {
		clear(d.told)
	}
	d.told[key] = now
	return true
}
