package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// What a writer has to know of the rotations of the key before it writes.
//
//	seen       nobody is told that the key is rotated before n-k+1 stores have the
//	           membership: any k members that answer show it, so k have to answer
//	published  a rotation that got no further than fewer stores may yet be given up, and
//	           what is sealed under its key with it: who meets one puts it on n-k+1
//	           before anything is written under it
//
// Once its mark is gone a rotation was published, unless a store shows what took its
// place: whoever removes the mark sees to one or the other. It is on more than half of
// the stores.

// upToDate adopts the newest membership, and fails unless it is sure that it is that:
// that no rotation of the key was missed, and that what is written under the key at hand
// is read by whoever opens the repository. ErrPassword and ErrTooFewStores.
func (r *Repository) upToDate(ctx context.Context) error {
	for {
		before := r.membership()
		answers, err := r.refresh(ctx)
		if err != nil {
			return err
		}
		m := r.membership()
		if m != before {
			continue // there may be members now that were not asked
		}
		said, err := m.shown(answers)
		if err != nil {
			return err
		}
		return r.confirm(ctx, m, said)
	}
}

// upToDate looks right before the votes whether the session may still commit. A
// rotation since it began is in nobody's way: whoever has the new key reads what it
// wrote. Stores that are members no more count in nothing from here on.
func (s *Session) upToDate(ctx context.Context) error {
	answers, err := s.r.refresh(ctx)
	if err != nil && !errors.Is(err, ErrPassword) {
		return err
	}
	m := s.r.membership()
	if _, err = m.shown(answers); err != nil {
		return err
	}
	if !m.follows(s.keys) {
		return fmt.Errorf("the rotation of the key under which this session began was given up: %w", ErrEnded)
	}
	return nil
}

// shown is how many members said something of the sealing epoch of a membership.
type shown struct {
	have    int // it
	instead int // what took its place: it was given up, or another one is being
}

// shown counts what the members said. The error is ErrTooFewStores when so few did that
// a newer one may be missed.
func (m *membership) shown(answers []answer[*membership]) (shown, error) {
	var s shown
	said := 0
	for _, a := range answers {
		if a.err != nil || a.value == nil || !m.has(a.m.id) {
			continue
		}
		said++
		switch {
		case a.value.follows(m):
			s.have++
		case a.value.Version >= m.Version:
			s.instead++
		}
	}
	if said < m.Data {
		return s, fmt.Errorf("%d of the repository's %d stores say what its members and its key are, and %d have to, or a rotation of the key could be missed: bring back the others: %w: %w", said, len(m.Stores), m.Data, ErrTooFewStores, failures(answers))
	}
	return s, nil
}

// confirm sees to it that the sealing epoch of a membership stays.
func (r *Repository) confirm(ctx context.Context, m *membership, said shown) error {
	check := string(m.keyCheck())
	r.mu.Lock()
	done := r.confirmed == check
	r.mu.Unlock()
	if done {
		return nil
	}
	if said.have < m.readerQuorum() {
		mark, away, err := r.rotationMark(ctx, m)
		if n := len(m.Stores); mark != nil || err != nil || said.instead > 0 || n-away < n-n/2 {
			if err = r.publishMembership(ctx, m, nil, m.readerQuorum()); err != nil {
				return fmt.Errorf("a rotation of the key was begun and is on too few stores, so that it may yet be given up: nothing is written before it is done: \"cairn repo key rotate\" goes on with it; if it was given up, start this process again: %w", err)
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confirmed = check
	return nil
}

// rotationMark returns the mark of the rotation that made the newest sealing epoch of a
// membership, if it is not ended (nil: it is, as far as the members say that answer),
// and how many members did not answer.
func (r *Repository) rotationMark(ctx context.Context, m *membership) (mark *changeRecord, away int, err error) {
	names, away, err := r.unionOf(ctx, changePrefix)
	if err != nil {
		return nil, away, err
	}
	for name, ms := range names {
		c, err := r.readChange(ctx, ms, name)
		switch {
		case errors.Is(err, objstore.ErrNotExist):
		case err != nil:
			return nil, away, err
		case c.What == changeRotate && c.Next != nil && m.epochs() > 0 && c.Next.epochs() == m.epochs() && bytes.Equal(c.Next.keyCheck(), m.keyCheck()):
			return c, away, nil
		}
	}
	return nil, away, nil
}

// expels says whether what a store says of a later rotation stands for nothing: the
// store is no member, and the rotation was to get a number that a membership after it
// had taken when it was given up.
func (m *membership) expels(store ident, claim *membership) bool {
	return m != nil && !m.has(store) && claim.epochs() > m.epochs() && m.Version >= claim.Version
}

// follows says whether m is of the sealing epoch of another membership, or of one
// that came after it.
func (m *membership) follows(o *membership) bool {
	return m.epochs() >= o.epochs() && (o.epochs() == 0 || bytes.Equal(m.Sealing[o.epochs()-1].Check, o.keyCheck()))
}
