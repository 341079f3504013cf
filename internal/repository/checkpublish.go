package repository

import (
	"context"
	"fmt"
	"maps"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// readKnown reads what earlier checks published.
func (c *checker) readKnown(ctx context.Context) error {
	c.there = make(map[chunk.PackID]bool)
	if !c.o.Publish {
		return nil
	}
	known, err := c.r.readDamage(ctx)
	if ctx.Err() != nil {
		return fmt.Errorf("canceled: %w", context.Cause(ctx))
	}
	if err != nil {
		c.report.Unpublished = err.Error()
		return nil //nolint:nilerr // the check itself can go on
	}
	c.known = known
	return nil
}

// publish puts on the stores which packs are damaged beyond repair, when that is not
// what they say already.
func (c *checker) publish(ctx context.Context) error {
	switch {
	case c.known == nil:
		return nil // it could not be read, which the report says: nobody could say what the new list replaces
	case c.sealed.backups+c.sealed.packs > 0:
		c.report.Unpublished = "the password opens nothing that was written since the key was rotated, so that what is damaged is not certain"
		return nil
	case c.unsure:
		c.report.Unpublished = "where a compacted pack went could not be read, so that what is damaged is not certain"
		return nil
	}
	now := c.beyond(ctx)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("canceled: %w", context.Cause(ctx))
	}
	c.report.Beyond = now.size()
	if now.size() == c.known.size() && now.within(c.known) {
		return nil
	}
	err := c.r.publishDamage(ctx, now, c.known.version+1)
	if ctx.Err() != nil {
		return fmt.Errorf("canceled: %w", context.Cause(ctx))
	}
	if err != nil {
		c.report.Unpublished = err.Error()
	}
	return nil
}

// publishDamage writes a list. Those that read it ask all stores, so that few will
// do; a repair gives it to the others.
func (r *Repository) publishDamage(ctx context.Context, d *damage, version uint64) error {
	id, err := newIdent()
	if err != nil {
		return err
	}
	name := damageName(version, id)
	object, err := r.keys.sealEnvelope(kindDamage, name, d.encode())
	if err != nil {
		return err
	}
	answers := ask(ctx, r.o.Timing, r.current(), len(r.current()), r.puts(name, object))
	if took, need := len(succeeded(answers)), r.membership().quorum(); took < need {
		return fmt.Errorf("%d stores took the list of damaged packs, %d have to: %w: %w", took, need, ErrTooFewStores, failures(answers))
	}
	return nil
}

// beyond returns what is damaged beyond repair: what was known before, but for packs
// that this one found to be sound, and what it found. What hangs on stores that do
// not answer is left as it was.
func (c *checker) beyond(ctx context.Context) *damage {
	down := c.away(ctx)
	now := newDamage()
	for id := range c.known.packs {
		if p := c.packs[id]; p == nil && !c.there[id] && len(down) == 0 {
			continue // gone from all stores
		}
		now.packs[id] = struct{}{}
	}
	for id, p := range c.packs {
		switch damaged, certain := c.verdict(id, p, down); {
		case damaged && certain:
			now.packs[id] = struct{}{}
		case certain && (p.verified && !p.recalled || p.whole):
			delete(now.packs, id)
		}
	}
	return now
}

// verdict says whether a pack is damaged beyond repair, and whether that is certain:
// it is not when stores that are down decide.
func (c *checker) verdict(id chunk.PackID, p *packCheck, down map[ident]bool) (damaged, certain bool) {
	if p.going {
		return p.hit, len(down) == 0
	}
	broken, unknown := 0, 0
	for slot, holder := range c.r.holders(id) {
		switch {
		case down[holder.id]:
			unknown++
		case p.sizes[slot] < 0 || p.bad[slot]:
			broken++
		}
	}
	switch parity := c.r.membership().Parity; {
	case broken > parity:
		return true, true
	case p.doubt:
		return p.hit, false
	case unknown == 0:
		return p.hit, true
	default:
		return p.hit, !p.hit && broken+unknown <= parity
	}
}

// away returns the members that did not answer at some time: what they have, nobody
// knows. They are asked again, as one that went away while it was read looks damaged.
func (c *checker) away(ctx context.Context) map[ident]bool {
	down := maps.Clone(c.down)
	status := c.r.Status(ctx)
	for i, m := range c.r.current() {
		if i >= len(status) || status[i].State != StoreUp {
			down[m.id] = true
		}
	}
	return down
}
