package serve

import (
	"context"
	"iter"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairnbackup/cairn/internal/tcpdoor"
	"github.com/cairnbackup/cairn/nbd"
)

// addresses is where exports are reached: by their sockets in a folder and, if
// there is a door for it, over TCP.
type addresses struct {
	dir string
	tcp *tcpdoor.Settings // nil = not over TCP
}

func (a addresses) socket(export string) string { return filepath.Join(a.dir, export+socketSuffix) }

func (a addresses) uri(export string) string { return nbd.URI(a.socket(export), export) }

// openTCP serves the door over TCP, if there is one, until what it returns is
// called, which returns when all its connections have ended. ctx gives its
// values only.
func (p *plane) openTCP(ctx context.Context) (stop func()) {
	if p.at.tcp == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := tcpdoor.New(p.at.tcp, p, p.log).Serve(ctx); err != nil {
			p.log.LogAttrs(ctx, slog.LevelError, "nbd over TCP is no longer served", slog.String("listen", p.at.tcp.Listen()), slog.Any("error", err))
		}
	}()
	return func() { cancel(); <-done }
}

var _ tcpdoor.Source = (*plane)(nil)

// Export finds an export of a volume or snapshot by its name. A volume that is
// not served has none.
func (p *plane) Export(name string) (tcpdoor.Export, bool) {
	vol, label, part := strings.Cut(name, "@")
	for _, e := range p.named(vol) {
		if !e.isOpen() {
			continue
		}
		switch doors := p.volumeExports(e); {
		case !part:
			return tcpdoor.Export{Export: doors[0]}, true
		case "@"+label == readOnlyDoor:
			return tcpdoor.Export{Export: doors[1]}, true
		}
		for _, sn := range e.served() {
			if sn.label() == label {
				return tcpdoor.Export{Export: p.snapshotExport(e, sn)}, true
			}
		}
	}
	return tcpdoor.Export{}, false
}

// Exports are those of all volumes that are served, by name, each followed by
// those of its snapshots.
func (p *plane) Exports() iter.Seq[tcpdoor.Export] {
	return func(yield func(tcpdoor.Export) bool) {
		for _, e := range p.sorted() {
			if !e.isOpen() {
				continue
			}
			exports := p.volumeExports(e)
			for _, sn := range e.served() {
				exports = append(exports, p.snapshotExport(e, sn))
			}
			for _, x := range exports {
				if !yield(tcpdoor.Export{Export: x}) {
					return
				}
			}
		}
	}
}

// served returns the snapshots of a volume, by name.
func (e *entry) served() []*snap {
	e.mu.RLock()
	defer e.mu.RUnlock()
	snaps := make([]*snap, 0, len(e.snaps))
	for _, sn := range e.snaps {
		snaps = append(snaps, sn)
	}
	slices.SortFunc(snaps, func(a, b *snap) int { return strings.Compare(a.label(), b.label()) })
	return snaps
}
