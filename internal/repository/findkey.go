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
)

// candidate is a wrapped key that some stores have.
type candidate struct {
	name, object string
}

// findKey opens the master key with the password. A store may return a damaged key,
// and any number of those it made up: every distinct version is tried, those first
// that most stores have.
func findKey(ctx context.Context, o Options, repo ident, given []met) (key masterKey, opened string, err error) {
	var ms []*member
	for _, g := range given {
		if g.object != nil && g.record.Repository == repo {
			ms = append(ms, &member{id: g.record.Store, store: g.store})
		}
	}
	answers := ask(ctx, o.Timing, ms, len(ms)/2+1, candidates)
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
		found, keys, err := openKey(c.name, []byte(c.object), o.Password, repo)
		if err == nil {
			err = notRemoved(ctx, o.Timing, keys, c.name, ms)
		}
		if err == nil {
			return found, c.name, nil
		}
		if ctx.Err() != nil {
			return key, "", fmt.Errorf("open the repository: %w", ctx.Err())
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
	}
	for _, err := range errs {
		if errors.Is(err, ErrPassword) {
			return key, "", fmt.Errorf("the password does not open repository %s: %w", repo, ErrPassword)
		}
	}
	return key, "", because(fmt.Errorf("no key of repository %s can be read: %w", repo, ErrTooFewStores), errs)
}

// candidates reads what a store has under "keys/". With an error it returns what it
// could read: a store that fails at one has others.
func candidates(ctx context.Context, m *member) ([]candidate, error) {
	var names []string
	enough := errors.New("enough")
	err := m.store.List(ctx, keyPrefix, func(i objstore.Info) error {
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

func openKey(name string, object, password []byte, repo ident) (key masterKey, keys keyring, err error) {
	e, err := parseEnvelope(object)
	if err != nil {
		return key, keys, err
	}
	if e.kind != kindKey {
		return key, keys, fmt.Errorf("kind %d: %w", e.kind, errEnvelope)
	}
	if key, err = unwrap(e.payload, password, repo); err != nil {
		return key, keys, err
	}
	if keys, err = key.ring(repo); err != nil {
		return key, keys, err
	}
	_, err = keys.openEnvelope(kindKey, name, object)
	return key, keys, err
}

// proved says whether the identity of any store is authentic under the keys.
func (r *Repository) proved(given []met) bool {
	return slices.ContainsFunc(given, func(g met) bool {
		if g.object == nil {
			return false
		}
		_, err := r.keys.openEnvelope(kindStore, storeName, g.object)
		return err == nil
	})
}
