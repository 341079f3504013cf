package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// errOldKey: a master key is that of an older sealing epoch than the repository has.
var errOldKey = errors.New("the key of the repository was rotated since")

// unlocker finds the master keys of a repository that is being opened, by a
// password or a recovery sheet. Of one that was rotated, either gives the newest;
// the membership leads to those before it.
type unlocker struct {
	o    Options
	repo ident
	ms   []*member // the stores that say that they are of the repository

	claims map[int][]*membership         // by sealing epoch that is looked for: unauthenticated
	latest map[ident]answer[*membership] // by store: the newest genuine one under the keys that were tried last
}

func newUnlocker(o Options, repo ident, given []met) *unlocker {
	u := &unlocker{o: o, repo: repo}
	for _, g := range given {
		if g.object != nil && g.record.Repository == repo {
			u.ms = append(u.ms, &member{id: g.record.Store, store: g.store})
		}
	}
	return u
}

// chain returns the keys that hang on the master key of a sealing epoch.
func (u *unlocker) chain(ctx context.Context, epoch int, master masterKey) (keyring, error) {
	if epoch == 0 {
		return master.ring(u.repo)
	}
	err := fmt.Errorf("a rotation of the key that was not finished: %w", errEpoch)
	for _, m := range u.claimed(ctx, epoch) {
		masters, merr := m.masters(u.repo, epoch, master)
		if merr == nil {
			return newKeyring(masters, u.repo)
		}
		err = merr
	}
	return keyring{}, err
}

// claimed returns what the stores say is their newest membership, with as many
// sealing epochs if there is one. Nothing authenticates it before there is a key; it
// is looked at only for what opens under one.
func (u *unlocker) claimed(ctx context.Context, epoch int) []*membership {
	if all, ok := u.claims[epoch]; ok {
		return all
	}
	answers := ask(ctx, u.o.Timing, u.ms, len(u.ms), func(ctx context.Context, m *member) (*membership, error) {
		return latestRecord(ctx, m.store, epoch, func(_ string, object []byte) (*membership, error) { return claim(object) })
	})
	var all []*membership
	for _, a := range answers {
		if a.value != nil {
			all = append(all, a.value)
		}
	}
	slices.SortFunc(all, func(a, b *membership) int { return b.epochs() - a.epochs() })
	if u.claims == nil {
		u.claims = make(map[int][]*membership)
	}
	u.claims[epoch] = all
	return all
}

// newest says whether keys are those of the newest sealing epoch. The error is
// errOldKey when they are not.
func (u *unlocker) newest(ctx context.Context, keys keyring) error {
	answers := ask(ctx, u.o.Timing, u.ms, len(u.ms), func(ctx context.Context, m *member) (*membership, error) {
		return keys.latestMembership(ctx, m.store, u.repo)
	})
	u.latest = make(map[ident]answer[*membership])
	known, epoch := keys.sealing.known(), -1
	var best *membership
	for _, a := range answers {
		if a.value != nil && a.value.epochs() <= known && a.value.newer(best) {
			best = a.value
		}
	}
	for _, a := range answers {
		if a.value != nil && best.expels(a.m.id, a.value) {
			a.value = nil
		}
		u.latest[a.m.id] = a
		if a.value != nil {
			epoch = max(epoch, a.value.epochs())
		}
	}
	switch {
	case epoch > known:
		return fmt.Errorf("%w: %w", ErrPassword, errOldKey)
	case epoch >= 0 && epoch < known:
		return fmt.Errorf("a rotation of the key that no store has a genuine record of: %w", errEpoch)
	}
	return nil // or no membership can be read, which join says
}

// byMaster opens the master keys with a recovery sheet.
func (u *unlocker) byMaster(ctx context.Context, master masterKey, given []met) (keyring, error) {
	keys, err := master.ring(u.repo)
	if err != nil {
		return keys, err
	}
	found := keys.provedBy(given)
	var claims []*membership
	if !found {
		claims = u.claimed(ctx, maxEpochs) // it does not say of which epoch it is
	}
	for _, m := range claims {
		for epoch := m.epochs(); epoch > 0 && !found; epoch-- {
			masters, merr := m.masters(u.repo, epoch, master)
			if merr != nil {
				continue
			}
			if keys, err = newKeyring(masters, u.repo); err != nil {
				return keys, err
			}
			found = keys.provedBy(given)
		}
	}
	if !found {
		return keys, fmt.Errorf("the recovery sheet is not that of repository %s: %w", u.repo, ErrPassword)
	}
	if err = u.newest(ctx, keys); errors.Is(err, errOldKey) {
		return keys, fmt.Errorf("the recovery sheet was printed before the key of repository %s was rotated: take the one printed since, or a password: %w", u.repo, ErrPassword)
	}
	return keys, err
}

// provedBy says whether the identity of any store is authentic under the keys.
func (k *keyring) provedBy(given []met) bool {
	return slices.ContainsFunc(given, func(g met) bool {
		if g.object == nil {
			return false
		}
		_, err := k.openEnvelope(kindStore, storeName, g.object)
		return err == nil
	})
}
