package manifest

import (
	"context"
	"fmt"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// subtree is a node at a fixed place of a tree of any height, or the hole
// there. A tree lower than the place asks for is thought of as the first child
// of nodes above its top.
type subtree struct {
	t     *Tree
	level int
	wraps int // levels above the tree's top node that are thought of
	ref   chunk.Ref
	named bool // ref is set: false for a hole, a top node and what is above it
	v     view
	hole  bool
}

// at returns the subtree of a level that begins at the tree's first leaf, a
// hole for no tree.
func (t *Tree) at(ctx context.Context, level int) (subtree, error) {
	if t == nil {
		return subtree{level: level, hole: true}, nil
	}
	s := subtree{t: t, level: max(level, t.level), wraps: max(level-t.level, 0), v: t.root}
	for s.level > level {
		var err error
		if s, err = s.child(ctx, 0); err != nil {
			return subtree{}, err
		}
	}
	return s, nil
}

// has reports whether the child at a slot is not a hole.
func (s subtree) has(slot int) bool {
	switch {
	case s.hole:
		return false
	case s.wraps > 0:
		return slot == 0
	default:
		return s.v.has(slot)
	}
}

// child returns the node at a slot. Leaves are not loaded.
func (s subtree) child(ctx context.Context, slot int) (subtree, error) {
	if !s.has(slot) {
		return subtree{t: s.t, level: s.level - 1, hole: true}, nil
	}
	if s.wraps > 0 {
		return subtree{t: s.t, level: s.level - 1, wraps: s.wraps - 1, v: s.v}, nil
	}
	r, err := s.v.ref(slot)
	if err != nil {
		return subtree{}, err
	}
	c := subtree{t: s.t, level: s.level - 1, ref: r, named: true}
	if s.level > 1 {
		c.v, err = s.t.load(ctx, s.v, s.level, slot)
	}
	return c, err
}

// childRef returns the reference at a slot without loading the node; false for
// a hole and for a node that is no chunk.
func (s subtree) childRef(slot int) (chunk.Ref, bool, error) {
	if s.wraps > 0 || !s.has(slot) {
		return chunk.Ref{}, false, nil
	}
	r, err := s.v.ref(slot)
	return r, err == nil, err
}

// Diff calls fn, in order, for every leaf in which the trees differ, with both
// leaves, empty for a hole; they are valid until fn returns. Subtrees that the
// trees share are not read. The volumes may differ in size, not in block size:
// leaves past the end of one are holes there. A nil other is all hole. An
// error of fn ends it and is returned.
func (t *Tree) Diff(ctx context.Context, other *Tree, fn func(leaf int64, mine, theirs *Leaf) error) error {
	level := t.level
	if other != nil {
		if t.g.BlockSize != other.g.BlockSize {
			return fmt.Errorf("compare manifests with blocks of %d and %d bytes", t.g.BlockSize, other.g.BlockSize)
		}
		level = max(level, other.level)
	}
	a, err := t.at(ctx, level)
	if err != nil {
		return err
	}
	b, err := other.at(ctx, level)
	if err != nil {
		return err
	}
	d := differ{fn: fn}
	return d.nodes(ctx, a, b, 0)
}

type differ struct {
	fn           func(leaf int64, mine, theirs *Leaf) error
	mine, theirs Leaf
}

func (d *differ) nodes(ctx context.Context, a, b subtree, base int64) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("compare manifests: %w", err)
	}
	for slot := range Fanout {
		if !a.has(slot) && !b.has(slot) {
			continue
		}
		ar, aok, err := a.childRef(slot)
		if err != nil {
			return err
		}
		br, bok, err := b.childRef(slot)
		if err != nil {
			return err
		}
		if aok && bok && ar.ID == br.ID {
			continue
		}
		ac, err := a.child(ctx, slot)
		if err != nil {
			return err
		}
		bc, err := b.child(ctx, slot)
		if err != nil {
			return err
		}
		first := base + int64(slot)*span(a.level-1)
		if a.level > 1 {
			err = d.nodes(ctx, ac, bc, first)
		} else {
			err = d.leaves(ctx, ac, bc, first)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *differ) leaves(ctx context.Context, a, b subtree, leaf int64) error {
	if err := a.leaf(ctx, &d.mine); err != nil {
		return err
	}
	if err := b.leaf(ctx, &d.theirs); err != nil {
		return err
	}
	return d.fn(leaf, &d.mine, &d.theirs)
}

func (s subtree) leaf(ctx context.Context, l *Leaf) error {
	if s.hole {
		*l = Leaf{}
		return nil
	}
	return s.t.loadLeaf(ctx, s.ref, l)
}
