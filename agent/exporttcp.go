package agent

import (
	"context"
	"iter"
	"log/slog"

	"github.com/cairnbackup/cairn/internal/tcpdoor"
)

// exportTCP serves the exports of all repositories over TCP until ctx ends.
func (h *hub) exportTCP(ctx context.Context) {
	if err := tcpdoor.New(h.o.TCP, h, h.o.Logger).Serve(ctx); err != nil {
		h.o.Logger.LogAttrs(ctx, slog.LevelError, "exports are no longer served over TCP", slog.String("listen", h.o.TCP.Listen()), slog.Any("error", err))
	}
}

var _ tcpdoor.Source = (*hub)(nil)

// Export finds the export of a backup. No two repositories have one of a name.
func (h *hub) Export(name string) (tcpdoor.Export, bool) {
	for _, s := range h.servers {
		if x, ok := s.exports.get(name); ok && x.export != nil {
			return tcpdoor.Export{Export: x.export, End: x.end}, true
		}
	}
	return tcpdoor.Export{}, false
}

// Exports are those that are served, of one repository after the other, by name.
func (h *hub) Exports() iter.Seq[tcpdoor.Export] {
	return func(yield func(tcpdoor.Export) bool) {
		for _, s := range h.servers {
			for _, x := range s.exports.all() {
				if x.export != nil && !yield(tcpdoor.Export{Export: x.export, End: x.end}) {
					return
				}
			}
		}
	}
}
