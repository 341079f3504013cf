package repository

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// moves finds the forwardings of packs that the backups name, on every store,
// and adds the packs that have the chunks now to those that are checked.
func (c *checker) moves(ctx context.Context) error {
	holders := make(map[string][]*member)
	for n, m := range c.members() {
		rep := &c.report.Stores[n]
		if rep.Status.State != StoreUp {
			continue
		}
		err := m.store.List(ctx, forwardPrefix, func(i objstore.Info) error {
			old, _, ok := parseForwardName(i.Name)
			if ok && c.packs[old] != nil {
				holders[i.Name] = append(holders[i.Name], m)
			}
			if ok {
				c.moved[old] = true
			}
			return nil
		})
		if ctx.Err() != nil {
			return ctx.Err() //nolint:wrapcheck // canceled
		}
		if err != nil {
			addProblem(&rep.Problems, "its forwardings cannot be listed: "+err.Error())
		}
	}
	targets := make(map[chunk.PackID][]*packCheck)
	for _, name := range slices.Sorted(maps.Keys(holders)) {
		f, err := c.r.readForwarding(ctx, holders[name], name)
		if ctx.Err() != nil {
			return ctx.Err() //nolint:wrapcheck // canceled
		}
		if unjudged(err) {
			c.sealedMove(name, err)
			continue
		}
		if err != nil {
			c.unsure = true // where its chunks are
			addProblem(&c.report.Problems, err.Error())
			continue
		}
		p := c.packs[f.old]
		p.forwards = append(p.forwards, f)
		for _, t := range f.targets() {
			targets[t] = append(targets[t], p)
		}
		c.missForwarding(ctx, name, f, holders[name])
	}
	for id, users := range targets {
		if c.packs[id] == nil {
			c.packs[id] = &packCheck{target: true, users: users}
		}
	}
	return nil
}

// missForwarding reports the stores that lack a forwarding, which every store
// should have, or have a wrong one.
func (c *checker) missForwarding(ctx context.Context, name string, f *forwarding, holders []*member) {
	for n, m := range c.members() {
		rep := &c.report.Stores[n]
		switch {
		case rep.Status.State != StoreUp:
		case !slices.Contains(holders, m):
			rep.Missing++
			addProblem(&rep.Problems, fmt.Sprintf("the forwarding of pack %s is missing", f.old))
		default:
			if _, err := c.r.readForwarding(ctx, []*member{m}, name); err != nil && ctx.Err() == nil {
				rep.Damaged++
				addProblem(&rep.Problems, fmt.Sprintf("the forwarding of pack %s cannot be read", f.old))
			}
		}
	}
}

// isGoing reports whether a pack was compacted and is not whole any more on the
// stores that answer. That goes too for a pack that only forwardings name, and
// that was compacted in its turn, or that all of them are superseded that name it:
// whether a chunk's last move is there, lost tells.
func (c *checker) isGoing(p *packCheck, index map[ident]int, id chunk.PackID) bool {
	moved := len(p.forwards) > 0 || p.sealed || p.target && (c.moved[id] || c.superseded(p, index, id))
	return moved && c.lacks(p, index, id)
}

// lacks reports whether a store that answers has no shard of a pack.
func (c *checker) lacks(p *packCheck, index map[ident]int, id chunk.PackID) bool {
	for slot, holder := range c.r.holders(id) {
		if i, known := index[holder.id]; known && p.sizes[slot] < 0 && c.report.Stores[i].Status.State == StoreUp {
			return true
		}
	}
	return false
}

// superseded reports whether all packs whose chunks moved to this one have another
// forwarding, to packs that are whole.
func (c *checker) superseded(p *packCheck, index map[ident]int, id chunk.PackID) bool {
	for _, user := range p.users {
		if user.sealed {
			continue // where to, nobody knows here
		}
		if !slices.ContainsFunc(user.forwards, func(f *forwarding) bool {
			return !slices.ContainsFunc(f.targets(), func(t chunk.PackID) bool {
				return t == id || c.packs[t] == nil || c.lacks(c.packs[t], index, t)
			})
		}) {
			return false
		}
	}
	return len(p.users) > 0
}

// lostError says that too few shards of a pack are left. It is ErrDamaged.
type lostError string

// Error returns the sentence.
func (e lostError) Error() string { return string(e) }

// Is makes it ErrDamaged.
func (lostError) Is(target error) bool { return target == ErrDamaged }

// lost says why a chunk cannot be read, as far as the shards that are there
// tell; nil = it can.
func (c *checker) lost(k chunk.Kind, ref chunk.Ref) error {
	p := c.packs[ref.Pack]
	switch {
	case p == nil, !p.going && p.lost == "":
		return nil
	case !p.going:
		return lostError(p.lost)
	}
	var why error
	for _, f := range p.forwards {
		to, err := f.find(k, ref.ID)
		switch q := c.packs[to.Pack]; {
		case err != nil:
			why = err
		case q.going:
			why = lostError(fmt.Sprintf("pack %s was compacted, and so was pack %s that has its chunks; a second move is not followed", f.old, to.Pack))
		case q.lost == "":
			return nil
		default:
			why = lostError(q.lost)
		}
	}
	if p.sealed {
		return errSealed
	}
	return why
}
