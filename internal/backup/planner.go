package backup

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// planner deals out the leaves that have something to do.
type planner struct {
	g      blockmap.Geometry
	parent *manifest.Tree
	full   bool // every block is examined
	known  bool // dirty says what the change map says
	scan   bool // every leaf of the parent is looked through for damaged chunks
	dirty  spans
	zero   spans

	audits map[int64]mask // by leaf
	leaves []int64        // of audits, in order

	mu     sync.Mutex
	from   int64              // leaves before this one have been dealt out or have nothing to do
	flight map[int64]struct{} // dealt out and not done
	ended  bool               // nothing is left to be dealt out
}

// task is what is to be done with one leaf.
type task struct {
	index int64 // of the leaf
	in    mask  // blocks of the leaf that the volume has
	read  mask  // to be examined and backed up
	audit mask  // clean, to be checked
	clean mask  // of read: clean in a change map that is known
	zero  mask  // reads as zeros
}

func newPlanner(ctx context.Context, p Plan, parent *manifest.Tree) (*planner, error) {
	pl := &planner{
		g: p.Geometry, parent: parent,
		known:  p.Dirty != nil && parent != nil,
		zero:   within(p.Geometry, p.Allocated, blockmap.Zero),
		flight: make(map[int64]struct{}),
	}
	pl.full = !pl.known || p.Compare
	pl.scan = p.Bad != nil && parent != nil
	if pl.known {
		pl.dirty = normal(append(touched(p.Geometry, p.Dirty, blockmap.Dirty), resized(p.Geometry, parent.Geometry())))
	}
	if !pl.full && !p.Certain {
		if err := pl.chooseAudit(ctx, p.AuditSeed); err != nil {
			return nil, err
		}
	}
	return pl, nil
}

// resized returns the blocks that a change of the volume's size makes dirty:
// the new ones, and the one at the smaller end when that is not on a block's
// edge, as its chunk is shorter or longer than the block is now.
func resized(g, parent blockmap.Geometry) span {
	edge := min(g.Size, parent.Size)
	if g.Size == parent.Size || g.Size < parent.Size && edge == g.Offset(g.Block(edge)) {
		return span{}
	}
	return span{g.Block(edge), g.Blocks()}
}

// bytes returns how much there is to be read, as far as is known now.
func (p *planner) bytes() int64 {
	blocks := int64(0)
	if p.full {
		blocks = p.g.Blocks() - p.zero.blocks()
	} else {
		for _, s := range p.dirty {
			for b := p.zero.nextOut(s.first); b < s.end; b = p.zero.nextOut(b) {
				end := s.end
				if z, ok := p.zero.next(b); ok {
					end = min(end, z)
				}
				blocks += end - b
				b = end
			}
		}
		for leaf, m := range p.audits {
			blocks += int64(m.not(p.zero.mask(leaf)).count())
		}
	}
	return min(blocks*int64(p.g.BlockSize), p.g.Size)
}

// next deals out the next leaf; false means that there is none.
func (p *planner) next(ctx context.Context) (task, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	leaf, ok, err := p.nextLeaf(ctx)
	if err != nil || !ok {
		p.ended = err == nil
		return task{}, false, err
	}
	t := task{index: leaf, in: p.in(leaf), zero: p.zero.mask(leaf)}
	dirty := p.dirty.mask(leaf)
	t.read = dirty
	if p.full {
		t.read = t.in
		if p.known {
			t.clean = t.in.not(dirty)
		}
	}
	t.audit = p.audits[leaf]
	p.flight[leaf] = struct{}{}
	p.from = leaf + 1
	return t, true, nil
}

// nextLeaf returns the first leaf from p.from on that has something to do.
func (p *planner) nextLeaf(ctx context.Context) (int64, bool, error) {
	best, found := int64(0), false
	offer := func(leaf int64) {
		if !found || leaf < best {
			best, found = leaf, true
		}
	}
	block := p.from * manifest.LeafBlocks
	if block >= p.g.Blocks() {
		return 0, false, nil
	}
	if p.full {
		if b := p.zero.nextOut(block); b < p.g.Blocks() {
			offer(b / manifest.LeafBlocks)
		}
	} else {
		if b, ok := p.dirty.next(block); ok {
			offer(b / manifest.LeafBlocks)
		}
		if i, _ := slices.BinarySearch(p.leaves, p.from); i < len(p.leaves) {
			offer(p.leaves[i])
		}
	}
	if p.parent != nil && (p.full || p.scan) && p.from < p.parent.Leaves() {
		leaf, ok, err := p.parent.NextLeaf(ctx, p.from)
		if err != nil {
			return 0, false, err
		}
		if ok && leaf*manifest.LeafBlocks < p.g.Blocks() {
			offer(leaf)
		}
	}
	return best, found, nil
}

// in returns the blocks of a leaf that the volume has.
func (p *planner) in(leaf int64) mask {
	return bitRange(0, int(min(p.g.Blocks()-leaf*manifest.LeafBlocks, manifest.LeafBlocks)))
}

// done notes that a leaf is finished and returns a leaf before which all are.
func (p *planner) done(leaf int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.flight, leaf)
	return p.low()
}

// low is the first leaf that is dealt out and not done, or else the next that may be
// dealt out. It only grows. mu is held.
func (p *planner) low() int64 {
	low := p.from
	for l := range p.flight {
		low = min(low, l)
	}
	return low
}

// settled returns an offset before which nothing is read any more: at the end all, also
// what lies behind the last leaf that had something to do.
func (p *planner) settled() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended && len(p.flight) == 0 {
		return p.g.Size
	}
	return min(p.low()*manifest.LeafBlocks*int64(p.g.BlockSize), p.g.Size)
}

// finished makes sure that every leaf was dealt out and done: a manifest of a
// run that ended early would look like any other.
func (p *planner) finished() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.ended || len(p.flight) > 0 {
		return fmt.Errorf("backup run ended with %d leaves not done", len(p.flight))
	}
	return nil
}
