package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// What a list names has to fit into an object: 33 bytes a pack, of which there are
// also those that maxMoved allows, and 16 a backup. The next prune takes the others.
const (
	maxCondemned = 1 << 20 // packs that nobody needs
	maxDeadMoves = 1 << 19 // such that moved
	maxRemains   = 1 << 16 // packs that moved and are there all the same
)

// most is how many packs of a sort a list names.
func (p *pruner) most(limit int) int {
	if p.o.listMost > 0 {
		return min(limit, p.o.listMost)
	}
	return limit
}

// publish is P5: from here on no writer that opens uses what is condemned.
func (p *pruner) publish(ctx context.Context) error {
	if share := float64(p.report.Bytes) / float64(max(p.report.Bytes+p.report.Kept, 1)); share > p.o.MaxShare {
		return fmt.Errorf("it would remove %d MiB of %d, which is more than %.0f %%: look at it with a dry run, then ask for it: %w",
			p.report.Bytes>>20, (p.report.Bytes+p.report.Kept)>>20, p.o.MaxShare*100, ErrLargePrune)
	}
	for id, size := range p.sweep {
		if len(p.sweep) <= p.most(maxCondemned) {
			break
		}
		delete(p.sweep, id)
		p.report.Left++
		p.report.Packs--
		p.report.Bytes -= size
		p.report.Kept += size
	}
	c := newCondemned()
	for id := range p.sweep {
		c.packs[id] = struct{}{}
	}
	for s := range p.roots {
		c.backups[s] = struct{}{}
	}
	p.listCompacted(&c)
	return p.put(ctx, kindCondemned, condemnedName(p.id), c.encode())
}

// put writes a control object to all members.
func (p *pruner) put(ctx context.Context, kd kind, name string, payload []byte) error {
	object, err := p.r.keys.sealEnvelope(kd, name, payload)
	if err != nil {
		return err
	}
	_, err = everywhere(ctx, p, "take "+name, p.r.puts(name, object))
	return err
}

// remove deletes objects on all members, many at once.
func (p *pruner) remove(ctx context.Context, step string, names []string) error {
	if len(names) == 0 {
		return nil
	}
	var locked atomic.Int64
	defer func() { p.report.Locked += int(locked.Load()) }()
	group, gctx := errgroup.WithContext(ctx)
	for n, m := range p.ms {
		group.Go(func() error {
			some, sctx := errgroup.WithContext(gctx)
			some.SetLimit(deletesAtOnce)
			for i, name := range names {
				if sctx.Err() != nil {
					break
				}
				some.Go(func() error {
					_, err := one(sctx, p.r, m, func(ctx context.Context, m *member) (struct{}, error) {
						return struct{}{}, m.store.Delete(ctx, name)
					})
					if errors.Is(err, objstore.ErrRetained) {
						locked.Add(1)
						return nil
					}
					return err
				})
				if n == 0 {
					p.tell(step, int64(i), int64(len(names)))
				}
			}
			if err := some.Wait(); err != nil {
				return fmt.Errorf("%s did not delete: mend or replace it and prune again: %w", m.url(), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err //nolint:wrapcheck // wrapped above
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("canceled: %w", context.Cause(ctx))
	}
	return nil
}

// purge is P8: first the marks that outrank everything, then the root records.
// A store that is not who it was makes the whole prune void before that.
func (p *pruner) purge(ctx context.Context) error {
	if err := p.unchanged(ctx); err != nil {
		return err
	}
	var names []string
	for s, name := range p.roots {
		names = append(names, name)
		if p.abort[s] || p.purged[s] {
			continue // dead without it, for ever
		}
		if err := p.put(ctx, kindPurged, purgedName(s), nil); err != nil {
			return err
		}
		p.purged[s] = true
	}
	slices.Sort(names)
	return p.remove(ctx, "remove backups", names)
}

// removePacks is P9. Forwardings that lead nowhere any more go behind the packs.
func (p *pruner) removePacks(ctx context.Context) error {
	ids := slices.AppendSeq(slices.Collect(maps.Keys(p.sweep)), maps.Keys(p.gone))
	slices.SortFunc(ids, comparePacks)
	ids = slices.Compact(ids)
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = packName(id)
	}
	if err := p.remove(ctx, "remove packs", names); err != nil {
		return err
	}
	strays := slices.Clone(p.moves.strays)
	for old, all := range p.moves.all {
		if p.marked[old] || p.moves.later[old] {
			continue
		}
		for _, f := range all {
			if p.owners[f.session] != Undecided {
				strays = append(strays, f.name)
			}
		}
	}
	slices.Sort(strays)
	return p.remove(ctx, "remove packs", slices.Compact(strays))
}

// finish is P10: the tombstones that this prune saw have aged.
func (p *pruner) finish(ctx context.Context) error {
	seen := make([]ident, 0, len(p.tombs))
	for s := range p.tombs {
		seen = append(seen, s)
	}
	slices.SortFunc(seen, func(a, b ident) int { return slices.Compare(a[:], b[:]) })
	var payload []byte
	for _, s := range seen {
		payload = append(payload, s[:]...)
	}
	return p.put(ctx, kindDone, doneName(p.id), payload)
}

// tidy is P11: what nobody asks for any more.
func (p *pruner) tidy(ctx context.Context) error {
	names := []string{condemnedName(p.id)}
	votes, err := p.votes(ctx)
	if err != nil {
		return err
	}
	roots, err := p.listRoots(ctx)
	if err != nil {
		return err
	}
	dead := make(map[ident]bool)
	for s, b := range votes {
		d, failed := p.decided(ctx, s, b, roots)
		if failed != nil {
			return failed
		}
		dead[s] = p.purged[s] || d == Aborted
		if d != Undecided && len(b.open) > 0 {
			names = append(names, openName(s))
		}
		if p.purged[s] && d != Aborted {
			names = append(names, verdictName(s), certificateName(s))
		}
	}
	for s := range p.tombs {
		if p.purged[s] {
			names = append(names, deletedName(s))
		}
	}
	err = p.list(ctx, owedPrefix, func(_ *member, i objstore.Info) {
		if s, ok := owedSession(i.Name); ok && (dead[s] || p.purged[s]) {
			names = append(names, i.Name)
		}
	})
	if err != nil {
		return err
	}
	gone, err := p.r.removedKeys(ctx)
	if err != nil {
		return err
	}
	names = slices.AppendSeq(names, maps.Keys(gone))
	names = append(names, p.finished...)
	names = append(names, p.staleDamage()...)
	// Not those that came later: another prune may be racing for one, and would
	// take its store for one that creates a name twice.
	for name := range p.probes {
		names = append(names, name)
	}
	slices.Sort(names)
	if err := p.remove(ctx, "tidy", slices.Compact(names)); err != nil {
		return err
	}
	return p.closeLists(ctx)
}

// closeLists removes the lists of other prunes when nothing on them exists on
// any member: their prune has nothing left to do, whether it lives or not.
func (p *pruner) closeLists(ctx context.Context) error {
	holders := make(map[ident][]*member)
	err := p.list(ctx, prunePrefix, func(m *member, i objstore.Info) {
		if id, leaf, err := pruneName(i.Name); err == nil && leaf == condemnedLeaf && id != p.id {
			holders[id] = append(holders[id], m)
		}
	})
	if err != nil || len(holders) == 0 {
		return err
	}
	lists := make(map[ident]condemned)
	for id, ms := range holders {
		payload, failed := p.r.firstControl(ctx, ms, kindCondemned, condemnedName(id))
		c := newCondemned()
		if failed == nil {
			failed = c.decode(payload)
		}
		switch {
		case errors.Is(failed, objstore.ErrNotExist):
			continue // its own prune was faster
		case failed != nil:
			return fmt.Errorf("the list of prune %s: %w", id, failed)
		}
		lists[id] = c
	}
	there := newCondemned() // what exists
	err = p.list(ctx, packPrefix, func(_ *member, i objstore.Info) {
		if id, ok := parsePackName(i.Name); ok {
			there.packs[id] = struct{}{}
		}
	})
	if err == nil {
		err = p.list(ctx, rootPrefix, func(_ *member, i objstore.Info) {
			if s, ok := rootSession(i.Name); ok {
				there.backups[s] = struct{}{}
			}
		})
	}
	if err != nil {
		return err
	}
	for id, c := range lists {
		if c.meets(there) {
			continue
		}
		if err := p.put(ctx, kindDone, closedName(id), nil); err != nil {
			return err
		}
		if err := p.remove(ctx, "tidy", []string{condemnedName(id)}); err != nil {
			return err
		}
		p.report.Lists++
	}
	return nil
}

// meets reports whether two sets have a pack or a backup in common.
func (c *condemned) meets(o condemned) bool {
	for p := range c.packs {
		if o.has(p) {
			return true
		}
	}
	for b := range c.backups {
		if _, ok := o.backups[b]; ok {
			return true
		}
	}
	return false
}
