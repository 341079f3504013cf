package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/pack"
)

// shards verifies every cell of every shard of some packs; done of total were before.
func (c *checker) shards(ctx context.Context, ids []chunk.PackID, done, total int) error {
	index := c.index()
	for n, id := range ids {
		holders := c.r.holders(id)
		p := c.packs[id]
		var size int64
		for _, n := range p.sizes {
			size += max(n, 0)
		}
		if err := c.pace(ctx, size); err != nil {
			return err
		}
		unread := make([]error, len(holders))
		group, groupCtx := errgroup.WithContext(ctx)
		for slot := range holders {
			if p.sizes[slot] < 0 || p.bad[slot] {
				continue
			}
			group.Go(func() error {
				f := &fetcher{r: c.r, name: packName(id), holders: holders, desperate: true}
				defer f.release()
				err := c.r.coder.Verify(groupCtx, f, id, slot)
				if err == nil || groupCtx.Err() != nil {
					return groupCtx.Err() //nolint:wrapcheck // canceled
				}
				// Each is this goroutine's alone.
				if p.bad[slot] = isWrong(err); !p.bad[slot] {
					unread[slot] = err
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("verify pack %s: %w", id, err)
		}
		for slot, holder := range holders {
			if unread[slot] != nil {
				c.down[holder.id], p.doubt = true, true // whether it is damaged, nobody knows
				text := fmt.Sprintf("shard %d of pack %s cannot be read: %v", slot, id, unread[slot])
				addProblem(&c.report.Problems, text)
				addProblem(&c.unread, text)
			}
			if i, known := index[holder.id]; known && p.bad[slot] && p.sizes[slot] >= 0 {
				rep := &c.report.Stores[i]
				rep.Damaged++
				addProblem(&rep.Problems, fmt.Sprintf("shard %d of pack %s is damaged", slot, id))
			}
		}
		p.verified = true
		c.o.Progress(CheckProgress{"data", int64(done + n + 1), int64(total)})
	}
	return nil
}

func (c *checker) pace(ctx context.Context, n int64) error {
	if c.o.Pace == nil || n == 0 {
		return nil
	}
	return c.o.Pace(ctx, n)
}

// blocks finds the blocks of a backup that cannot be read.
func (c *checker) blocks(ctx context.Context, n int, img *Image) error {
	if img == nil {
		return nil
	}
	b := &c.report.Backups[n]
	g := img.tree.Geometry()
	b.BlockSize = int64(g.BlockSize)
	// A node that cannot be read takes all blocks below it with it.
	lost := func(first, leaves int64, ref chunk.Ref, err error) error {
		if ctx.Err() != nil {
			return ctx.Err() //nolint:wrapcheck // canceled
		}
		c.hit(ref.Pack, err)
		b.cannot(err, unreadableManifest(err))
		if unjudged(err) {
			return nil
		}
		from := first * manifest.LeafBlocks
		to := min(from+leaves*manifest.LeafBlocks, g.Blocks())
		b.Damaged = appendBlocks(b.Damaged, DamagedRange{from, to - from})
		return nil
	}
	err := img.tree.Nodes(ctx, func(level int, first int64, ref chunk.Ref) error {
		if err := c.lost(chunk.Node, ref); err != nil {
			b.cannot(err, sentence(err))
		}
		if level > 0 {
			return nil
		}
		bad, err := c.leaf(ctx, n, ref, first)
		if err != nil {
			return lost(first, 1, ref, err)
		}
		for i, err := range bad {
			block := first*manifest.LeafBlocks + int64(i)
			if err == nil || block >= g.Blocks() {
				continue
			}
			b.cannot(err, "")
			if !unjudged(err) {
				b.Damaged = appendBlocks(b.Damaged, DamagedRange{block, 1})
			}
		}
		return nil
	}, lost)
	if err != nil && ctx.Err() == nil {
		b.cannot(err, unreadableManifest(err))
		err = nil
	}
	return err
}

// appendBlocks adds blocks that lie behind all others.
func appendBlocks(to []DamagedRange, r DamagedRange) []DamagedRange {
	if n := len(to); n > 0 && to[n-1].First+to[n-1].Count == r.First {
		to[n-1].Count += r.Count
		return to
	}
	return append(to, r)
}

// hit notes that something in a pack could not be read. Where stores only failed to
// answer, that says nothing of the pack.
func (c *checker) hit(id chunk.PackID, err error) {
	p := c.packs[id]
	switch {
	case p == nil:
	case unjudged(err):
		p.doubt = true
	case errors.Is(err, ErrDamaged) && !errors.Is(err, ErrTooFewStores):
		p.hit = true
	default:
		p.doubt = true
	}
}

// leaf returns why blocks of a leaf cannot be read. Backups share most leaves,
// so that each is looked at once.
func (c *checker) leaf(ctx context.Context, n int, ref chunk.Ref, leaf int64) ([]error, error) {
	img, b := c.images[n], &c.report.Backups[n]
	key := nodeKey{ref.ID, ref.Location}
	if bad, ok := c.leaves[key]; ok {
		return bad, nil
	}
	l, err := img.tree.Leaf(ctx, leaf)
	if err != nil {
		return nil, err //nolint:wrapcheck // blocks says what it means
	}
	var bad []error
	note := func(i int, err error) {
		if bad == nil {
			bad = make([]error, manifest.LeafBlocks)
		}
		bad[i] = err
		b.cannot(err, sentence(err))
		if at, ok := l.At(i); ok {
			c.hit(at.Pack, err)
		}
	}
	missed := c.hasMissed(n, leaf)
	var pieces []piece
	var where []int
	for i := range manifest.LeafBlocks {
		at, ok := l.At(i)
		if !ok {
			continue
		}
		if err := checkLocation(at.Location); err != nil {
			note(i, err)
		} else if err := c.lost(chunk.Data, at); err != nil {
			note(i, err)
		} else if p := c.packs[at.Pack]; p != nil && p.opened && !missed {
			if err := p.failed[at]; err != nil {
				note(i, err)
			}
		} else if c.reads(at.Pack) {
			pieces, where = append(pieces, piece{ref: at}), append(where, i)
		}
	}
	var size int64
	for _, p := range pieces {
		size += int64(p.ref.Length)
	}
	if err := c.pace(ctx, size); err != nil {
		return nil, err
	}
	if err := c.readLeaf(ctx, img, pieces, where, note); err != nil {
		return nil, err
	}
	c.leaves[key] = bad
	return bad, nil
}

// readLeaf opens all chunks of a leaf, in large reads, and one by one where one
// of these fails.
func (c *checker) readLeaf(ctx context.Context, img *Image, pieces []piece, where []int, note func(int, error)) error {
	next := 0
	for _, r := range runs(pieces) {
		mine := where[next : next+len(r.pieces)]
		next += len(r.pieces)
		if img.readRun(ctx, r, false) == nil {
			continue
		}
		for i, one := range r.pieces {
			_, err := c.r.readChunk(ctx, img.d, chunk.Data, one.ref)
			if ctx.Err() != nil {
				return ctx.Err() //nolint:wrapcheck // canceled
			}
			if err != nil {
				note(mine[i], err)
			}
		}
	}
	return nil
}

// sentence is an error without the reasons that each store gave.
func sentence(err error) string {
	if lost, ok := errors.AsType[*pack.LostError](err); ok {
		return fmt.Sprintf("pack %s can be read from too few stores", lost.Pack)
	}
	return strings.SplitN(err.Error(), "\n", 2)[0]
}
