package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// Replacing a store. The order is what makes it safe:
//
//	join      the new store gets a store ID of its own
//	mark      no prune gets past P0 or P8 from here on
//	copy      all control objects of all other stores; votes only as certificates
//	retire    the old store, if it answers, loses its identity: nobody counts it
//	copy      once more, the lists of prunes first: what came meanwhile
//	publish   members/<v+1>, on the new store first: the old one is out, the new one in
//	          the mark goes
//	repair    the shards
//
// A crash anywhere leaves a mark; the same command goes on from there. Shards come
// last and not before the publication: until they are there redundancy is lower
// either way, and backups need not owe the new store theirs.

// StoreChange is what replacing or adding a store did.
type StoreChange struct {
	Lost   string // ID of the store that is no member any more
	Joined string // ID of the new member
	Copied int    // control objects
	Repair RepairReport
}

// ReplaceStore puts a store in the place of a member, which may be lost or still
// answer: to is an empty store, which may be where the lost one was. The repository
// owns to from here on. lost is the member's ID; see Status. Its shards are
// rebuilt then, which the report tells; when that fails or is interrupted Repair
// goes on with it. Backups, restores and deletions go on meanwhile.
func (r *Repository) ReplaceStore(ctx context.Context, lost string, to objstore.Store, progress func(CheckProgress)) (StoreChange, error) {
	r.own(to)
	id, err := parseIdent(lost)
	if err == nil && id == (ident{}) {
		err = fmt.Errorf("store %s is no member of this repository: %w", lost, ErrNotFound)
	}
	if err != nil {
		return StoreChange{}, err
	}
	j := &joiner{r: r, progress: progress, what: changeReplace, lost: id}
	err = j.run(ctx, to)
	if err != nil {
		return j.done, fmt.Errorf("replace store %s: %w", lost, err)
	}
	return j.done, nil
}

// AddStore makes a store a member beside the others. New packs are spread over
// all of them, each on as many as ever. The repository owns to from here on.
func (r *Repository) AddStore(ctx context.Context, to objstore.Store, progress func(CheckProgress)) (StoreChange, error) {
	r.own(to)
	j := &joiner{r: r, progress: progress, what: changeAdd}
	if err := j.run(ctx, to); err != nil {
		return j.done, fmt.Errorf("add store %s: %w", to.URL(), err)
	}
	return j.done, nil
}

// joiner is one replacement or addition.
type joiner struct {
	r        *Repository
	progress func(CheckProgress)
	what     string
	lost     ident // zero: a store is added
	change   *changeRecord
	m        *member // the new store
	old      *membership
	done     StoreChange
}

func (j *joiner) run(ctx context.Context, to objstore.Store) error {
	if j.progress == nil {
		j.progress = func(CheckProgress) {}
	}
	j.r.reunite(ctx)
	if err := j.r.upToDate(ctx); err != nil {
		return err
	}
	if joined, err := j.joined(ctx, to); joined || err != nil {
		return err
	}
	if j.lost != (ident{}) && !j.r.membership().has(j.lost) {
		return fmt.Errorf("it is no member of this repository: \"cairn repo status\" shows those that are: %w", ErrNotFound)
	}
	if j.lost != (ident{}) {
		if err := j.r.enoughWithout(ctx, []ident{j.lost}); err != nil {
			return err
		}
	}
	if err := j.begin(ctx, to); err != nil {
		return err
	}
	j.old = j.r.membership()
	if err := j.copyControls(ctx); err != nil {
		return err
	}
	if err := j.retire(ctx); err != nil {
		return err
	}
	if err := j.copyControls(ctx); err != nil {
		return err
	}
	if err := j.publish(ctx); err != nil {
		return err
	}
	return j.repair(ctx)
}

// enoughWithout says whether the stores that stay can give back what those that are
// lost have: of each placement that one is in, k others have to answer.
func (r *Repository) enoughWithout(ctx context.Context, lost []ident) error {
	gone := func(id ident) bool { return slices.Contains(lost, id) }
	staying, keys := slices.DeleteFunc(r.current(), func(m *member) bool { return gone(m.id) }), r.membership()
	answers := ask(ctx, r.o.Timing, staying, len(staying), func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, r.identify(ctx, m)
	})
	least := len(succeeded(answers))
	for _, p := range keys.Placements {
		if !slices.ContainsFunc(p.Slots, gone) {
			continue
		}
		n := 0
		for _, m := range succeeded(answers) {
			if slices.Contains(p.Slots, m.id) {
				n++
			}
		}
		least = min(least, n)
	}
	if least < keys.Data {
		return fmt.Errorf("%d of the stores that share packs with what is lost answer, any %d are needed to rebuild what it has: bring back those that are down, or copy all of its content to the new place yourself and name that in its stead: %w", least, keys.Data, ErrTooFewStores)
	}
	return nil
}

func (j *joiner) repair(ctx context.Context) (err error) {
	j.done.Repair, err = j.r.Repair(ctx, RepairOptions{Apply: true, Progress: j.progress})
	return err
}

// joined goes on where an earlier attempt was interrupted behind the publication.
func (j *joiner) joined(ctx context.Context, to objstore.Store) (bool, error) {
	there := meetOne(ctx, to)
	keys := j.r.membership()
	if there.object == nil || there.record.Repository != j.r.id || !keys.has(there.record.Store) || j.lost != (ident{}) && keys.has(j.lost) {
		return false, nil
	}
	if _, err := j.r.keys.openEnvelope(kindStore, storeName, there.object); err != nil {
		return false, fmt.Errorf("%s: %w", to.URL(), err)
	}
	j.r.attach(&member{id: there.record.Store, store: to})
	j.done.Joined = there.record.Store.String()
	if j.lost != (ident{}) {
		j.done.Lost = j.lost.String()
	}
	return true, j.repair(ctx)
}

// own sees to it that a store that joins is closed with the others.
func (r *Repository) own(s objstore.Store) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.joined = append(r.joined, s)
}

// attach gives a member its store, if it has none.
func (r *Repository) attach(m *member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.byID[m.id]; old == nil || old.store == nil {
		r.byID[m.id] = m
	}
	r.unknown = slices.DeleteFunc(r.unknown, func(u *unknownStore) bool { return u.store.URL() == m.store.URL() })
}

// begin looks at the new store, gives it an identity, and puts the mark. In this
// order a crash between leaves a store that can be named again.
func (j *joiner) begin(ctx context.Context, to objstore.Store) error {
	id, fresh, err := j.identity(ctx, to)
	if err != nil {
		return err
	}
	if fresh {
		if err = probeOnce(ctx, to); err != nil {
			return fmt.Errorf("%s cannot keep a repository: %w", to.URL(), err)
		}
	}
	payload, err := json.Marshal(storeRecord{Repository: j.r.id, Store: id, State: stateMember, MinReader: j.r.membership().MinReader})
	if err != nil {
		return fmt.Errorf("identity of a store: %w", err)
	}
	object, err := j.r.keys.sealEnvelope(kindStore, storeName, payload)
	if err != nil {
		return err
	}
	j.m = &member{id: id, store: to}
	if err = j.put(ctx, storeName, object); err != nil {
		return err
	}
	if fresh {
		// Behind the identity: it is how an attempt is known that can be gone on with.
		if err = j.recordCapabilities(ctx, id, to); err != nil {
			return err
		}
	}
	change, err := newIdent()
	if err != nil {
		return err
	}
	j.done.Joined = id.String()
	j.change, err = j.r.beginChange(ctx, changeRecord{Change: change, What: j.what, Lost: j.lost, Joining: id})
	return err
}

// identity returns the ID of the new store: a fresh one when the store is empty,
// and its own when an earlier attempt gave it one. fresh: it holds nothing else.
func (j *joiner) identity(ctx context.Context, to objstore.Store) (id ident, fresh bool, err error) {
	there := meetOne(ctx, to)
	switch {
	case there.object != nil && there.record.Repository == j.r.id:
		fresh, err = j.begunFor(ctx, there)
		return there.record.Store, fresh, err
	case there.object != nil:
		return id, false, fmt.Errorf("%s belongs to repository %s: name an empty place: %w", to.URL(), there.record.Repository, ErrNotEmpty)
	case !errors.Is(there.err, objstore.ErrNotExist):
		return id, false, fmt.Errorf("%s cannot be used: %w", to.URL(), there.err)
	}
	if err = checkEmpty(ctx, []objstore.Store{to}); err != nil {
		return id, false, err
	}
	id, err = newIdent()
	return id, true, err
}

// begunFor says whether a store that has an identity of this repository got it
// from an attempt to make it a member that can be gone on with.
func (j *joiner) begunFor(ctx context.Context, there met) (fresh bool, err error) {
	if _, err = j.r.keys.openEnvelope(kindStore, storeName, there.object); err != nil {
		return false, fmt.Errorf("%s: %w", there.store.URL(), err)
	}
	if j.r.membership().has(there.record.Store) {
		return false, fmt.Errorf("%s is a member of this repository already: name an empty place: %w", there.store.URL(), ErrNotEmpty)
	}
	all, err := j.r.changes(ctx)
	if err != nil {
		return false, err
	}
	for _, c := range all {
		if c.Joining == there.record.Store {
			return false, nil // beginChange compares the rest
		}
	}
	fresh = true
	err = there.store.List(ctx, "", func(i objstore.Info) error {
		fresh = fresh && (i.Name == storeName || i.Name == capableName(there.record.Store) || strings.HasPrefix(i.Name, probePrefix))
		return nil
	})
	if err == nil && !fresh {
		err = fmt.Errorf("%s was a member of this repository, or was to become one, and is none: empty it, or name another place: %w", there.store.URL(), ErrNotEmpty)
	}
	return fresh, err
}

// retire takes the identity of the old store away, if it answers: from then on no
// writer counts it and no prune goes on with it. What it was told before that is
// copied behind it.
func (j *joiner) retire(ctx context.Context) error {
	for _, m := range j.r.current() {
		if m.id != j.lost || m.store == nil {
			continue
		}
		if _, err := one(ctx, j.r, m, func(ctx context.Context, m *member) (struct{}, error) { return struct{}{}, j.r.identify(ctx, m) }); err != nil {
			return nil //nolint:nilerr // lost, or another store by now: nobody counts it
		}
		if _, err := one(ctx, j.r, m, func(ctx context.Context, m *member) (struct{}, error) {
			return struct{}{}, m.store.Delete(ctx, storeName)
		}); err != nil {
			return fmt.Errorf("%s answers and cannot be retired: switch it off, then give the same command again: %w", m.url(), err)
		}
	}
	return nil
}

// publish makes the new store a member.
func (j *joiner) publish(ctx context.Context) error {
	next := j.old.replaced(j.lost, j.m.id)
	if j.lost == (ident{}) {
		next = j.old.added(j.m.id)
	} else {
		j.done.Lost = j.lost.String()
	}
	if err := j.r.publishMembership(ctx, next, j.m, next.quorum()); err != nil {
		return err
	}
	j.r.attach(j.m)
	return j.r.endChange(ctx, j.change.Change)
}
