package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
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
	Stores []RepairedStore
	Lost   []string // sentences: packs and control objects that cannot be rebuilt from what the stores have
}

// RepairedStore is what a repair found on one store.
type RepairedStore struct {
	Status  StoreStatus
	Missing int // shards and control objects that were not there
	Damaged int // those that were wrong
	Mended  int // of both
}

// OK reports whether nothing was found, or all that was is mended.
func (r RepairReport) OK() bool {
	return len(r.Lost) == 0 && !slices.ContainsFunc(r.Stores, func(s RepairedStore) bool {
		return s.Status.State != StoreUp || s.Missing+s.Damaged > s.Mended
	})
}

// Repair gives the stores what they should have and do not: shards, computed
// from any k others, and control objects, of which every store keeps one. Votes
// are each store's own and are not repaired. A wrong object is deleted only
// when the right one is at hand to take its place; nothing else is deleted.
// Backups, restores and prunes may run meanwhile: what a repair brings back
// behind a prune's back is garbage for the next.
func (r *Repository) Repair(ctx context.Context, o RepairOptions) (RepairReport, error) {
	c := newChecker(r, CheckOptions{ReadData: o.ReadData, Progress: o.Progress})
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
	done  RepairReport
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
			errs = append(errs, fmt.Errorf("shard %d of pack %s on %s: %w", slot, id, m.url(), err))
			continue
		}
		p.store(m).Mended++
	}
	return errors.Join(errs...)
}

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

// controlKinds are the control objects of which every member keeps one.
var controlKinds = []struct {
	prefix string
	kind   kind
}{
	{membersPrefix, kindMembers},
	{removedKeyPrefix, kindRemovedKey}, // before what they outrank
	{keyPrefix, kindKey},
	{purgedPrefix, kindPurged}, // as well
	{deletedPrefix, kindTombstone},
	{rootPrefix, kindRoot},
	{owedPrefix, kindOwed},
	{forwardPrefix, kindForwarding},
}

// controls copies control objects to the stores that lack them, or have wrong
// ones.
func (p *repairer) controls(ctx context.Context) error {
	for _, s := range p.r.Status(ctx) {
		p.done.Stores = append(p.done.Stores, RepairedStore{Status: s})
	}
	for _, k := range controlKinds {
		if err := p.control(ctx, k.prefix, k.kind); err != nil {
			return err
		}
	}
	return nil
}

func (p *repairer) control(ctx context.Context, prefix string, kd kind) error {
	names, err := p.r.union(ctx, prefix)
	if err != nil {
		return err
	}
	if kd == kindKey {
		if err := p.r.dropRemovedKeys(ctx, names); err != nil {
			return err
		}
	}
	for name, holders := range names {
		if err := p.object(ctx, kd, name, holders); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("canceled: %w", context.Cause(ctx))
			}
			p.lose(err)
		}
	}
	return nil
}

// object sees to it that every store that is up has a control object.
func (p *repairer) object(ctx context.Context, kd kind, name string, holders []*member) error {
	var lack, wrong []*member
	for _, m := range p.r.current() {
		if p.up(m) && !slices.Contains(holders, m) {
			lack = append(lack, m)
		}
	}
	var good []byte
	for _, m := range p.r.byHealth(holders) {
		if good != nil && !p.o.ReadData {
			break // one that is right will do
		}
		object, err := p.genuine(ctx, kd, name, m)
		switch {
		case err == nil:
			good = object
		case errors.Is(err, errEnvelope), errors.Is(err, ErrVersion):
			// Also one that claims a newer version: under one name there is
			// one object, and only if another store has it is this replaced.
			wrong = append(wrong, m)
		case errors.Is(err, objstore.ErrNotExist):
			// removed just now, or about to be
		case ctx.Err() != nil:
			return err
		}
	}
	for _, m := range lack {
		p.store(m).Missing++
	}
	for _, m := range wrong {
		p.store(m).Damaged++
	}
	if len(lack)+len(wrong) == 0 {
		return nil
	}
	if good == nil {
		return fmt.Errorf("%s is right on no store: %w", name, ErrDamaged)
	}
	if !p.apply {
		return nil
	}
	var errs []error
	for _, m := range slices.Concat(lack, wrong) {
		if err := p.replace(ctx, m, name, good, slices.Contains(wrong, m)); err != nil {
			errs = append(errs, err)
			continue
		}
		p.store(m).Mended++
	}
	return errors.Join(errs...)
}

// genuine reads one store's copy of a control object.
func (p *repairer) genuine(ctx context.Context, kd kind, name string, m *member) ([]byte, error) {
	return one(ctx, p.r, m, func(ctx context.Context, m *member) ([]byte, error) {
		object, err := getObject(ctx, m.store, name)
		if err != nil {
			return nil, err
		}
		_, err = p.r.keys.openEnvelope(kd, name, object)
		return object, err
	})
}
