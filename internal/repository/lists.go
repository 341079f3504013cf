package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// listAttempts is how often a store's lists are read again when one vanished
// between listing and reading.
const listAttempts = 5

// condemned is what the lists of prunes forbid a writer: C of the protocol.
type condemned struct {
	packs   map[chunk.PackID]struct{}
	compact map[chunk.PackID]struct{} // of these, those that are not just deleted
	backups map[ident]struct{}        // sessions
	lists   map[ident]struct{}        // prunes whose list was read
	traces  map[ident]struct{}        // prunes seen only by what they left: done or closed
}

func newCondemned() condemned {
	return condemned{
		packs: make(map[chunk.PackID]struct{}), compact: make(map[chunk.PackID]struct{}), backups: make(map[ident]struct{}),
		lists: make(map[ident]struct{}), traces: make(map[ident]struct{}),
	}
}

func (c *condemned) has(p chunk.PackID) bool {
	_, ok := c.packs[p]
	return ok
}

func (c *condemned) add(o condemned) {
	maps.Copy(c.packs, o.packs)
	maps.Copy(c.compact, o.compact)
	for b := range o.backups {
		c.backups[b] = struct{}{}
	}
	for l := range o.lists {
		c.lists[l] = struct{}{}
	}
	for t := range o.traces {
		c.traces[t] = struct{}{}
	}
}

// readLists is W2: the lists of prunes from at least 1+d of the stores that
// acknowledged "open", each after it did.
func (s *Session) readLists(ctx context.Context) error {
	answers := ask(ctx, s.r.o.Timing, s.opened, s.keys.packQuorum(), func(ctx context.Context, m *member) (condemned, error) {
		return s.r.storeLists(ctx, m.store)
	})
	s.listed = succeeded(answers)
	if len(s.listed) < s.keys.quorum() {
		return fmt.Errorf("the lists of prunes can be read on %d stores, %d are needed: %w: %w", len(s.listed), s.keys.quorum(), ErrTooFewStores, failures(answers))
	}
	s.avoid = newCondemned()
	for _, a := range answers {
		if a.err == nil {
			s.avoid.add(a.value)
		}
	}
	return nil
}

// storeLists reads all that one store has of prunes.
func (r *Repository) storeLists(ctx context.Context, st objstore.Store) (condemned, error) {
	var err error
	for range listAttempts {
		var c condemned
		if c, err = r.storeListsOnce(ctx, st); err == nil || !errors.Is(err, objstore.ErrNotExist) {
			return c, err
		}
		// The list was tidied away just now: what took its place has to be seen.
	}
	return condemned{}, err
}

func (r *Repository) storeListsOnce(ctx context.Context, st objstore.Store) (condemned, error) {
	c := newCondemned()
	var lists []ident
	err := st.List(ctx, prunePrefix, func(i objstore.Info) error {
		id, leaf, err := pruneName(i.Name)
		if err != nil {
			return fmt.Errorf("%s: %w", st.URL(), err)
		}
		switch leaf {
		case condemnedLeaf:
			lists = append(lists, id)
		case doneLeaf, closedLeaf:
			c.traces[id] = struct{}{}
		default:
			// Something that this version does not know and must not ignore.
			return fmt.Errorf("%s: %s: %w", st.URL(), i.Name, ErrVersion)
		}
		return nil
	})
	if err != nil {
		return c, err //nolint:wrapcheck // stores name themselves
	}
	for _, id := range lists {
		payload, err := r.getControl(ctx, st, kindCondemned, condemnedName(id))
		if err != nil {
			return c, err
		}
		if err := c.decode(payload); err != nil {
			return c, fmt.Errorf("%s: list of prune %s: %w", st.URL(), id, err)
		}
		c.lists[id] = struct{}{}
	}
	return c, nil
}

// decode adds the payload of a "condemned" object: two counts, packs, each with
// how it is condemned, and sessions of backups.
func (c *condemned) decode(payload []byte) error {
	const packEntry = 32 + 1
	if len(payload) < 8 {
		return fmt.Errorf("%d bytes: %w", len(payload), errEnvelope)
	}
	packs, backups := int64(binary.BigEndian.Uint32(payload)), int64(binary.BigEndian.Uint32(payload[4:]))
	payload = payload[8:]
	if int64(len(payload)) != packs*packEntry+backups*int64(len(ident{})) {
		return fmt.Errorf("%d bytes for %d packs and %d backups: %w", len(payload), packs, backups, errEnvelope)
	}
	for range packs {
		id, way := chunk.PackID(payload[:32]), payload[32]
		switch way {
		case condemnDelete:
		case condemnCompact:
			c.compact[id] = struct{}{}
		default:
			return fmt.Errorf("pack condemned in the way %d: %w", way, ErrVersion)
		}
		c.packs[id] = struct{}{}
		payload = payload[packEntry:]
	}
	for range backups {
		c.backups[ident(payload[:16])] = struct{}{}
		payload = payload[16:]
	}
	return nil
}

// Ways in which a pack is condemned. Writers avoid both alike.
const (
	condemnDelete  = 0
	condemnCompact = 1
)

// encode is the inverse of decode.
func (c *condemned) encode() []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(c.packs)))  //nolint:gosec // a list of more does not fit into an object
	out = binary.BigEndian.AppendUint32(out, uint32(len(c.backups))) //nolint:gosec // as above
	packs := make([]chunk.PackID, 0, len(c.packs))
	for p := range c.packs {
		packs = append(packs, p)
	}
	slices.SortFunc(packs, func(a, b chunk.PackID) int { return slices.Compare(a[:], b[:]) })
	for _, p := range packs {
		way := byte(condemnDelete)
		if _, ok := c.compact[p]; ok {
			way = condemnCompact
		}
		out = append(append(out, p[:]...), way)
	}
	backups := make([]ident, 0, len(c.backups))
	for b := range c.backups {
		backups = append(backups, b)
	}
	slices.SortFunc(backups, func(a, b ident) int { return slices.Compare(a[:], b[:]) })
	for _, b := range backups {
		out = append(out, b[:]...)
	}
	return out
}
