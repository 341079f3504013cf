package repository

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// marks returns the sessions that any member has a genuine mark of.
func (p *pruner) marks(ctx context.Context, prefix string, kd kind) (map[ident]bool, error) {
	holders := make(map[ident][]*member)
	err := p.list(ctx, prefix, func(m *member, i objstore.Info) {
		if s, ok := markSession(i.Name, prefix); ok {
			holders[s] = append(holders[s], m)
		}
	})
	if err != nil {
		return nil, err
	}
	out := make(map[ident]bool)
	for s, ms := range holders {
		if _, err := p.r.firstControl(ctx, ms, kd, prefix+s.String()); err == nil {
			out[s] = true
		} else if !errors.Is(err, errEnvelope) && !errors.Is(err, objstore.ErrNotExist) {
			return nil, err
		}
	}
	return out, nil
}

// readDeleted is P1: what earlier prunes saw, then what is deleted now.
func (p *pruner) readDeleted(ctx context.Context) error {
	seen := make(map[ident]bool)
	p.unfinished = make(map[chunk.PackID]bool)
	traces := make(map[string][]*member)
	err := p.list(ctx, prunePrefix, func(m *member, i objstore.Info) { traces[i.Name] = append(traces[i.Name], m) })
	if err != nil {
		return err
	}
	for name, ms := range traces {
		_, leaf, bad := pruneName(name)
		if bad == nil && leaf == condemnedLeaf {
			p.lists++
			if err = p.readUnfinished(ctx, ms, name); err != nil {
				return err
			}
		}
		if bad != nil || leaf != doneLeaf {
			continue
		}
		payload, failed := p.r.firstControl(ctx, ms, kindDone, name)
		if errors.Is(failed, errEnvelope) {
			continue // nobody's word: what it would have aged waits for another prune
		}
		if failed != nil {
			return failed
		}
		for len(payload) >= len(ident{}) {
			seen[ident(payload[:len(ident{})])] = true
			payload = payload[len(ident{}):]
		}
	}
	if p.tombs, err = p.marks(ctx, deletedPrefix, kindTombstone); err != nil {
		return err
	}
	p.probes = make(map[string]bool)
	if err = p.list(ctx, probePrefix, func(_ *member, i objstore.Info) { p.probes[i.Name] = true }); err != nil {
		return err
	}
	p.aged = make(map[ident]bool)
	for s := range p.tombs {
		if seen[s] {
			p.aged[s] = true
		}
	}
	p.report.Trash = len(p.tombs)
	p.purged, err = p.marks(ctx, purgedPrefix, kindPurged)
	return err
}

// readUnfinished notes what another prune was to compact.
func (p *pruner) readUnfinished(ctx context.Context, ms []*member, name string) error {
	payload, err := p.r.firstControl(ctx, ms, kindCondemned, name)
	c := newCondemned()
	if err == nil {
		err = c.decode(payload)
	}
	switch {
	case errors.Is(err, errEnvelope), errors.Is(err, objstore.ErrNotExist):
		return nil // nobody's word, or it has ended just now
	case err != nil:
		return err
	}
	for id := range c.compact {
		p.unfinished[id] = true
	}
	return nil
}

// listPacks is P2.
func (p *pruner) listPacks(ctx context.Context) error {
	p.packs = make(map[chunk.PackID]int64)
	return p.list(ctx, packPrefix, func(_ *member, i objstore.Info) {
		if id, ok := parsePackName(i.Name); ok {
			p.packs[id] += i.Size
		}
	})
}

// decideOwners is P3.
func (p *pruner) decideOwners(ctx context.Context) error {
	p.owners = make(map[ident]Decision)
	for id := range p.packs {
		p.owners[packSession(id)] = Undecided
	}
	for id := range p.damage.packs {
		p.owners[packSession(id)] = Undecided // it may be on no store
	}
	votes, err := p.votes(ctx)
	if err != nil {
		return err
	}
	roots, err := p.listRoots(ctx)
	if err != nil {
		return err
	}
	forwardings, err := p.listForwardings(ctx)
	if err != nil {
		return err
	}
	for _, fs := range forwardings {
		for _, f := range fs {
			p.owners[f.session] = Undecided
		}
	}
	for n, s := range slices.Collect(maps.Keys(p.owners)) {
		p.tell("sessions", int64(n), int64(len(p.owners)))
		if p.owners[s], err = p.decided(ctx, s, votes[s], roots); err != nil {
			return err
		}
	}
	return nil
}

// condemn says what may go: condemned backups, and packs whose sessions are
// decided and that nothing reaches.
func (p *pruner) condemn() {
	for s := range p.roots {
		if p.abort[s] || p.purged[s] {
			p.report.Aborted++
		} else {
			p.report.Backups++
		}
	}
	p.sweep = make(map[chunk.PackID]int64)
	for id, size := range p.packs {
		switch {
		case p.marked[id]:
			p.report.Kept += size
		case p.owners[packSession(id)] == Undecided:
			p.report.Waiting++
			p.report.Kept += size
		case p.moves.held[id]:
			p.report.Left++
			p.report.Kept += size
		default:
			p.sweep[id] = size
			p.report.Packs++
			p.report.Bytes += size
		}
	}
}
