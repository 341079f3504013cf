package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
)

// NodeWriter stores nodes.
type NodeWriter interface {
	// PutNode stores a node as a chunk of kind chunk.Node. It does not keep
	// plain.
	PutNode(ctx context.Context, plain []byte) (chunk.Ref, error)
}

// Builder makes the tree of a backup from its parent's and the leaves that
// differ. Its methods may be called concurrently, Finish last and alone; the
// NodeWriter given to a call is used by that call only.
//
// It holds the nodes on the way from the changed leaves to the top, about 60
// bytes per child: those right above the leaves until Settle or Finish writes
// them, the others until Finish.
type Builder struct {
	parent *Tree
	g      blockmap.Geometry
	level  int
	err    error // of NewBuilder's arguments

	mu       sync.Mutex
	drafts   []map[int64]*draft // [level][index of the node in its level]
	lastSet  bool               // the last leaf has been set
	settled  int64              // leaves before this one are final
	finished bool
}

// draft is an inner node in the making: what differs from the parent's node at
// the same place, later changes outdoing earlier ones.
type draft struct{ changes []change }

type change struct {
	slot    uint8
	present bool
	ref     chunk.Ref
}

// NewBuilder starts a tree for a volume of geometry g from the parent's, nil
// for a tree without one. The volume may have grown, which adds holes, or
// shrunk; the block size must be the parent's, else every later call fails.
func NewBuilder(parent *Tree, g blockmap.Geometry) *Builder {
	b := &Builder{parent: parent, g: g}
	switch {
	case g.Validate() != nil:
		b.err = g.Validate()
		return b
	case g.BlockSize > chunk.MaxPlain:
		b.err = fmt.Errorf("blocks of %d bytes do not fit into chunks: %w", g.BlockSize, blockmap.ErrGeometry)
	case parent != nil && parent.g.BlockSize != g.BlockSize:
		b.err = fmt.Errorf("blocks of %d bytes over a parent with blocks of %d: %w", g.BlockSize, parent.g.BlockSize, blockmap.ErrGeometry)
	}
	b.level = topLevel(g)
	b.drafts = make([]map[int64]*draft, maxLevel+1)
	for i := range b.drafts {
		b.drafts[i] = make(map[int64]*draft)
	}
	return b
}

// SetLeaf makes l a leaf of the tree; an empty one, or nil, is a hole. It is
// written to w at once and not kept. Leaves that are never set are the
// parent's. Blocks past the volume's end are left out. Setting one leaf from
// two goroutines at a time leaves either.
func (b *Builder) SetLeaf(ctx context.Context, w NodeWriter, leaf int64, l *Leaf) error {
	if b.err != nil {
		return fmt.Errorf("build a manifest: %w", b.err)
	}
	if leaf < 0 || leaf >= leaves(b.g) {
		return fmt.Errorf("build a manifest: leaf %d of %d", leaf, leaves(b.g))
	}
	ch, err := b.writeLeaf(ctx, w, leaf, l)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.finished || leaf < b.settled {
		return fmt.Errorf("build a manifest: leaf %d is set after it was declared final", leaf)
	}
	if leaf == leaves(b.g)-1 {
		b.lastSet = true
	}
	b.change(1, leaf/Fanout, ch)
	return nil
}

// writeLeaf stores a leaf, unless it is a hole.
func (b *Builder) writeLeaf(ctx context.Context, w NodeWriter, leaf int64, l *Leaf) (change, error) {
	ch := change{slot: uint8(slotOf(leaf, 1))} //nolint:gosec // below Fanout
	if l != nil {
		l = b.trim(leaf, l)
	}
	if l == nil || l.Empty() {
		return ch, nil
	}
	plain, err := l.encode()
	if err != nil {
		return change{}, err
	}
	if ch.ref, err = w.PutNode(ctx, plain); err != nil {
		return change{}, fmt.Errorf("store manifest leaf %d: %w", leaf, err)
	}
	ch.present = true
	return ch, nil
}

// trim returns the leaf without blocks past the volume's end.
func (b *Builder) trim(leaf int64, l *Leaf) *Leaf {
	n := b.g.Blocks() - leaf*LeafBlocks
	if n >= LeafBlocks {
		return l
	}
	cut := *l
	for i := int(n); i < LeafBlocks; i++ {
		cut.Clear(i)
	}
	return &cut
}

// change notes a change of a node. The caller holds the lock.
func (b *Builder) change(level int, index int64, ch change) {
	d := b.drafts[level][index]
	if d == nil {
		d = new(draft)
		b.drafts[level][index] = d
	}
	d.changes = append(d.changes, ch)
}

// take removes the draft of a node, nil if it has none.
func (b *Builder) take(level int, index int64) *draft {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.drafts[level][index]
	delete(b.drafts[level], index)
	return d
}

// Settle promises that no leaf before `before` will be set any more, so that
// nodes above them can be written to w and their memory given back. It is
// cheap when there is nothing to write.
func (b *Builder) Settle(ctx context.Context, w NodeWriter, before int64) error {
	if b.err != nil {
		return fmt.Errorf("build a manifest: %w", b.err)
	}
	b.mu.Lock()
	b.settled = max(b.settled, before)
	var ready []int64
	for index := range b.drafts[1] {
		// The last node, the top of a low tree and what was the top of the
		// parent's wait for Finish.
		if (index+1)*Fanout <= before && (index+1)*Fanout < leaves(b.g) && !b.wasTop(index) {
			ready = append(ready, index)
		}
	}
	b.mu.Unlock()
	for _, index := range ready {
		if d := b.take(1, index); d != nil {
			if err := b.write(ctx, w, 1, index, d); err != nil {
				return err
			}
		}
	}
	return nil
}

// wasTop reports whether that node above leaves was the top of the parent's.
func (b *Builder) wasTop(index int64) bool {
	return index == 0 && b.parent != nil && b.parent.level == 1
}

// write stores a node and notes it in the node above.
func (b *Builder) write(ctx context.Context, w NodeWriter, level int, index int64, d *draft) error {
	ch := change{slot: uint8(index % Fanout)} //nolint:gosec // below Fanout
	plain, old, err := b.compose(ctx, level, index, d)
	if err != nil {
		return err
	}
	switch {
	case plain == nil: // all hole
	case old.named && old.v.equal(plain):
		ch.ref, ch.present = old.ref, true
	default:
		if ch.ref, err = w.PutNode(ctx, plain); err != nil {
			return fmt.Errorf("store a manifest node: %w", err)
		}
		ch.present = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.change(level+1, index/Fanout, ch)
	return nil
}

// compose returns the encoded node, nil for one without children, and the
// parent's node at its place.
func (b *Builder) compose(ctx context.Context, level int, index int64, d *draft) ([]byte, subtree, error) {
	old, err := b.parentNode(ctx, level, index)
	if err != nil {
		return nil, subtree{}, fmt.Errorf("build a manifest: %w", err)
	}
	var present [Fanout]bool
	var ref [Fanout]chunk.Ref
	// Children past the end of a volume that has shrunk are left out.
	for slot := range Fanout {
		if (index*Fanout+int64(slot))*span(level-1) >= leaves(b.g) {
			break
		}
		if ref[slot], present[slot], err = old.childRef(slot); err != nil {
			return nil, subtree{}, fmt.Errorf("build a manifest: %w", err)
		}
	}
	if d != nil {
		for _, ch := range d.changes {
			present[ch.slot], ref[ch.slot] = ch.present, ch.ref
		}
	}
	some := false
	for _, p := range present {
		some = some || p
	}
	if !some && level < b.level {
		return nil, old, nil
	}
	plain, err := encodeNode(level, Fanout, func(i int) bool { return present[i] }, func(i int) chunk.Ref { return ref[i] })
	return plain, old, err
}

// parentNode returns the parent's node at a place, a hole if there is none.
func (b *Builder) parentNode(ctx context.Context, level int, index int64) (subtree, error) {
	s, err := b.parent.at(ctx, max(level, b.level))
	for err == nil && s.level > level && !s.hole {
		s, err = s.child(ctx, int(index>>(8*(s.level-level-1)))&(Fanout-1))
	}
	if s.hole {
		s = subtree{level: level, hole: true}
	}
	return s, err
}

// Finish writes what is left and returns the top node, which belongs into the
// root record: at most MaxNode bytes. The Builder is done then.
func (b *Builder) Finish(ctx context.Context, w NodeWriter) ([]byte, error) {
	if b.err != nil {
		return nil, fmt.Errorf("build a manifest: %w", b.err)
	}
	if b.finished {
		return nil, errors.New("build a manifest: Finish twice")
	}
	if err := b.fit(ctx, w); err != nil {
		return nil, err
	}
	b.finished = true
	for level := 1; level < b.level; level++ {
		for index, d := range b.drafts[level] {
			if err := b.write(ctx, w, level, index, d); err != nil {
				return nil, err
			}
		}
		clear(b.drafts[level])
	}
	top, _, err := b.compose(ctx, b.level, 0, b.drafts[b.level][0])
	return top, err
}

// fit makes the parent's tree one of this volume's size: of a volume that grew
// by a level the old top becomes a node like others, of one that shrank the
// nodes at the new end are cut.
func (b *Builder) fit(ctx context.Context, w NodeWriter) error {
	if b.parent == nil {
		return nil
	}
	if p := b.parent; p.level < b.level {
		b.touch(p.level, 0)
	}
	if b.parent.g.Blocks() <= b.g.Blocks() || b.g.Blocks() == 0 {
		return nil
	}
	last := leaves(b.g) - 1
	if !b.lastSet && b.g.Blocks()%LeafBlocks != 0 {
		l, err := b.parent.Leaf(ctx, last)
		if err != nil {
			return fmt.Errorf("build a manifest: %w", err)
		}
		ch, err := b.writeLeaf(ctx, w, last, l)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.change(1, last/Fanout, ch)
		b.mu.Unlock()
	}
	for level := 1; level <= b.level; level++ {
		b.touch(level, last/span(level))
	}
	return nil
}

// touch makes Finish write a node even if nothing in it changed.
func (b *Builder) touch(level int, index int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.drafts[level][index] == nil {
		b.drafts[level][index] = new(draft)
	}
}

// equal reports whether the node has this encoded form.
func (v view) equal(plain []byte) bool {
	n := len(v.bitmap) + len(v.packs) + len(v.entries)
	return len(plain) == nodeHeader+n && bytes.Equal(plain[nodeHeader:][:len(v.bitmap)], v.bitmap) &&
		bytes.Equal(plain[nodeHeader+len(v.bitmap):][:len(v.packs)], v.packs) &&
		bytes.Equal(plain[nodeHeader+len(v.bitmap)+len(v.packs):], v.entries)
}
