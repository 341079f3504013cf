package manifest

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
)

// Loader reads nodes.
type Loader interface {
	// LoadNode returns the plaintext of a node's chunk, which stays unchanged.
	// It may be called concurrently. Caches are the Loader's: a Tree has none.
	LoadNode(ctx context.Context, r chunk.Ref) ([]byte, error)
}

// Tree is the manifest of one backup. It never changes; its methods may be
// called concurrently.
type Tree struct {
	g     blockmap.Geometry
	l     Loader
	level int
	root  view
}

// Open returns the tree of a volume of geometry g under a top node, which
// comes from the backup's root record and must not be changed afterwards.
func Open(g blockmap.Geometry, top []byte, l Loader) (*Tree, error) {
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("open a manifest: %w", err)
	}
	if g.BlockSize > chunk.MaxPlain {
		return nil, fmt.Errorf("open a manifest: blocks of %d bytes do not fit into chunks: %w", g.BlockSize, blockmap.ErrGeometry)
	}
	t := &Tree{g: g, l: l, level: topLevel(g)}
	if err := decodeNode(top, t.level, func(int, chunk.Ref) {}); err != nil {
		return nil, fmt.Errorf("top node of a manifest: %w", err)
	}
	root, err := parse(top, t.level)
	if err != nil {
		return nil, fmt.Errorf("top node of a manifest: %w", err)
	}
	t.root = root
	return t, nil
}

// leaves returns the number of leaves of a volume.
func leaves(g blockmap.Geometry) int64 { return (g.Blocks() + LeafBlocks - 1) / LeafBlocks }

// topLevel returns the level of a volume's top node, at least 1.
func topLevel(g blockmap.Geometry) int {
	level := 1
	for span(level) < leaves(g) {
		level++
	}
	return level
}

// span returns how many leaves a node of a level covers.
func span(level int) int64 { return 1 << (8 * level) }

// Geometry returns the geometry of the volume.
func (t *Tree) Geometry() blockmap.Geometry { return t.g }

// Leaves returns the number of leaves, holes included, that the volume has.
func (t *Tree) Leaves() int64 { return leaves(t.g) }

// load reads the child at a slot of a node of that level.
func (t *Tree) load(ctx context.Context, v view, level, slot int) (view, error) {
	r, err := v.ref(slot)
	if err != nil {
		return view{}, err
	}
	b, err := t.l.LoadNode(ctx, r)
	if err != nil {
		return view{}, fmt.Errorf("load manifest node %s: %w", r.ID, err)
	}
	child, err := parse(b, level-1)
	if err != nil {
		return view{}, fmt.Errorf("manifest node %s: %w", r.ID, err)
	}
	return child, nil
}

func slotOf(leaf int64, level int) int { return int(leaf >> (8 * (level - 1)) & (Fanout - 1)) }

// find returns the reference of a leaf's node; false means a hole.
func (t *Tree) find(ctx context.Context, leaf int64) (chunk.Ref, bool, error) {
	if leaf < 0 || leaf >= t.Leaves() {
		return chunk.Ref{}, false, fmt.Errorf("manifest: leaf %d of %d", leaf, t.Leaves())
	}
	v := t.root
	for level := t.level; ; level-- {
		slot := slotOf(leaf, level)
		if !v.has(slot) {
			return chunk.Ref{}, false, nil
		}
		if level == 1 {
			r, err := v.ref(slot)
			return r, err == nil, err
		}
		var err error
		if v, err = t.load(ctx, v, level, slot); err != nil {
			return chunk.Ref{}, false, err
		}
	}
}

// Lookup returns the chunk of a block; false means a hole, which reads as
// zeros. A chunk shorter than its block is followed by zeros, a longer one is
// cut: that is how the last block of a volume looks after a resize.
func (t *Tree) Lookup(ctx context.Context, block int64) (chunk.Ref, bool, error) {
	if block < 0 || block >= t.g.Blocks() {
		return chunk.Ref{}, false, fmt.Errorf("manifest: block %d of %d", block, t.g.Blocks())
	}
	r, ok, err := t.find(ctx, block/LeafBlocks)
	if err != nil || !ok {
		return chunk.Ref{}, false, err
	}
	b, err := t.l.LoadNode(ctx, r)
	if err != nil {
		return chunk.Ref{}, false, fmt.Errorf("load manifest leaf %s: %w", r.ID, err)
	}
	v, err := parse(b, 0)
	if err != nil {
		return chunk.Ref{}, false, fmt.Errorf("manifest leaf %s: %w", r.ID, err)
	}
	i := int(block % LeafBlocks)
	if !v.has(i) {
		return chunk.Ref{}, false, nil
	}
	c, err := v.ref(i)
	return c, err == nil, err
}

// Leaf returns one leaf, an empty one for a hole. It is the caller's.
func (t *Tree) Leaf(ctx context.Context, leaf int64) (*Leaf, error) {
	r, ok, err := t.find(ctx, leaf)
	if err != nil {
		return nil, err
	}
	l := new(Leaf)
	if ok {
		err = t.loadLeaf(ctx, r, l)
	}
	return l, err
}

func (t *Tree) loadLeaf(ctx context.Context, r chunk.Ref, l *Leaf) error {
	b, err := t.l.LoadNode(ctx, r)
	if err != nil {
		return fmt.Errorf("load manifest leaf %s: %w", r.ID, err)
	}
	*l = Leaf{}
	if err := decodeLeaf(b, l); err != nil {
		return fmt.Errorf("manifest node %s: %w", r.ID, err)
	}
	return nil
}

// errStop ends a traversal early.
var errStop = errors.New("stop")

// visitor is told of a node, and says whether to go below it.
type visitor func(level int, first int64, r chunk.Ref) (bool, error)

// Lost is told of a node that cannot be loaded: its reference, the first of the
// leaves below it, how many the node covers (the volume may end before), and why.
// Its error ends the traversal; without one it goes on behind the node.
type Lost func(first, leaves int64, r chunk.Ref, err error) error

func (l Lost) passOver(ctx context.Context, first, leaves int64, r chunk.Ref, err error) error {
	if l == nil || ctx.Err() != nil {
		return err
	}
	return l(first, leaves, r, err)
}

// each calls visit for the nodes under v, a node of that level whose first
// leaf is base, that hold leaves from `from` on, in order of leaves, a node
// before its children; it goes below a node when visit says so. What lost makes
// of a node that cannot be loaded ends the traversal or, when it is nil, lets it
// go on behind the node; without lost it ends.
func (t *Tree) each(ctx context.Context, v view, level int, base, from int64, visit visitor, lost Lost) error {
	slot := 0
	if from > base {
		slot = int(min((from-base)/span(level-1), Fanout))
	}
	for slot = v.next(slot); slot >= 0; slot = v.next(slot + 1) {
		first := base + int64(slot)*span(level-1)
		if first >= t.Leaves() {
			return fmt.Errorf("manifest node at leaf %d of %d: %w", first, t.Leaves(), ErrCorrupt)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("walk a manifest: %w", err)
		}
		r, err := v.ref(slot)
		if err != nil {
			return err
		}
		down, err := visit(level-1, first, r)
		if err != nil {
			return err
		}
		if !down || level == 1 {
			continue
		}
		child, err := t.load(ctx, v, level, slot)
		if err != nil {
			if err = lost.passOver(ctx, first, span(level-1), r, err); err != nil {
				return err
			}
			continue
		}
		if err := t.each(ctx, child, level-1, first, from, visit, lost); err != nil {
			return err
		}
	}
	return nil
}

// NextLeaf returns the first leaf at or after from that is not a hole; false
// means that there is none.
func (t *Tree) NextLeaf(ctx context.Context, from int64) (leaf int64, ok bool, err error) {
	err = t.each(ctx, t.root, t.level, 0, from, func(level int, first int64, _ chunk.Ref) (bool, error) {
		if level > 0 {
			return true, nil
		}
		leaf, ok = first, true
		return false, errStop
	}, nil)
	if errors.Is(err, errStop) {
		err = nil
	}
	return leaf, ok, err
}

// Walk calls fn for every leaf that is not a hole, in order. The Leaf is valid
// until fn returns. An error of fn ends the walk and is returned.
func (t *Tree) Walk(ctx context.Context, fn func(leaf int64, l *Leaf) error) error {
	return t.walkFrom(ctx, 0, fn)
}

func (t *Tree) walkFrom(ctx context.Context, from int64, fn func(leaf int64, l *Leaf) error) error {
	l := new(Leaf)
	return t.each(ctx, t.root, t.level, 0, from, func(level int, first int64, r chunk.Ref) (bool, error) {
		if level > 0 {
			return true, nil
		}
		if err := t.loadLeaf(ctx, r, l); err != nil {
			return false, err
		}
		return false, fn(first, l)
	}, nil)
}

// Nodes calls fn for every node that is a chunk (all but the top node), parents
// before their children; level 0 is a leaf, which is not loaded, first the node's
// first leaf. An error of fn ends the walk and is returned. lost may be nil.
func (t *Tree) Nodes(ctx context.Context, fn func(level int, first int64, r chunk.Ref) error, lost Lost) error {
	return t.each(ctx, t.root, t.level, 0, 0, func(level int, first int64, r chunk.Ref) (bool, error) {
		return true, fn(level, first, r)
	}, lost)
}

// Reach calls fn for every node and block of the tree, some of them more than
// once. It does not go below a node for whose ID seen says that its content was
// gone through before; equal nodes reach equal chunks. lost may be nil.
func (t *Tree) Reach(ctx context.Context, seen func(chunk.ID) bool, fn func(chunk.Kind, chunk.Ref), lost Lost) error {
	l := new(Leaf)
	return t.each(ctx, t.root, t.level, 0, 0, func(level int, first int64, r chunk.Ref) (bool, error) {
		fn(chunk.Node, r)
		if seen(r.ID) {
			return false, nil
		}
		if level > 0 {
			return true, nil
		}
		if err := t.loadLeaf(ctx, r, l); err != nil {
			return false, lost.passOver(ctx, first, 1, r, err)
		}
		for i := range LeafBlocks {
			if c, ok := l.At(i); ok {
				fn(chunk.Data, c)
			}
		}
		return false, nil
	}, lost)
}

// Packs returns the packs that hold the tree's nodes and the volume's blocks.
func (t *Tree) Packs(ctx context.Context) (map[chunk.PackID]struct{}, error) {
	packs := make(map[chunk.PackID]struct{})
	err := t.Reach(ctx, func(chunk.ID) bool { return false }, func(_ chunk.Kind, r chunk.Ref) { packs[r.Pack] = struct{}{} }, nil)
	if err != nil {
		return nil, err
	}
	return packs, nil
}
