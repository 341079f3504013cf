package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// RepairOptions say how far a repair goes.
type RepairOptions struct {
	// Apply writes; without it a repair only says what it would do.
	Apply bool
	// ReadData also finds damage that only reading every byte shows.
	ReadData bool
	// Progress, if not nil, is called now and then, by one goroutine at a time.
	Progress func(CheckProgress)
}

// RepairReport is what a repair did, or would do.
type RepairReport struct {
	Stores  []RepairedStore
	Lost    []string       // sentences: packs and control objects that cannot be rebuilt from what the stores have
	Backups []BackupReport // those that need what cannot be rebuilt, with the blocks; also backups in the trash

	Unread []string // sentences: shards of which nobody knows whether they are right, as their stores did not answer

	Beyond      int    // packs that are known to be damaged beyond repair (Apply)
	Unpublished string // as in a CheckReport (Apply)
}

// RepairedStore is what a repair found on one store.
type RepairedStore struct {
	Status  StoreStatus
	Missing int // shards and control objects that were not there
	Damaged int // those that were wrong
	Mended  int // of both

	example string // name of a control object among them
}

// OK reports whether nothing was found, or all that was is mended.
func (r RepairReport) OK() bool {
	return len(r.Lost)+len(r.Backups)+len(r.Unread) == 0 && !slices.ContainsFunc(r.Stores, func(s RepairedStore) bool {
		return s.Status.State != StoreUp || s.Missing+s.Damaged > s.Mended
	})
}

// Repair gives the stores what they should have and do not: shards, computed
// from any k others, and control objects, of which every store keeps one. Votes
// are each store's own: a wrong one is written anew where the decision is certain
// without it. A wrong object is deleted only when the right one is at hand to take
// its place; nothing else is deleted.
// Backups, restores and prunes may run meanwhile: what a repair brings back
// behind a prune's back is garbage for the next.
func (r *Repository) Repair(ctx context.Context, o RepairOptions) (RepairReport, error) {
	// What is copied has to be of the newest membership: one that came late, or that
	// somebody with an old key made up, must not get to other stores.
	r.reunite(ctx)
	if err := r.refreshMembership(ctx); err != nil {
		return RepairReport{}, err
	}
	c := newChecker(r, CheckOptions{ReadData: o.ReadData, Progress: o.Progress, Publish: o.Apply})
	c.trash = true
	p := &repairer{checker: c, apply: o.Apply}
	// What there is of root records comes first: it says which packs are needed.
	err := p.controls(ctx)
	if err == nil {
		err = c.find(ctx)
	}
	if err == nil {
		err = p.packsOf(ctx)
	}
	if err == nil {
		err = p.losers(ctx)
	}
	if err == nil && o.Apply {
		err = c.publish(ctx)
	}
	p.done.Beyond, p.done.Unpublished, p.done.Unread = c.report.Beyond, c.report.Unpublished, c.unread
	for _, img := range c.images {
		if img != nil {
			err = errors.Join(err, img.Close())
		}
	}
	if err != nil {
		err = fmt.Errorf("repair: %w", err)
	}
	return p.done, err
}

// repairer is one repair.
type repairer struct {
	*checker
	apply bool
	check bool // it is a part of a check, which looks at forwardings itself
	done  RepairReport
	lost  map[chunk.PackID]bool // cannot be rebuilt
}

// store returns what is reported of a member.
func (p *repairer) store(m *member) *RepairedStore {
	i := slices.IndexFunc(p.done.Stores, func(s RepairedStore) bool { return s.Status.ID == m.id.String() })
	if i < 0 {
		return &RepairedStore{} // given and no member
	}
	return &p.done.Stores[i]
}

func (p *repairer) up(m *member) bool { return p.store(m).Status.State == StoreUp }

func (p *repairer) lose(err error) {
	const most = 1000
	if len(p.done.Lost) < most {
		p.done.Lost = append(p.done.Lost, sentence(err))
	}
}

// packsOf rebuilds the shards that needed packs lack on stores that are up.
func (p *repairer) packsOf(ctx context.Context) error {
	p.lost = make(map[chunk.PackID]bool)
	ids := p.sorted()
	for n, id := range ids {
		pc := p.packs[id]
		if pc.going {
			continue // compacted: nobody misses its shards
		}
		holders := p.r.holders(id)
		var gone []int // shards
		for slot, holder := range holders {
			if !p.up(holder) {
				continue
			}
			switch s := p.store(holder); {
			case pc.sizes[slot] < 0:
				s.Missing++
				gone = append(gone, slot)
			case pc.bad[slot]:
				s.Damaged++
				gone = append(gone, slot)
			}
		}
		if len(gone) == 0 {
			continue
		}
		if err := p.rebuild(ctx, id, holders, gone); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("canceled: %w", context.Cause(ctx))
			}
			p.lose(err)
			if !errors.Is(err, errNotTaken) {
				p.lost[id] = true
			}
		}
		p.o.Progress(CheckProgress{"repair", int64(n + 1), int64(len(ids))})
	}
	return nil
}

// rebuild computes shards of one pack and puts them where they belong.
func (p *repairer) rebuild(ctx context.Context, id chunk.PackID, holders []*member, gone []int) error {
	f := &fetcher{r: p.r, name: packName(id), holders: holders, desperate: true}
	defer f.release()
	// Also when nothing is to be written: it says whether it could be.
	shards, _, err := p.r.coder.Rebuild(ctx, f, id, gone)
	if err != nil || !p.apply {
		return err //nolint:wrapcheck // names the pack
	}
	var errs []error
	for i, slot := range gone {
		m := holders[slot]
		err := p.replace(ctx, m, packName(id), shards[i], p.packs[id].sizes[slot] >= 0)
		if err == nil {
			err = p.r.coder.Verify(ctx, f, id, slot)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("shard %d of pack %s on %s: %w: %w", slot, id, m.url(), errNotTaken, err))
			continue
		}
		p.packs[id].sizes[slot], p.packs[id].bad[slot] = int64(len(shards[i])), false
		p.store(m).Mended++
	}
	p.packs[id].whole = true
	return errors.Join(errs...)
}

// errNotTaken says that what was rebuilt is not where it belongs.
var errNotTaken = errors.New("a rebuilt shard was not taken")

// replace puts an object, in the place of a wrong one if there is one.
func (p *repairer) replace(ctx context.Context, m *member, name string, object []byte, wrong bool) error {
	t := p.r.o.Timing
	a := ask(ctx, t, []*member{m}, 1, func(ctx context.Context, m *member) (struct{}, error) {
		if err := p.r.identify(ctx, m); err != nil {
			return struct{}{}, err
		}
		if wrong {
			if err := m.store.Delete(ctx, name); err != nil {
				return struct{}{}, err //nolint:wrapcheck // stores name themselves and the object
			}
		}
		return struct{}{}, putSame(ctx, m.store, name, object)
	})[0]
	return a.err
}
