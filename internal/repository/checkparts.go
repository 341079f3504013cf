package repository

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// checkParts is how many parts a check has that can be interrupted: what is told of at
// once, and what is lost by an interruption. Each part costs a walk through the
// manifests of all backups, which are a two-thousandth of what is read.
const checkParts = 50

// data reads the packs that were chosen. Without anybody to tell, their chunks are
// opened later, backup by backup, while the report is made.
func (c *checker) data(ctx context.Context) error {
	if err := c.recall(ctx); err != nil {
		return err
	}
	var ids []chunk.PackID
	done := 0
	for _, id := range c.order {
		if c.packs[id].recalled {
			done++
		} else {
			ids = append(ids, id)
		}
	}
	total := done + len(ids)
	if c.o.Read == nil {
		return c.shards(ctx, ids, done, total)
	}
	size := max(1, (total+checkParts-1)/checkParts)
	for part := range slices.Chunk(ids, size) {
		if err := c.shards(ctx, part, done, total); err != nil {
			return err
		}
		if err := c.open(ctx, part); err != nil {
			return err
		}
		if err := c.tellOpened(); err != nil {
			return err
		}
		for _, id := range part {
			p := c.packs[id]
			p.opened = true
			if err := c.tell(id, p); err != nil {
				return err
			}
		}
		done += len(part)
	}
	return nil
}

// tell says what came of reading a pack. Of one that is sound as far as can be seen,
// and has shards on stores that did not answer, nothing is told: it has to be read again.
// Nor is it of one that was compacted, whose shards nobody misses: what backups have of
// it is read where it is now.
func (c *checker) tell(id chunk.PackID, p *packCheck) error {
	if p.going && !p.hit && len(p.failed) == 0 {
		return nil
	}
	if (len(c.down) > 0 || p.doubt) && !c.sound(p) && !c.damaged(id, p) {
		return nil
	}
	before, known := c.o.Before[id.String()]
	if known && !before && c.sound(p) {
		addProblem(&c.report.Problems, fmt.Sprintf("pack %s was damaged when this check began and is right now: it was repaired meanwhile, or a store does not always give back the same; check again", id))
	}
	// What was found once is told until a check has ended, however often it is interrupted.
	return c.o.Read(id.String(), c.sound(p) && (before || !known))
}

// sound reports whether a pack has all its shards, all were read that were to be, and
// nothing was found in them.
func (c *checker) sound(p *packCheck) bool {
	return len(p.failed) == 0 && !p.hit && !p.doubt && !slices.Contains(p.bad, true) && !slices.Contains(p.sizes, -1)
}

// damaged reports whether a store that answers has not what it should have.
func (c *checker) damaged(id chunk.PackID, p *packCheck) bool {
	for slot, holder := range c.r.holders(id) {
		if !c.down[holder.id] && (p.sizes[slot] < 0 || p.bad[slot]) {
			return true
		}
	}
	return false
}

// open opens all chunks that backups have in some packs. What could not be looked
// through is noted in missed.
func (c *checker) open(ctx context.Context, part []chunk.PackID) error {
	wanted := packSet(part)
	seen := make(map[nodeKey]bool) // backups share most leaves
	for n, img := range c.images {
		if img == nil {
			continue
		}
		if err := c.openAll(ctx, n, nil, wanted, seen); err != nil {
			return err
		}
	}
	return nil
}

func packSet(ids []chunk.PackID) map[chunk.PackID]bool {
	out := make(map[chunk.PackID]bool, len(ids))
	for _, id := range ids {
		out[id] = true
	}
	return out
}

// openAll opens all chunks that a backup has in the wanted packs and in leaves that
// were not seen yet, but for those that base has in the same place.
func (c *checker) openAll(ctx context.Context, n int, base *Image, wanted map[chunk.PackID]bool, seen map[nodeKey]bool) error {
	img := c.images[n]
	err := img.tree.Nodes(ctx, func(level int, first int64, ref chunk.Ref) error {
		key := nodeKey{ref.ID, ref.Location}
		if level > 0 || seen[key] {
			return nil
		}
		l, err := img.tree.Leaf(ctx, first)
		if err != nil {
			c.miss(n, first, 1)
			return ctx.Err() //nolint:wrapcheck // what is lost, the report says
		}
		seen[key] = true
		return c.openLeaf(ctx, img, l, sameLeaf(ctx, base, first), wanted)
	}, func(first, leaves int64, _ chunk.Ref, _ error) error {
		c.miss(n, first, leaves)
		return ctx.Err() //nolint:wrapcheck // as above
	})
	if err != nil {
		return fmt.Errorf("read the chunks of backup %s: %w", img.Backup().ID, err)
	}
	return nil
}

// openLeaf opens what a leaf has in the wanted packs, but for what base has too.
func (c *checker) openLeaf(ctx context.Context, img *Image, l, base *manifest.Leaf, wanted map[chunk.PackID]bool) error {
	var pieces []piece
	var where []int
	var size int64
	for i := range manifest.LeafBlocks {
		at, ok := l.At(i)
		if !ok || !wanted[at.Pack] || checkLocation(at.Location) != nil {
			continue
		}
		if was, ok := base.At(i); ok && was == at {
			continue
		}
		if p := c.packs[at.Pack]; p.failed[at] != nil || c.lost(chunk.Data, at) != nil {
			continue
		}
		pieces, where = append(pieces, piece{ref: at}), append(where, i)
		size += int64(at.Length)
	}
	if err := c.pace(ctx, size); err != nil {
		return err
	}
	return c.readLeaf(ctx, img, pieces, where, func(i int, err error) {
		at, _ := l.At(i)
		p := c.packs[at.Pack]
		if p.failed == nil {
			p.failed = make(map[chunk.Ref]error)
		}
		p.failed[at] = err
		c.hit(at.Pack, err)
	})
}
