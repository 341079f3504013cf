package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/objstore"
)

const (
	// maxDamageLists is how many lists are looked at of each store: those with the
	// highest numbers.
	maxDamageLists = 64
	// maxWrongLists is how many wrong ones a store may show before it is asked for no
	// more.
	maxWrongLists = 4
	// maxDamageObject is the length of the longest list.
	maxDamageObject = envelopeHeader + 4 + maxDamage*32 + envelopeTag
)

// damageList is a list of damaged packs that stores say they have.
type damageList struct {
	name    string
	version uint64
	id      ident
	holders []*member
}

// readDamage returns what is known of damaged packs.
func (r *Repository) readDamage(ctx context.Context) (*damage, error) {
	names, err := r.union(ctx, damagedPrefix)
	if err != nil {
		return nil, err
	}
	return r.newestDamage(ctx, names)
}

// newestDamage reads the lists of the highest number that a genuine list has. What
// nobody can read may have been made up by a store: its number says nothing, and it
// takes the place of no list that another store has.
func (r *Repository) newestDamage(ctx context.Context, names map[string][]*member) (*damage, error) {
	lists := damageLists(names)
	// What more stores have comes first: the more that what a few made up has to reach.
	slices.SortStableFunc(lists, func(a, b damageList) int { return cmp.Compare(len(b.holders), len(a.holders)) })
	d := newDamage()
	wrong := make(map[*member]int)
	for _, l := range lists {
		if l.version < d.version {
			continue
		}
		one, err := r.readDamageList(ctx, l, wrong)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		if err != nil {
			r.warn(ctx, "list of damaged packs not read", slog.String("list", l.name), slog.Any("error", err))
			continue
		}
		if one == nil {
			continue
		}
		if l.version > d.version {
			d = newDamage()
		}
		maps.Copy(d.packs, one.packs)
		d.lists[l.id], d.version = struct{}{}, l.version
	}
	return d, nil
}

// damageLists returns the lists that are among the newest of a store that has them,
// newest first.
func damageLists(names map[string][]*member) []damageList {
	var all []damageList
	for name, ms := range names {
		if v, id, ok := parseDamageName(name); ok {
			all = append(all, damageList{name, v, id, ms})
		}
	}
	slices.SortFunc(all, func(a, b damageList) int {
		return cmp.Or(cmp.Compare(b.version, a.version), slices.Compare(a.id[:], b.id[:]))
	})
	count := make(map[*member]int)
	return slices.DeleteFunc(all, func(l damageList) bool {
		beyond := true
		for _, m := range l.holders {
			count[m]++
			beyond = beyond && count[m] > maxDamageLists
		}
		return beyond
	})
}

// readDamageList reads a list from the first of its holders that has a genuine one; nil:
// they have shown too many that are wrong to be asked.
func (r *Repository) readDamageList(ctx context.Context, l damageList, wrong map[*member]int) (*damage, error) {
	var errs []error
	for _, m := range r.byHealth(l.holders) {
		if wrong[m] >= maxWrongLists {
			continue
		}
		d, err := one(ctx, r, m, func(ctx context.Context, m *member) (*damage, error) {
			object, err := getBounded(ctx, m.store, l.name, maxDamageObject)
			if err != nil {
				return nil, err
			}
			payload, err := r.keys.openEnvelope(kindDamage, l.name, object)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.url(), err)
			}
			d := newDamage()
			if err := d.decode(payload); err != nil {
				return nil, fmt.Errorf("%s: %w", l.name, err)
			}
			return d, nil
		})
		if err == nil {
			return d, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		if !errors.Is(err, objstore.ErrNotExist) {
			wrong[m]++
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
