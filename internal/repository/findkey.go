package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// maxKeys is how many passwords a repository may have, maxTries how many wrapped
// keys are read of each store and tried of all: each costs what the password's
// hashing costs. maxKeyObject is longer than any of them.
const (
	maxKeys      = 16
	maxTries     = 2 * maxKeys
	maxKeyObject = 64 << 10
	// maxRemoved bounds the marks of removed keys that are read of each store.
	maxRemoved = 64 << 10
)

// candidate is a wrapped key that some stores have.
type candidate struct {
	name, object string
}

// findKey opens the master keys with the password. A store may return a damaged
// key, and any number of those it made up: every distinct version is tried, those
// first that most stores have.
//
// A key of an older sealing epoch than the repository has opens nothing any more,
// and one of a rotation that was not published nothing yet: another may be there.
func (u *unlocker) findKey(ctx context.Context) (keys keyring, opened string, err error) {
	answers := ask(ctx, u.o.Timing, u.ms, len(u.ms)/2+1, candidates)
	count := make(map[candidate]int)
	var errs []error
	for _, a := range answers {
		for _, c := range a.value {
			count[c]++
		}
		if a.err != nil {
			errs = append(errs, a.err)
		}
	}
	order := slices.SortedFunc(maps.Keys(count), func(a, b candidate) int {
		return cmp.Or(count[b]-count[a], strings.Compare(a.name, b.name), strings.Compare(a.object, b.object))
	})
	for _, c := range order[:min(len(order), maxTries)] {
		keys, err = u.openKey(ctx, c.name, []byte(c.object))
		if err == nil {
			err = notRemoved(ctx, u.o.Timing, keys, c.name, u.ms)
		}
		if err == nil {
			err = u.newest(ctx, keys)
		}
		if err == nil {
			return keys, c.name, nil
		}
		if ctx.Err() != nil {
			return keyring{}, "", fmt.Errorf("open the repository: %w", ctx.Err())
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
	}
	for _, err := range errs {
		if errors.Is(err, errOldKey) {
			return keyring{}, "", fmt.Errorf("the password opens only the key that repository %s had before it was rotated: use the password that rotated it, or one added since: %w", u.repo, ErrPassword)
		}
	}
	for _, err := range errs {
		if errors.Is(err, ErrPassword) {
			return keyring{}, "", fmt.Errorf("the password does not open repository %s: %w", u.repo, ErrPassword)
		}
	}
	return keyring{}, "", because(fmt.Errorf("no key of repository %s can be read: %w", u.repo, ErrTooFewStores), errs)
}

// candidates reads what a store has under "keys/". With an error it returns what it
// could read: a store that fails at one has others.
func candidates(ctx context.Context, m *member) ([]candidate, error) {
	// Those that this store says are removed take no place of others: they may stay
	// for long where nobody may delete. Whether one of the others is, notRemoved asks.
	removed := make(map[string]bool)
	enough := errors.New("enough")
	err := m.store.List(ctx, removedKeyPrefix, func(i objstore.Info) error {
		if removed[keyPrefix+strings.TrimPrefix(i.Name, removedKeyPrefix)] = true; len(removed) == maxRemoved {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, err //nolint:wrapcheck // stores name themselves
	}
	var names []string
	err = m.store.List(ctx, keyPrefix, func(i objstore.Info) error {
		if removed[i.Name] {
			return nil
		}
		if names = append(names, i.Name); len(names) == maxTries {
			return enough
		}
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, err //nolint:wrapcheck // stores name themselves
	}
	var out []candidate
	var errs []error
	for _, name := range names {
		object, err := getBounded(ctx, m.store, name, maxKeyObject)
		if err == nil {
			_, err = parseEnvelope(object)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s in %s: %w", name, m.store.URL(), err))
			continue
		}
		out = append(out, candidate{name, string(object)})
	}
	return out, errors.Join(errs...)
}

// because puts what went wrong, if anything did, behind err in one sentence.
func because(err error, reasons []error) error {
	sep := ": "
	for _, reason := range reasons {
		err = fmt.Errorf("%w%s%w", err, sep, reason)
		sep = "; "
	}
	return err
}

// openKey opens a wrapped key, and by it the master keys of all sealing epochs.
func (u *unlocker) openKey(ctx context.Context, name string, object []byte) (keys keyring, err error) {
	e, err := parseEnvelope(object)
	if err != nil {
		return keys, err
	}
	if e.kind != kindKey {
		return keys, fmt.Errorf("kind %d: %w", e.kind, errEnvelope)
	}
	master, err := unwrap(e.payload, u.o.Password, u.repo, e.epoch)
	if err != nil {
		return keys, err
	}
	if keys, err = u.chain(ctx, e.epoch, master); err != nil {
		return keys, err
	}
	_, err = keys.openEnvelope(kindKey, name, object)
	return keys, err
}
