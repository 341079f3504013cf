package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A repository has one master key and any number of passwords up to maxKeys, each
// with an object "keys/<ID>" that holds the master key under it. One that is
// removed leaves the mark "removed-keys/<ID>" for ever: it outranks the object on
// a store that was down meanwhile, at opening and for repairs; a prune then
// removes what is left.

// Key is one password's key.
type Key struct {
	ID      string
	Label   string
	Created time.Time // zero when it is not known
	KDF     KDF
	Stores  int  // that have it
	Current bool // the one that this repository was opened with
}

// Keys returns the keys that have not been removed, the oldest first.
func (r *Repository) Keys(ctx context.Context) ([]Key, error) {
	names, err := r.union(ctx, keyPrefix)
	if err != nil {
		return nil, err
	}
	removed, err := r.removedKeys(ctx)
	if err != nil {
		return nil, err
	}
	var out []Key
	for name, ms := range names {
		if removed[name] {
			continue
		}
		w, err := r.readKey(ctx, ms, name)
		if err != nil {
			return nil, err
		}
		out = append(out, Key{
			ID: strings.TrimPrefix(name, keyPrefix), Label: w.Label, Created: w.Created, Stores: len(ms), Current: name == r.keyName,
			KDF: KDF{Time: w.KDF.Time, MemoryKiB: w.KDF.Memory, Threads: w.KDF.Threads},
		})
	}
	slices.SortFunc(out, func(a, b Key) int {
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// readKey reads a key from the first of the stores that has a genuine one.
func (r *Repository) readKey(ctx context.Context, ms []*member, name string) (w wrappedKey, err error) {
	var errs []error
	for _, m := range r.byHealth(ms) {
		payload, err := one(ctx, r, m, func(ctx context.Context, m *member) ([]byte, error) { return r.getControl(ctx, m.store, kindKey, name) })
		if err == nil {
			return w, decodeJSON(payload, &w)
		}
		errs = append(errs, err)
	}
	return w, fmt.Errorf("%s: %w: %w", name, ErrDamaged, errors.Join(errs...))
}

// removedKeys returns the names of the keys that were removed.
func (r *Repository) removedKeys(ctx context.Context) (map[string]bool, error) {
	names, err := r.union(ctx, removedKeyPrefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool)
	for name, ms := range names {
		for _, m := range r.byHealth(ms) {
			if _, err := one(ctx, r, m, func(ctx context.Context, m *member) ([]byte, error) {
				return r.getControl(ctx, m.store, kindRemovedKey, name)
			}); err == nil {
				out[keyPrefix+strings.TrimPrefix(name, removedKeyPrefix)] = true
				break
			}
		}
	}
	return out, nil
}

// AddKey makes another password open the repository. kdf may be nil for the
// default. When it fails, the password may open it or not: add it again, and
// remove what is there twice.
func (r *Repository) AddKey(ctx context.Context, password []byte, label string, kdf *KDF) (Key, error) {
	all, err := r.Keys(ctx)
	if err != nil {
		return Key{}, err
	}
	if len(all) >= maxKeys {
		return Key{}, fmt.Errorf("the repository has %d passwords, which is the most: remove one first: %w", len(all), ErrInvalid)
	}
	params := defaultKDF()
	if kdf != nil {
		params = kdfParams{Time: kdf.Time, Memory: kdf.MemoryKiB, Threads: kdf.Threads}
	}
	if err = params.check(); err != nil {
		return Key{}, fmt.Errorf("add a password: %w: %w", err, ErrInvalid)
	}
	id, err := newIdent()
	if err != nil {
		return Key{}, err
	}
	w, err := r.master.wrap(password, r.id, params)
	if err != nil {
		return Key{}, err
	}
	w.Label, w.Created = label, r.o.Now().UTC().Truncate(time.Second)
	payload, err := json.Marshal(w)
	if err != nil {
		return Key{}, fmt.Errorf("add a password: %w", err)
	}
	n, err := r.putOnAll(ctx, kindKey, keyName(id), payload)
	if err != nil {
		return Key{}, fmt.Errorf("add a password: %w", err)
	}
	return Key{ID: id.String(), Label: label, Created: w.Created, Stores: n, KDF: KDF{Time: params.Time, MemoryKiB: params.Memory, Threads: params.Threads}}, nil
}

// putOnAll writes a control object to all members that answer, at least 1+d.
func (r *Repository) putOnAll(ctx context.Context, kd kind, name string, payload []byte) (int, error) {
	object, err := r.keys.sealEnvelope(kd, name, payload)
	if err != nil {
		return 0, err
	}
	ms := r.current()
	answers := ask(ctx, r.o.Timing, ms, len(ms), func(ctx context.Context, m *member) (struct{}, error) {
		if err := r.identify(ctx, m); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, putSame(ctx, m.store, name, object)
	})
	n := len(succeeded(answers))
	if n < r.membership().quorum() {
		return n, fmt.Errorf("%s is on %d stores, %d are needed: try again when they are back: %w: %w", name, n, r.membership().quorum(), ErrTooFewStores, failures(answers))
	}
	return n, nil
}

// RemoveKey makes a password open the repository no longer. The last one stays,
// and without force the one that this repository was opened with. Whoever has the
// password and a copy of its object, or has had the master key, keeps what that
// opens. ErrNotFound: no key has this ID.
func (r *Repository) RemoveKey(ctx context.Context, id string, force bool) error {
	all, err := r.Keys(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(k Key) bool { return k.ID == id })
	switch {
	case i < 0:
		return fmt.Errorf("key %s: %w", id, ErrNotFound)
	case len(all) == 1:
		return fmt.Errorf("key %s is the only one: without it nobody could open the repository; add another password first: %w", id, ErrInvalid)
	case all[i].Current && !force:
		return fmt.Errorf("key %s is of the password that is being used: open the repository with another one, or ask for it by force: %w", id, ErrInvalid)
	}
	kid, err := parseIdent(id)
	if err != nil {
		return err
	}
	if _, err = r.putOnAll(ctx, kindRemovedKey, removedKeyName(kid), nil); err != nil {
		return fmt.Errorf("remove key %s: %w", id, err)
	}
	answers := ask(ctx, r.o.Timing, r.current(), len(r.current()), func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, m.store.Delete(ctx, keyName(kid))
	})
	if err := failures(answers); err != nil && len(succeeded(answers)) == 0 {
		return fmt.Errorf("key %s does not open the repository any more, and its object could not be removed: a prune does that: %w", id, err)
	}
	return nil
}

// notRemoved fails with ErrPassword when a key that opened was removed: a store
// that was down then, or lies, still has it.
func notRemoved(ctx context.Context, keys keyring, name string, given []met, repo ident) error {
	mark := removedKeyPrefix + strings.TrimPrefix(name, keyPrefix)
	for _, g := range given {
		if g.object == nil || g.record.Repository != repo {
			continue
		}
		object, err := getObject(ctx, g.store, mark)
		if err != nil {
			continue
		}
		if _, err = keys.openEnvelope(kindRemovedKey, mark, object); err == nil {
			return fmt.Errorf("this password was removed from the repository: %w", ErrPassword)
		}
	}
	return nil
}

// dropRemovedKeys takes the names of keys that were removed out.
func (r *Repository) dropRemovedKeys(ctx context.Context, names map[string][]*member) error {
	removed, err := r.removedKeys(ctx)
	if err != nil {
		return err
	}
	maps.DeleteFunc(names, func(name string, _ []*member) bool { return removed[name] })
	return nil
}
