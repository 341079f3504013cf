package repository

import (
	"context"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// readDamage reads the lists of damaged packs, of which some may be out of date.
func (p *pruner) readDamage(ctx context.Context) error {
	p.damaged = make(map[string][]*member)
	err := p.list(ctx, damagedPrefix, func(m *member, i objstore.Info) {
		if _, _, ok := parseDamageName(i.Name); ok {
			p.damaged[i.Name] = append(p.damaged[i.Name], m)
		}
	})
	if err == nil {
		p.damage, err = p.r.newestDamage(ctx, p.damaged)
	}
	return err
}

// staleDamage returns the lists of damaged packs that say nothing any more: those
// with a lower number than one that every member has, and the newest when they name
// nothing that a store has. The lower ones go first, so that none comes to count
// again for want of a newer one.
func (p *pruner) staleDamage() []string {
	if p.damage == nil || p.damage.version == 0 {
		return nil
	}
	var older, newest []string
	whole := true
	for name, holders := range p.damaged {
		switch v, id, _ := parseDamageName(name); {
		case v < p.damage.version:
			older = append(older, name)
		case v == p.damage.version:
			_, read := p.damage.lists[id]
			whole = whole && read && len(holders) == len(p.ms)
			newest = append(newest, name)
		}
	}
	switch {
	case !whole:
		return nil
	case len(older) > 0:
		return older
	}
	for id := range p.damage.packs {
		_, there := p.packs[id]
		if _, goes := p.sweep[id]; there && !goes {
			return nil
		}
	}
	return newest
}
