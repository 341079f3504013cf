package repository

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// keyRecord is a key with what is stored of it.
type keyRecord struct {
	Key
	epoch   int // sealing epoch of the master key that it opens
	payload []byte
}

// maxListed bounds how many names under "keys/" are read: those that most stores
// have. What a store makes up comes last.
const maxListed = 4 * maxTries

// keyRecords returns the keys that were not removed, as those of the newest sealing
// epoch that any store knows.
func (r *Repository) keyRecords(ctx context.Context) ([]keyRecord, error) {
	if err := r.refreshMembership(ctx); err != nil {
		return nil, err
	}
	holders, err := r.union(ctx, keyPrefix)
	if err != nil {
		return nil, err
	}
	removed, err := r.removedKeys(ctx)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(holders, func(name string, _ []*member) bool {
		_, err := parseIdent(strings.TrimPrefix(name, keyPrefix))
		return err != nil || removed[name]
	})
	names := slices.SortedFunc(maps.Keys(holders), func(a, b string) int {
		return cmp.Or(len(holders[b])-len(holders[a]), strings.Compare(a, b))
	})
	var out []keyRecord
	for _, name := range names[:min(len(names), maxListed)] {
		k, err := r.readKey(ctx, holders[name], name)
		if errors.Is(err, objstore.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	slices.SortFunc(out, func(a, b keyRecord) int {
		return cmp.Or(a.rank()-b.rank(), a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// usedKey is the name of the key that the repository was opened with.
func (r *Repository) usedKey() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keyName
}

// opens reports whether a key opens the repository.
func (k *Key) opens() bool { return !k.Damaged && !k.Old }

// rank orders keys: those that open, the old ones, the damaged ones.
func (k *Key) rank() int {
	switch {
	case k.Damaged:
		return 2
	case k.Old:
		return 1
	default:
		return 0
	}
}

// readKey reads a key from all stores that list it. One that all have and none has
// whole is Damaged; the error is ErrNotExist when none has it any more, and another
// one when a store that does not answer may have it.
func (r *Repository) readKey(ctx context.Context, ms []*member, name string) (keyRecord, error) {
	k := keyRecord{Key: Key{ID: strings.TrimPrefix(name, keyPrefix), Current: name == r.usedKey()}}
	answers := ask(ctx, r.o.Timing, ms, len(ms), func(ctx context.Context, m *member) (envelope, error) {
		object, err := getObject(ctx, m.store, name)
		if err != nil {
			return envelope{}, err
		}
		return r.keys.authenticate(kindKey, name, object)
	})
	gone := 0
	var unsure error
	for _, a := range answers {
		switch {
		case a.err == nil:
			k.Stores++
			k.payload, k.epoch = a.value.payload, a.value.epoch
		case errors.Is(a.err, objstore.ErrNotExist):
			gone++
		case !errors.Is(a.err, errEnvelope):
			unsure = a.err
		}
	}
	switch {
	case k.Stores > 0:
	case unsure != nil:
		return k, fmt.Errorf("%s: %w", name, unsure)
	case gone == len(answers):
		return k, fmt.Errorf("%s: %w", name, objstore.ErrNotExist)
	default:
		k.Damaged = true
		return k, nil
	}
	m := r.membership()
	var w wrappedKey
	if err := decodeJSON(k.payload, &w); err != nil {
		return k, fmt.Errorf("%s: %w", name, err)
	}
	k.Label, k.Created, k.Old = w.Label, w.Created, k.epoch != m.epochs() || !bytes.Equal(w.Check, m.keyCheck())
	k.KDF = KDF{Time: w.KDF.Time, MemoryKiB: w.KDF.Memory, Threads: w.KDF.Threads}
	return k, nil
}

// removedKeys returns the names of the keys that were removed.
func (r *Repository) removedKeys(ctx context.Context) (map[string]bool, error) {
	names, err := r.union(ctx, removedKeyPrefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]bool)
	for name, ms := range names {
		if _, err := r.firstControl(ctx, ms, kindRemovedKey, name); err == nil {
			out[keyPrefix+strings.TrimPrefix(name, removedKeyPrefix)] = true
		}
	}
	return out, nil
}

// notRemoved fails with ErrPassword when a key that opened was removed: a store
// that was down then, or lies, still has it.
func notRemoved(ctx context.Context, t Timing, keys keyring, name string, ms []*member) error {
	mark := removedKeyPrefix + strings.TrimPrefix(name, keyPrefix)
	answers := ask(ctx, t, ms, max(1, len(ms)-1), func(ctx context.Context, m *member) (bool, error) {
		object, err := getObject(ctx, m.store, mark)
		if err != nil {
			if errors.Is(err, objstore.ErrNotExist) {
				return false, nil
			}
			return false, err
		}
		_, err = keys.openEnvelope(kindRemovedKey, mark, object)
		return err == nil, nil // one that is not genuine is none
	})
	if slices.ContainsFunc(answers, func(a answer[bool]) bool { return a.err == nil && a.value }) {
		return fmt.Errorf("this password was removed from the repository: %w", ErrPassword)
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
