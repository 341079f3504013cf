package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/objstore"
)

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
	{damagedPrefix, kindDamage},
	{capablePrefix, kindCapabilities},
}

// controls copies control objects to the stores that lack them, or have wrong
// ones.
func (p *repairer) controls(ctx context.Context) error {
	if err := p.identities(ctx); err != nil {
		return err
	}
	for _, s := range p.r.Status(ctx) {
		p.done.Stores = append(p.done.Stores, RepairedStore{Status: s})
	}
	for _, k := range controlKinds {
		if p.check && k.kind == kindForwarding {
			continue
		}
		if err := p.control(ctx, k.prefix, k.kind); err != nil {
			return err
		}
	}
	if !p.o.ReadData {
		return nil
	}
	if err := p.lists(ctx); err != nil {
		return err
	}
	return p.sessions(ctx)
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
		if err := p.object(ctx, kd, name, holders, true); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("canceled: %w", context.Cause(ctx))
			}
			p.lose(err)
		}
	}
	return nil
}

// object sees to it that a control object is right wherever it is and, with fill,
// that every store that is up has it.
func (p *repairer) object(ctx context.Context, kd kind, name string, holders []*member, fill bool) error {
	var lack, wrong []*member
	for _, m := range p.r.current() {
		if fill && p.up(m) && !slices.Contains(holders, m) && p.lacks(ctx, name, m, holders) {
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
		p.store(m).example = name
	}
	for _, m := range wrong {
		p.store(m).Damaged++
		p.store(m).example = name
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

// lacks looks again whether a store lacks what others have: it may have been
// written, or removed everywhere, since they were listed.
func (p *repairer) lacks(ctx context.Context, name string, m *member, holders []*member) bool {
	stat := func(m *member) error {
		_, err := one(ctx, p.r, m, func(ctx context.Context, m *member) (int64, error) { return m.store.Stat(ctx, name) })
		return err
	}
	return errors.Is(stat(m), objstore.ErrNotExist) && slices.ContainsFunc(holders, func(m *member) bool { return stat(m) == nil })
}

// genuine reads one store's copy of a control object.
func (p *repairer) genuine(ctx context.Context, kd kind, name string, m *member) ([]byte, error) {
	return one(ctx, p.r, m, func(ctx context.Context, m *member) ([]byte, error) {
		object, err := getObject(ctx, m.store, name)
		if err != nil {
			return nil, err
		}
		return object, p.r.keys.genuine(kd, name, object)
	})
}

// genuine says whether an object is what the repository has under a name. A tag
// proves that but of a membership, which shows that it was written with the newest key.
func (k *keyring) genuine(kd kind, name string, object []byte) error {
	if kd == kindMembers {
		_, err := k.openMembership(name, object)
		return err
	}
	_, err := k.openEnvelope(kd, name, object)
	return err
}
