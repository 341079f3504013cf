package manifest

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/internal/chunk"
)

var update = flag.Bool("update", false, "write the golden files")

// samples returns encoded nodes of a level.
func samples(tb testing.TB, level int) [][]byte {
	tb.Helper()
	n := width(level)
	var out [][]byte
	for _, step := range []int{1, 7, n - 1, n + 1} {
		b, err := encodeNode(level, n, func(i int) bool { return step <= n && i%step == 0 }, func(i int) chunk.Ref { return block(uint64(i + 1)) })
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func fuzzNode(f *testing.F, level int) {
	f.Helper()
	for _, b := range samples(f, level) {
		f.Add(b)
	}
	f.Add([]byte{nodeVersion, byte(level)})
	f.Fuzz(func(t *testing.T, b []byte) {
		var present [Fanout]bool
		var ref [Fanout]chunk.Ref
		err := decodeNode(b, level, func(i int, r chunk.Ref) { present[i], ref[i] = true, r })
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("error without a type: %v", err)
			}
			return
		}
		again, err := encodeNode(level, width(level), func(i int) bool { return present[i] }, func(i int) chunk.Ref { return ref[i] })
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
		// Single entries read as the whole does.
		v, err := parse(b, level)
		if err != nil {
			t.Fatal(err)
		}
		for i := range width(level) {
			if v.has(i) != present[i] {
				t.Fatalf("entry %d", i)
			}
			if !present[i] {
				continue
			}
			if r, err := v.ref(i); err != nil || r != ref[i] {
				t.Fatalf("entry %d: %v, %v", i, r, err)
			}
		}
	})
}

func FuzzLeaf(f *testing.F)  { fuzzNode(f, 0) }
func FuzzInner(f *testing.F) { fuzzNode(f, 1) }
func FuzzTop(f *testing.F)   { fuzzNode(f, 3) }

// TestGolden holds the format still.
func TestGolden(t *testing.T) {
	for name, b := range map[string][]byte{"leaf": samples(t, 0)[1], "inner": samples(t, 2)[1], "empty": samples(t, 1)[3]} {
		file := filepath.Join("testdata", name+".golden")
		if *update {
			if err := os.WriteFile(file, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b, want) {
			t.Errorf("%s has changed: what is stored already would not be read", name)
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	s := newNodeStore()
	changes := map[int64]uint64{}
	for i := range int64(LeafBlocks * 300) {
		changes[i] = uint64(i + 1)
	}
	g := geometry(LeafBlocks * 300)
	tree := build(b, s, nil, g, changes)
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		if _, ok, err := tree.Lookup(b.Context(), n); err != nil || !ok {
			b.Fatal(err)
		}
		n = (n + 7919) % g.Blocks()
	}
}

func BenchmarkUpdate(b *testing.B) {
	s := newNodeStore()
	changes := map[int64]uint64{}
	for i := range int64(LeafBlocks * 300) {
		changes[i] = uint64(i + 1)
	}
	g := geometry(LeafBlocks * 300)
	tree := build(b, s, nil, g, changes)
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		build(b, s, tree, g, map[int64]uint64{n: uint64(n + 10)})
		n = (n + 7919) % g.Blocks()
	}
}
