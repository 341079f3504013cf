package manifest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
)

// nodeStore keeps nodes in memory and counts.
type nodeStore struct {
	mu    sync.Mutex
	nodes map[chunk.Ref][]byte
	tops  map[*Tree][]byte // of the trees that build made
	puts  int
	loads int
}

func newNodeStore() *nodeStore {
	return &nodeStore{nodes: make(map[chunk.Ref][]byte), tops: make(map[*Tree][]byte)}
}

var errNoNode = errors.New("no such node")

func (s *nodeStore) LoadNode(ctx context.Context, r chunk.Ref) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads++
	b, ok := s.nodes[r]
	if !ok {
		return nil, errNoNode
	}
	return b, ctx.Err()
}

func (s *nodeStore) PutNode(ctx context.Context, plain []byte) (chunk.Ref, error) {
	d, err := chunk.NewDomain([32]byte{1}, [16]byte{2}, "p")
	if err != nil {
		return chunk.Ref{}, err
	}
	id := d.ID(chunk.Node, plain)
	r := chunk.Ref{ID: id, Location: chunk.Location{Pack: chunk.PackID{id[0]%3 + 1}, Length: chunk.MinSealed}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.puts++
	s.nodes[r] = bytes.Clone(plain)
	return r, ctx.Err()
}

// block returns a reference that a number fixes.
func block(n uint64) chunk.Ref {
	var r chunk.Ref
	binary.BigEndian.PutUint64(r.ID[:], n*weird)
	r.Pack = chunk.PackID{31: byte(n % 5)}
	r.Offset = uint32(n)
	r.Length = chunk.MinSealed + uint32(n%65536)
	return r
}

const weird = 0x9E3779B97F4A7C15

func geometry(blocks int64) blockmap.Geometry {
	return blockmap.Geometry{Size: blocks * blockmap.DefaultBlockSize, BlockSize: blockmap.DefaultBlockSize}
}

// build makes a tree over a parent with the given blocks changed, 0 for a hole.
func build(tb testing.TB, s *nodeStore, parent *Tree, g blockmap.Geometry, changes map[int64]uint64) *Tree {
	tb.Helper()
	b := NewBuilder(parent, g)
	leaves := map[int64]*Leaf{}
	for n := range changes {
		i := n / LeafBlocks
		if leaves[i] != nil {
			continue
		}
		leaves[i] = new(Leaf)
		if parent != nil && i < parent.Leaves() {
			var err error
			if leaves[i], err = parent.Leaf(tb.Context(), i); err != nil {
				tb.Fatal(err)
			}
		}
	}
	for n, v := range changes {
		if l := leaves[n/LeafBlocks]; v == 0 {
			l.Clear(int(n % LeafBlocks))
		} else {
			l.Set(int(n%LeafBlocks), block(v))
		}
	}
	var wg sync.WaitGroup
	order := slices.Sorted(maps.Keys(leaves))
	for k, i := range order {
		wg.Go(func() {
			if err := b.SetLeaf(tb.Context(), s, i, leaves[i]); err != nil {
				tb.Error(err)
			}
		})
		if k%3 == 2 {
			wg.Wait()
			if err := b.Settle(tb.Context(), s, i+1); err != nil {
				tb.Fatal(err)
			}
		}
	}
	wg.Wait()
	if err := b.Settle(tb.Context(), s, (g.Blocks()+LeafBlocks-1)/LeafBlocks); err != nil {
		tb.Fatal(err)
	}
	top, err := b.Finish(tb.Context(), s)
	if err != nil {
		tb.Fatal(err)
	}
	if len(top) > MaxNode {
		tb.Fatalf("top of %d bytes", len(top))
	}
	tree, err := Open(g, top, s)
	if err != nil {
		tb.Fatal(err)
	}
	s.tops[tree] = top
	return tree
}

// same compares a tree with a model.
func same(t *rapid.T, tree *Tree, model map[int64]uint64) {
	got := map[int64]uint64{}
	last := int64(-1)
	err := tree.Walk(context.Background(), func(leaf int64, l *Leaf) error {
		if leaf <= last || l.Empty() {
			t.Fatalf("leaf %d after %d, empty: %v", leaf, last, l.Empty())
		}
		last = leaf
		for i := range LeafBlocks {
			if r, ok := l.At(i); ok {
				got[leaf*LeafBlocks+int64(i)] = uint64(r.Offset)
				if r != block(uint64(r.Offset)) {
					t.Fatalf("block %d: %+v", i, r)
				}
			}
		}
		return nil
	})
	if err != nil || !maps.Equal(got, model) {
		t.Fatalf("%v: tree %v, model %v", err, got, model)
	}
}

// TestModel builds trees over trees, growing and shrinking, against a map.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newNodeStore()
		var parent *Tree
		var parentModel map[int64]uint64
		next := uint64(0)
		for range rapid.IntRange(1, 6).Draw(rt, "generations") {
			// Sizes around the edges of leaves and levels.
			base := rapid.SampledFrom([]int64{0, 1, LeafBlocks, LeafBlocks * Fanout, LeafBlocks * Fanout * 3, LeafBlocks * Fanout * Fanout, LeafBlocks * Fanout * Fanout * 5}).Draw(rt, "base")
			blocks := max(base+rapid.Int64Range(-130, 300).Draw(rt, "more"), 0)
			g := geometry(blocks)
			model := map[int64]uint64{}
			for n, v := range parentModel {
				if n < blocks {
					model[n] = v
				}
			}
			changes := map[int64]uint64{}
			if blocks > 0 {
				near := rapid.SampledFrom([]int64{0, blocks - 1, blocks / 2, min(LeafBlocks*Fanout, blocks-1)})
				for range rapid.IntRange(0, 20).Draw(rt, "changes") {
					n := min(max(near.Draw(rt, "near")+rapid.Int64Range(-200, 200).Draw(rt, "off"), 0), blocks-1)
					next++
					changes[n] = next
					if rapid.IntRange(0, 3).Draw(rt, "hole") == 0 {
						changes[n] = 0
					}
				}
			}
			for n, v := range changes {
				if v == 0 {
					delete(model, n)
				} else {
					model[n] = v
				}
			}
			tree := build(t, s, parent, g, changes)
			same(rt, tree, model)
			checkQueries(rt, tree, model)
			checkDiff(rt, tree, parent, model, parentModel)
			checkDiff(rt, tree, nil, model, nil)
			if parent != nil {
				checkDiff(rt, parent, tree, parentModel, model)
			}
			// The same tree built afresh is the same, byte for byte.
			if whole := build(t, s, nil, g, model); !bytes.Equal(s.tops[whole], s.tops[tree]) {
				rt.Fatalf("a tree depends on how it came about")
			}
			parent, parentModel = tree, model
		}
	})
}

func checkQueries(t *rapid.T, tree *Tree, model map[int64]uint64) {
	ctx := context.Background()
	keys := slices.Sorted(maps.Keys(model))
	probes := []int64{0, tree.Geometry().Blocks() / 2, tree.Geometry().Blocks() - 1}
	for _, k := range keys {
		probes = append(probes, k-1, k, k+1)
	}
	for _, n := range probes {
		if n < 0 || n >= tree.Geometry().Blocks() {
			if _, _, err := tree.Lookup(ctx, n); err == nil {
				t.Fatalf("block %d is looked up", n)
			}
			continue
		}
		r, ok, err := tree.Lookup(ctx, n)
		if v, want := model[n]; err != nil || ok != want || ok && r != block(v) {
			t.Fatalf("block %d: %v, %v, %v", n, r, ok, err)
		}
		leaf, ok, err := tree.NextLeaf(ctx, n/LeafBlocks)
		i, _ := slices.BinarySearch(keys, n/LeafBlocks*LeafBlocks)
		if err != nil || ok != (i < len(keys)) || ok && leaf != keys[i]/LeafBlocks {
			t.Fatalf("next leaf after %d: %d, %v, %v", n/LeafBlocks, leaf, ok, err)
		}
	}
	size := tree.Geometry().Size
	off := rapid.Int64Range(0, size).Draw(t, "offset")
	n := rapid.Int64Range(0, size+100).Draw(t, "bytes")
	exts, err := tree.Extents(ctx, off, n)
	if err != nil {
		t.Fatal(err)
	}
	pos := off
	for i, e := range exts {
		if e.Offset != pos || e.Length <= 0 || i > 0 && exts[i-1].State == e.State {
			t.Fatalf("extents %v", exts)
		}
		pos = e.End()
	}
	if pos != min(off+n, size) {
		t.Fatalf("extents end at %d: %v", pos, exts)
	}
	for _, k := range keys {
		start, end := max(tree.g.Offset(k), off), min(tree.g.Offset(k+1), off+n, size)
		if start < end && blockmap.Clip(exts, start, end-start)[0] != (blockmap.Extent{Offset: start, Length: end - start, State: blockmap.Data}) {
			t.Fatalf("block %d is not data in %v", k, exts)
		}
	}
	data := int64(0)
	for _, e := range exts {
		if e.State == blockmap.Data {
			first, count := tree.g.Span(e.Offset, e.Length)
			for i := first; i < first+count; i++ {
				if _, ok := model[i]; !ok {
					t.Fatalf("hole %d is data in %v", i, exts)
				}
			}
			data += count
		}
	}
	packs, err := tree.Packs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range model {
		if _, ok := packs[block(v).Pack]; !ok {
			t.Fatalf("pack of %d is missing", v)
		}
	}
}

func checkDiff(t *rapid.T, a, b *Tree, am, bm map[int64]uint64) {
	want := map[int64]bool{}
	for n, v := range am {
		if bm[n] != v {
			want[n/LeafBlocks] = true
		}
	}
	for n, v := range bm {
		if am[n] != v {
			want[n/LeafBlocks] = true
		}
	}
	got := map[int64]bool{}
	err := a.Diff(context.Background(), b, func(leaf int64, mine, theirs *Leaf) error {
		got[leaf] = true
		for i := range LeafBlocks {
			r, ok := mine.At(i)
			v, has := am[leaf*LeafBlocks+int64(i)]
			if ok != has || ok && r != block(v) {
				return fmt.Errorf("block %d of leaf %d is not mine", i, leaf)
			}
			r, ok = theirs.At(i)
			v, has = bm[leaf*LeafBlocks+int64(i)]
			if ok != has || ok && r != block(v) {
				return fmt.Errorf("block %d of leaf %d is not theirs", i, leaf)
			}
		}
		return nil
	})
	if err != nil || !maps.Equal(got, want) {
		t.Fatalf("%v: differ in %v, not %v", err, got, want)
	}
}

// TestSparse: a tree of 64 TiB with three leaves costs three leaves.
func TestSparse(t *testing.T) {
	for _, tib := range []int64{4, 64, 65536} {
		s := newNodeStore()
		g := geometry(tib << 40 / blockmap.DefaultBlockSize)
		tree := build(t, s, nil, g, map[int64]uint64{0: 1, g.Blocks() / 2: 2, g.Blocks() - 1: 3})
		if s.puts > 3*5 || len(s.tops[tree]) > 500 {
			t.Errorf("%d TiB: %d nodes, top of %d bytes", tib, s.puts, len(s.tops[tree]))
		}
		s.puts, s.loads = 0, 0
		next := build(t, s, tree, g, map[int64]uint64{5: 9})
		if s.puts > 5 || s.loads > 20 {
			t.Errorf("%d TiB: one leaf more: %d nodes, %d loads", tib, s.puts, s.loads)
		}
		s.loads = 0
		if err := next.Diff(t.Context(), tree, func(int64, *Leaf, *Leaf) error { return nil }); err != nil || s.loads > 20 {
			t.Errorf("%d TiB: diff: %d loads, %v", tib, s.loads, err)
		}
		s.loads = 0
		if exts, err := next.Extents(t.Context(), 0, g.Size); err != nil || len(exts) != 7 || s.loads > 20 {
			t.Errorf("%d TiB: %v, %d loads, %v", tib, exts, s.loads, err)
		}
	}
}

// TestBytesPerBlock holds the manifest to about 27 bytes for a block.
func TestBytesPerBlock(t *testing.T) {
	s := newNodeStore()
	changes := map[int64]uint64{}
	for i := range int64(LeafBlocks * 300) {
		changes[i] = uint64(i + 1)
	}
	tree := build(t, s, nil, geometry(LeafBlocks*300), changes)
	total := len(s.tops[tree])
	for _, b := range s.nodes {
		total += len(b)
	}
	// Blocks of one leaf are in five packs here, in life in one or two.
	if per := float64(total) / float64(len(changes)); per > 29 {
		t.Errorf("%.1f bytes for a block", per)
	}
}

func TestRefusals(t *testing.T) {
	s := newNodeStore()
	g := geometry(1000)
	tree := build(t, s, nil, g, map[int64]uint64{1: 1, 999: 2})
	for _, b := range [][]byte{nil, {1}, s.tops[tree][:len(s.tops[tree])-1], append(slices.Clone(s.tops[tree]), 0)} {
		if _, err := Open(g, b, s); !errors.Is(err, ErrCorrupt) {
			t.Errorf("top of %d bytes: %v", len(b), err)
		}
	}
	newer := slices.Clone(s.tops[tree])
	newer[0]++
	if _, err := Open(g, newer, s); !errors.Is(err, ErrVersion) {
		t.Errorf("newer: %v", err)
	}
	if _, err := Open(geometry(1<<30), s.tops[tree], s); !errors.Is(err, ErrCorrupt) {
		t.Errorf("higher: %v", err)
	}
	if _, err := Open(blockmap.Geometry{Size: -1, BlockSize: 4096}, s.tops[tree], s); !errors.Is(err, blockmap.ErrGeometry) {
		t.Errorf("geometry: %v", err)
	}
	b := NewBuilder(tree, blockmap.Geometry{Size: 1 << 30, BlockSize: 4096})
	if err := b.SetLeaf(t.Context(), s, 0, nil); err == nil {
		t.Error("another block size is taken")
	}
	b = NewBuilder(tree, g)
	if err := b.SetLeaf(t.Context(), s, 8, nil); err == nil {
		t.Error("a leaf past the end is taken")
	}
	if err := b.Settle(t.Context(), s, 3); err != nil {
		t.Error(err)
	}
	if err := b.SetLeaf(t.Context(), s, 2, nil); err == nil {
		t.Error("a settled leaf is taken")
	}
	// A node that is gone is an error everywhere, never a hole.
	clear(s.nodes)
	if _, _, err := tree.Lookup(t.Context(), 1); !errors.Is(err, errNoNode) {
		t.Errorf("lookup: %v", err)
	}
	if err := tree.Walk(t.Context(), func(int64, *Leaf) error { return nil }); !errors.Is(err, errNoNode) {
		t.Errorf("walk: %v", err)
	}
	if _, err := tree.Packs(t.Context()); !errors.Is(err, errNoNode) {
		t.Errorf("packs: %v", err)
	}
	stop := errors.New("enough")
	if err := tree.Nodes(t.Context(), func(int, int64, chunk.Ref) error { return stop }, nil); !errors.Is(err, stop) {
		t.Errorf("nodes: %v", err)
	}
}

// A walk goes on behind nodes that are lost, on every level, and is told what hangs on
// them; without anybody to tell it ends.
func TestLostNodes(t *testing.T) {
	s := newNodeStore()
	g := geometry(3 * Fanout * LeafBlocks) // three nodes of level 1
	changes := make(map[int64]uint64)
	for leaf := int64(0); leaf < 3*Fanout; leaf += 100 {
		changes[leaf*LeafBlocks] = uint64(leaf + 1)
	}
	tree := build(t, s, nil, g, changes)
	type gone struct{ first, leaves int64 }
	var want []gone
	err := tree.Nodes(t.Context(), func(level int, first int64, r chunk.Ref) error {
		switch {
		case level == 1 && first == Fanout: // takes the leaves 300, 400 and 500 along
			want = append(want, gone{Fanout, Fanout})
			delete(s.nodes, r)
		case level == 0 && (first == 100 || first == 700):
			want = append(want, gone{first, 1})
			delete(s.nodes, r)
		}
		return nil
	}, func(_, _ int64, _ chunk.Ref, err error) error {
		if !errors.Is(err, errNoNode) {
			t.Error(err)
		}
		return nil
	})
	if err != nil || len(want) != 3 {
		t.Fatalf("%v, %v", want, err)
	}
	var got []gone
	packs := 0
	lost := func(first, leaves int64, _ chunk.Ref, err error) error {
		if !errors.Is(err, errNoNode) {
			t.Error(err)
		}
		got = append(got, gone{first, leaves})
		return nil
	}
	never := func(chunk.ID) bool { return false }
	if err = tree.Reach(t.Context(), never, func(chunk.Kind, chunk.Ref) { packs++ }, lost); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, want %v, %v", got, want, err)
	}
	// Of eight leaves three are behind the lost node, and two are lost: three have a block.
	if nodes := 3 + 5; packs != nodes+3 {
		t.Errorf("%d packs were named, want %d", packs, nodes+3)
	}
	if err = tree.Reach(t.Context(), never, func(chunk.Kind, chunk.Ref) {}, nil); !errors.Is(err, errNoNode) {
		t.Errorf("nobody to tell: %v", err)
	}
	enough := errors.New("enough")
	err = tree.Nodes(t.Context(), func(int, int64, chunk.Ref) error { return nil }, func(int64, int64, chunk.Ref, error) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("told, and it went on: %v", err)
	}
}
