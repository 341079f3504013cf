package repository

import (
	"context"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// losers names the backups that need what cannot be rebuilt, and which of their
// blocks. Of packs that still have enough shards somewhere, each chunk is tried: of a
// shard that is damaged only some cells are.
func (p *repairer) losers(ctx context.Context) error {
	p.window = make(map[chunk.PackID]bool)
	for id := range p.lost {
		if p.present(id) >= p.r.membership().Data {
			p.window[id] = true
		}
	}
	p.o.ReadData = true // of these packs only
	p.judgePacks()
	unreadable := slices.ContainsFunc(p.report.Backups, func(b BackupReport) bool { return !b.Restorable })
	if len(p.lost) == 0 && !unreadable {
		return nil
	}
	for n, b := range p.images {
		if err := p.blocks(ctx, n, b); err != nil {
			return err
		}
	}
	for _, b := range p.report.Backups {
		if !b.Restorable {
			p.done.Backups = append(p.done.Backups, b)
		}
	}
	return nil
}
