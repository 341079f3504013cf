package backup

import (
	"context"
	"fmt"
	"maps"
	"math/bits"
	"slices"

	"github.com/cairnbackup/cairn/internal/manifest"
)

// Bounds of an audit, in blocks.
const (
	auditLeast = 64
	auditShare = 20    // one block for this many dirty ones
	auditMost  = 16384 // 1 GiB: the background audit does the rest
	auditRun   = 8     // blocks that lie together, at least
	auditSpots = 64    // places in the volume, at most
)

// weyl is 2^64 divided by the golden ratio: its multiples, as fractions of
// 2^64, fill an interval more evenly than any other number's. The spots of
// consecutive seeds thus come by every part of a volume about as soon as can
// be, without anybody keeping a position, and those of random seeds are random.
const weyl = 0x9E3779B97F4A7C15

// chooseAudit chooses clean blocks to be compared with the parent's: at least
// auditLeast, and one for auditShare dirty ones, as long as there are that many
// that are not holes on both sides.
func (p *planner) chooseAudit(ctx context.Context, seed uint64) error {
	p.audits = make(map[int64]mask)
	budget := int(min(max(auditLeast, p.dirty.blocks()/auditShare), auditMost))
	run := max(auditRun, (budget+auditSpots-1)/auditSpots)
	spots := uint64((budget + run - 1) / run) //nolint:gosec // positive
	blocks := p.g.Blocks()
	for i := uint64(0); i < spots && budget > 0 && blocks > 0; i++ {
		start, _ := bits.Mul64((seed*spots+i)*weyl, uint64(blocks))
		n, err := p.auditFrom(ctx, int64(start), min(run, budget)) //nolint:gosec // below blocks
		if err != nil {
			return err
		}
		budget -= n
	}
	p.leaves = slices.Sorted(maps.Keys(p.audits))
	return nil
}

// auditFrom chooses up to n blocks from start on, going on at the beginning
// after the end, and returns how many it chose.
func (p *planner) auditFrom(ctx context.Context, start int64, n int) (int, error) {
	chosen := 0
	for _, part := range []span{{start, p.g.Blocks()}, {0, start}} {
		for block := part.first; block < part.end; {
			leaf, ok, err := p.auditLeaf(ctx, block/manifest.LeafBlocks)
			if err != nil {
				return 0, err
			}
			if !ok || leaf*manifest.LeafBlocks >= part.end {
				break
			}
			block = max(block, leaf*manifest.LeafBlocks)
			m, err := p.auditable(ctx, leaf)
			if err != nil {
				return 0, err
			}
			got := p.audits[leaf]
			m = m.not(got)
			last := int(min(part.end-leaf*manifest.LeafBlocks, manifest.LeafBlocks))
			for i := m.next(int(block % manifest.LeafBlocks)); i < last && chosen < n; i = m.next(i + 1) {
				got = got.with(i)
				chosen++
			}
			if !got.empty() {
				p.audits[leaf] = got
			}
			if chosen == n {
				return chosen, nil
			}
			block = (leaf + 1) * manifest.LeafBlocks
		}
	}
	return chosen, nil
}

// auditLeaf returns the first leaf at or after leaf that may have blocks to be
// audited: not dirty through and through, and not a hole on both sides.
func (p *planner) auditLeaf(ctx context.Context, leaf int64) (int64, bool, error) {
	for {
		block := p.dirty.nextOut(leaf * manifest.LeafBlocks)
		leaf = block / manifest.LeafBlocks
		if block >= p.g.Blocks() {
			return 0, false, nil
		}
		best := p.zero.nextOut(block) / manifest.LeafBlocks
		if leaf < p.parent.Leaves() {
			l, ok, err := p.parent.NextLeaf(ctx, leaf)
			if err != nil {
				return 0, false, fmt.Errorf("choose blocks to audit: %w", err)
			}
			if ok {
				best = min(best, l)
			}
		}
		if best*manifest.LeafBlocks >= p.g.Blocks() {
			return 0, false, nil
		}
		if best == leaf {
			return leaf, true, nil
		}
		leaf = best
	}
}

// auditable returns the blocks of a leaf that are clean and not holes on both
// sides.
func (p *planner) auditable(ctx context.Context, leaf int64) (mask, error) {
	m := p.in(leaf).not(p.dirty.mask(leaf))
	data := m.not(p.zero.mask(leaf))
	if data == m || leaf >= p.parent.Leaves() {
		return data, nil
	}
	l, err := p.parent.Leaf(ctx, leaf)
	switch {
	case ctx.Err() != nil:
		return mask{}, fmt.Errorf("choose blocks to audit: %w", ctx.Err())
	case err != nil:
		// The worker meets the same leaf and reads all of it.
		return m, nil //nolint:nilerr // see above
	}
	return m.and(data.or(l.Present())), nil
}
