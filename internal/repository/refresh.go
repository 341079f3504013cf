package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// refreshMembership adopts a newer list of members. When the key was rotated, the
// password that the repository was opened with has to open the new one: nothing is
// written under a sealing epoch that the repository has left. ErrPassword.
func (r *Repository) refreshMembership(ctx context.Context) error {
	_, err := r.refresh(ctx)
	return err
}

// refresh is refreshMembership that returns what the members said.
func (r *Repository) refresh(ctx context.Context) ([]answer[*membership], error) {
	m := r.membership()
	answers := ask(ctx, r.o.Timing, r.current(), max(m.quorum(), m.Data), func(ctx context.Context, m *member) (*membership, error) {
		return r.keys.latestClaim(ctx, m.store, r.id)
	})
	var claims []error
	for _, a := range answers {
		switch {
		case unproved(a.err):
			claims = append(claims, a.err)
		case errors.Is(a.err, ErrVersion):
			return answers, a.err
		}
	}
	newer := r.newerOf(answers)
	for len(newer) > 0 {
		next := newer[0]
		for _, o := range newer {
			if o.newer(next) {
				next = o
			}
		}
		if err := r.learn(ctx, next); err != nil {
			return answers, err
		}
		// Of a rotation that was given up half-way a store may have another one
		// with the same version.
		if r.keys.proved(next) == nil {
			if r.adopt(next) {
				r.reunite(ctx)
			}
			break
		}
		newer = slices.DeleteFunc(newer, func(o *membership) bool { return o == next })
	}
	if len(claims) > r.membership().Parity {
		return answers, claims[0]
	}
	return answers, nil
}

// newerOf returns the memberships among answers that are newer than the one at hand.
func (r *Repository) newerOf(answers []answer[*membership]) []*membership {
	m := r.membership()
	best := m
	for _, a := range answers {
		if a.err == nil && a.value != nil && r.keys.knows(a.value) && a.value.newer(best) {
			best = a.value
		}
	}
	var out []*membership
	for _, a := range answers {
		if a.err == nil && a.value != nil && a.value.newer(m) && !best.expels(a.m.id, a.value) {
			out = append(out, a.value)
		}
	}
	return out
}

// learn gets the master keys that a membership is written with and this process
// does not have yet: of a later sealing epoch, or others in the place of those of a
// rotation that was given up.
func (r *Repository) learn(ctx context.Context, next *membership) error {
	if r.keys.knows(next) {
		return nil
	}
	if r.o.Master != nil {
		return fmt.Errorf("the key of repository %s was rotated since it was opened with a recovery sheet: open it again with a password, or with a sheet printed since: %w", r.id, ErrPassword)
	}
	u := &unlocker{o: r.o, repo: r.id}
	for _, m := range r.current() {
		if m.store != nil {
			u.ms = append(u.ms, m)
		}
	}
	keys, name, err := u.findKey(ctx)
	if errors.Is(err, ErrPassword) {
		err = fmt.Errorf("the key of repository %s was rotated, and the password that this process was started with does not open the new one: add it again with \"cairn repo key add\", or start with one that does: %w", r.id, ErrPassword)
	}
	if err != nil {
		return err
	}
	if err = r.keys.sealing.follow(keys.sealing.all(), r.id); err != nil {
		return err
	}
	r.mu.Lock()
	r.keyName = name
	r.mu.Unlock()
	return nil
}

// adopt makes a newer list of members the one that counts. Stores that are no
// members any more are looked at again: behind the URL may be another store now.
func (r *Repository) adopt(next *membership) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !next.newer(r.members) || !r.keys.knows(next) {
		return false
	}
	r.members = next
	for id, m := range r.byID {
		if next.has(id) {
			continue
		}
		delete(r.byID, id)
		if m.store != nil {
			r.unknown = append(r.unknown, &unknownStore{m.store, StoreDown, fmt.Errorf("%s was replaced: %w", m.url(), ErrForeign)})
		}
	}
	return true
}

// catching is what readers remember of a membership that they could not adopt.
type catching struct {
	mu  sync.Mutex
	at  time.Time
	err error
}

// catchUp adopts a newer membership for a reader that met what the one at hand does
// not know. One that could not be adopted is not tried again for a while: trying a
// password costs a lot.
func (r *Repository) catchUp(ctx context.Context) error {
	c := &r.catching
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := r.o.Now(); c.err != nil && now.Sub(c.at) < r.o.Timing.Aside && !now.Before(c.at) {
		return c.err
	}
	c.err = nil
	if err := r.refreshMembership(ctx); err != nil {
		if ctx.Err() == nil {
			c.at, c.err = r.o.Now(), err
		}
		return err
	}
	return nil
}
