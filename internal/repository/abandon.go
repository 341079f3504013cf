package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// AbandonChange removes the mark of a change whose process is gone for good. What
// it had put on the store that was to join is nobody's: empty that store before it
// is named again. A change that has published the new membership is not abandoned
// but done. ErrNotFound: there is none with this ID.
//
// A rotation of the key is given up: every member has to answer, as one that took the
// new membership would shut out all passwords but one. without are the IDs of members
// that do not answer and never will: they are members no more, and stay none if they
// come back after all. Each leaves a place for ReplaceStore to fill.
func (r *Repository) AbandonChange(ctx context.Context, id string, without ...string) error {
	change, err := parseIdent(id)
	if err != nil {
		return err
	}
	r.reunite(ctx)
	if err = r.refreshMembership(ctx); err != nil {
		return err
	}
	holders, err := r.union(ctx, changeName(change))
	if err != nil {
		return err
	}
	if len(holders[changeName(change)]) == 0 {
		return fmt.Errorf("change %s: %w", id, ErrNotFound)
	}
	c, err := r.readChange(ctx, holders[changeName(change)], changeName(change))
	switch {
	case err == nil && c.What == changeRotate && c.Next != nil:
		return r.giveUpRotation(ctx, c, without)
	case errors.Is(err, objstore.ErrDown):
		return err
	case len(without) > 0:
		return fmt.Errorf("change %s is no rotation of the key: it is abandoned without naming stores that are lost: %w", id, ErrInvalid)
	}
	// One that nobody can read is in the way of prunes as well.
	return r.endChange(ctx, change)
}

// Giving up a rotation, which may have been killed at any moment, or still be alive:
//
//	look     no member has its membership
//	take     members/<v+1>, the name that it would publish under, on every member: names are
//	         created once, so that it comes to none of them any more. Until all have it the
//	         rotation is not over, whatever the version of those that have (over)
//	end      its key, behind that as it may open the repository until then, and the mark
//
// A store that is gone for good cannot be looked at, and may be the only one with the
// new membership. Nobody relies on it there: for that it has to be on n-k+1 stores,
// and never gets to more than n-k, as k at least take the other one. The membership
// that takes the name has another ID in that store's place, which no store has: so that
// what it says counts for nothing if it comes back.
func (r *Repository) giveUpRotation(ctx context.Context, c *changeRecord, without []string) error {
	m := r.membership()
	if m.follows(c.Next) {
		if len(without) > 0 {
			return fmt.Errorf("the rotation was published: \"cairn repo key rotate\" ends it, and \"cairn repo replace-store\" puts another store in the place of a lost one: %w", ErrChange)
		}
		// Whoever finds no mark takes it for published.
		if err := r.publishMembership(ctx, m, nil, m.readerQuorum()); err != nil {
			return err
		}
		return r.endChange(ctx, c.Change)
	}
	if m.Version > c.Next.Version && m.epochs() >= c.Next.epochs() {
		return r.endChange(ctx, c.Change) // another one was published since, and outranks it
	}
	lost, err := r.lostMembers(ctx, c, without)
	if err != nil {
		return err
	}
	need := len(m.Stores) - len(lost)
	if err = r.unpublished(ctx, lost); err != nil {
		return err
	}
	if c.rotates() && m.Version >= c.Next.Version { // an earlier attempt got to some of the stores
		if err = r.takeName(ctx, c, lost); err != nil {
			return needsAll(err)
		}
	}
	next := m.next()
	for _, l := range lost {
		id, ierr := newIdent()
		if ierr != nil {
			return ierr
		}
		next = next.replaced(l, id)
		next.Version = m.Version + 1
	}
	if err = r.publishMembership(ctx, next, nil, need); err != nil {
		return needsAll(err)
	}
	all, err := r.keyRecords(ctx)
	if err != nil {
		return err
	}
	// A mark that somebody made up may name any key.
	if !slices.ContainsFunc(all, func(k keyRecord) bool { return k.ID == c.Key.String() && k.opens() }) {
		if _, err = r.putOnAllAt(ctx, 0, need, kindRemovedKey, removedKeyName(c.Key), nil); err != nil {
			return needsAll(err)
		}
		r.dropKey(ctx, c.Key.String())
	}
	return r.endChange(ctx, c.Change)
}

// takeName takes the name of a rotation's membership on all members but the lost that
// do not have another membership under it, by the one at hand as a record of before.
func (r *Repository) takeName(ctx context.Context, c *changeRecord, lost []ident) error {
	past := r.membership().next()
	past.Version = c.Next.Version
	name, object, err := r.keys.sealMembership(past)
	if err != nil {
		return err
	}
	put := r.puts(name, object)
	ms := slices.DeleteFunc(r.current(), func(m *member) bool { return slices.Contains(lost, m.id) })
	answers := ask(ctx, r.o.Timing, ms, len(ms), func(ctx context.Context, m *member) (struct{}, error) {
		took, err := put(ctx, m)
		if !errors.Is(err, objstore.ErrExist) {
			return took, err
		}
		there, gerr := getObject(ctx, m.store, name)
		if gerr != nil {
			return took, gerr
		}
		other, gerr := r.keys.openMembership(name, there)
		if gerr == nil && other.epochs() < c.Next.epochs() {
			return took, nil
		}
		return took, errors.Join(err, gerr)
	})
	if n := len(succeeded(answers)); n < len(ms) {
		return fmt.Errorf("%s is on %d stores, %d are needed: %w: %w", name, n, len(ms), ErrTooFewStores, failures(answers))
	}
	return nil
}

func needsAll(err error) error {
	return fmt.Errorf("give up the rotation of the key: every store has to take part that is not named with --without as gone for good; when they do, give the same command again: %w", err)
}

// lostMembers are the members with these IDs, each of which must not answer. Without
// them enough have to be left to give back what they had. One that an earlier attempt
// put another ID in the place of stands for that.
func (r *Repository) lostMembers(ctx context.Context, c *changeRecord, without []string) ([]ident, error) {
	var lost []ident
	for _, w := range without {
		id, err := parseIdent(w)
		if err != nil {
			return nil, err
		}
		m := r.membership()
		if at := slices.Index(c.Next.Stores, id); at >= 0 && at < len(m.Stores) && !m.has(id) {
			id = m.Stores[at]
		}
		i := slices.IndexFunc(r.current(), func(m *member) bool { return m.id == id })
		if i < 0 {
			return nil, fmt.Errorf("store %s is no member of this repository: \"cairn repo status\" shows those that are: %w", w, ErrInvalid)
		}
		lose := r.current()[i]
		if _, err = one(ctx, r, lose, func(ctx context.Context, m *member) (struct{}, error) { return struct{}{}, r.identify(ctx, m) }); err == nil {
			return nil, fmt.Errorf("%s answers, so that it is not lost: do not name it: %w", lose.url(), ErrInvalid)
		}
		if !slices.Contains(lost, id) {
			lost = append(lost, id)
		}
	}
	if len(lost) == 0 {
		return nil, nil
	}
	return lost, r.enoughWithout(ctx, lost)
}

// unpublished says whether no member but those that are lost has another membership
// than the one at hand.
func (r *Repository) unpublished(ctx context.Context, lost []ident) error {
	ms := slices.DeleteFunc(r.current(), func(m *member) bool { return slices.Contains(lost, m.id) })
	for _, a := range ask(ctx, r.o.Timing, ms, len(ms), func(ctx context.Context, m *member) (*membership, error) {
		return r.keys.latestClaim(ctx, m.store, r.id)
	}) {
		if a.err != nil {
			return fmt.Errorf("the rotation may have been published on %s, which does not answer: bring that store back, or give \"cairn repo key rotate\" again with the password that began it; if the store is gone for good, name it with --without: %w: %w", a.m.url(), ErrTooFewStores, a.err)
		}
		if a.value != nil && a.value.newer(r.membership()) {
			return fmt.Errorf("the rotation was published meanwhile: \"cairn repo key rotate\" ends it: %w", ErrChange)
		}
	}
	return nil
}
