package serve

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"

	"github.com/cairnbackup/cairn/nbd"
)

// Limits of one socket. Volumes are mostly served without buffers, so the
// memory is what a reader of a snapshot with some large requests in flight
// takes.
const (
	doorConns = 64
	// doorReaders is how many of them may be on the read-only door of a volume, so
	// that a guest always finds room to connect, and to connect again.
	doorReaders = 48
	doorMemory  = 8 << 20
)

// door is one NBD socket: listening once it is made, served after start.
type door struct {
	path   string
	l      net.Listener
	log    *slog.Logger
	cancel context.CancelFunc // nil before start
	done   chan struct{}      // closed when the server has ended
}

// listen makes the socket called name in the NBD folder.
func (p *plane) listen(ctx context.Context, name string) (*door, error) {
	const mode fs.FileMode = 0o660
	path := filepath.Join(p.at.dir, name+socketSuffix)
	l, err := listenUnix(ctx, path, mode, p.gid)
	if err != nil {
		return nil, err
	}
	return &door{path: path, l: l, log: p.log}, nil
}

// start serves exports, of which the first is also the default, until stop.
// ctx gives its values only.
func (d *door) start(ctx context.Context, exports ...*nbd.Export) {
	ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	d.done = make(chan struct{})
	srv := nbd.NewServer(nbd.ServerOptions{
		Lookup: func(name string, _ nbd.Peer) (*nbd.Export, bool) {
			for i, e := range exports {
				if name == e.Name || name == "" && i == 0 {
					return e, true
				}
			}
			return nil, false
		},
		List:        func(nbd.Peer) []*nbd.Export { return exports },
		MaxConns:    doorConns,
		MemoryLimit: doorMemory,
		Logger:      d.log.With(slog.String("socket", d.path)),
	})
	go func() {
		defer close(d.done)
		if err := srv.Serve(ctx, d.l); err != nil {
			d.log.LogAttrs(ctx, slog.LevelError, "nbd socket is no longer served", slog.String("socket", d.path), slog.Any("error", err))
		}
	}()
}

// stop removes the socket, ends every connection and waits for them.
func (d *door) stop() error {
	err := removeSocket(d.path)
	if d.cancel != nil {
		d.cancel()
		<-d.done
	}
	return errors.Join(err, closeListener(d.l))
}
