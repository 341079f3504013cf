package blockmap

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestGeometry(t *testing.T) {
	g := Geometry{Size: 10000, BlockSize: 4096}
	for _, c := range []struct{ off, n, first, count int64 }{
		{0, 1, 0, 1},
		{0, 4096, 0, 1},
		{0, 4097, 0, 2},
		{4095, 2, 0, 2},
		{4096, 4096, 1, 1},
		{8192, 100000, 2, 1},
		{0, 1 << 62, 0, 3},
		{9999, 1, 2, 1},
		{10000, 1, 0, 0},
		{5, 0, 0, 0},
	} {
		if first, count := g.Span(c.off, c.n); first != c.first || count != c.count {
			t.Errorf("span of %d bytes at %d: %d, %d; want %d, %d", c.n, c.off, first, count, c.first, c.count)
		}
	}
	if g.Blocks() != 3 || g.BlockLen(0) != 4096 || g.BlockLen(2) != 10000-8192 || g.BlockLen(3) != 0 || g.BlockLen(-1) != 0 {
		t.Errorf("blocks %d, lengths %d %d %d", g.Blocks(), g.BlockLen(0), g.BlockLen(2), g.BlockLen(3))
	}
	if g.Block(8192) != 2 || g.Offset(2) != 8192 {
		t.Errorf("block of 8192 is %d, offset of 2 is %d", g.Block(8192), g.Offset(2))
	}
	for _, c := range []struct {
		g  Geometry
		ok bool
	}{
		{Geometry{0, 512}, true},
		{Geometry{MaxSize, DefaultBlockSize}, true},
		{Geometry{-1, 4096}, false},
		{Geometry{MaxSize + 1, 4096}, false},
		{Geometry{1, 0}, false},
		{Geometry{1, -4096}, false},
		{Geometry{1, 5000}, false},
		{Geometry{1, 256}, false},
		{Geometry{1, 128 << 20}, false},
	} {
		if err := c.g.Validate(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.g, err)
		}
	}
	if n := NewBitmap(Geometry{Size: 1 << 40, BlockSize: DefaultBlockSize}.Blocks()); len(n.words)*8 != 2<<20 {
		t.Errorf("1 TiB takes %d bytes", len(n.words)*8)
	}
}

// A bitmap does what a slice of booleans does.
func TestBitmapModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.Int64Range(0, 300).Draw(r, "n")
		b, want := NewBitmap(n), make([]bool, n)
		for range rapid.IntRange(0, 10).Draw(r, "ops") {
			first, count := rapid.Int64Range(-70, 370).Draw(r, "first"), rapid.Int64Range(-5, 200).Draw(r, "count")
			set := rapid.Bool().Draw(r, "set")
			if set {
				b.Set(first, count)
			} else {
				b.Clear(first, count)
			}
			for i := max(first, 0); i < min(first+count, n); i++ {
				want[i] = set
			}
		}
		o := NewBitmap(rapid.Int64Range(0, 400).Draw(r, "other"))
		o.Set(rapid.Int64Range(0, 400).Draw(r, "from"), 50)
		c := b.Clone()
		c.Or(o)
		count := int64(0)
		for i := int64(-3); i < n+3; i++ {
			in := i >= 0 && i < n
			if b.Test(i) != (in && want[i]) || c.Test(i) != (in && (want[i] || o.Test(i))) {
				r.Fatalf("bit %d of %d is %v, or'd %v", i, n, b.Test(i), c.Test(i))
			}
			if b.Test(i) {
				count++
			}
		}
		if b.Count() != count || b.Len() != n {
			r.Fatalf("%d bits of %d", b.Count(), b.Len())
		}
		from, to, v := rapid.Int64Range(0, 310).Draw(r, "next"), rapid.Int64Range(0, 310).Draw(r, "before"), rapid.Bool().Draw(r, "value")
		found := from
		for found < min(to, n) && b.Test(found) != v {
			found++
		}
		if got := b.Next(from, to, v); got != min(found, to, n) {
			r.Fatalf("next %v from %d before %d is %d", v, from, to, got)
		}
		again, last := NewBitmap(n), int64(-1)
		for first, k := range b.Runs() {
			if k < 1 || first <= last {
				r.Fatalf("run of %d at %d after %d", k, first, last)
			}
			again.Set(first, k)
			last = first + k
		}
		if !slices.Equal(again.words, b.words) {
			r.Fatal("the runs are not the bits")
		}
		g := Geometry{Size: max(n*512-100, 0), BlockSize: 512}
		total := int64(0)
		for _, e := range b.Extents(g) {
			if e.State != Dirty || e.Length <= 0 || e.End() > g.Size {
				r.Fatalf("extent %+v", e)
			}
			total += e.Length
		}
		if n > 0 && b.Test(n-1) {
			total += 100
		}
		if total != count*512 {
			r.Fatalf("extents of %d bytes for %d blocks", total, count)
		}
	})
}

func TestRunsStop(t *testing.T) {
	b := NewBitmap(10)
	b.Set(1, 1)
	b.Set(5, 1)
	for first := range b.Runs() {
		if first != 1 {
			t.Fatalf("run at %d after the loop ended", first)
		}
		break
	}
}

// drawExtents returns sorted extents within 100 bytes, and what each byte is;
// -1 is nothing.
func drawExtents(r *rapid.T, name string) ([]Extent, []int) {
	bytes := make([]int, 100)
	for i := range bytes {
		bytes[i] = -1
	}
	var exts []Extent
	for pos := int64(0); ; {
		pos += rapid.Int64Range(0, 20).Draw(r, name+" gap")
		n := rapid.Int64Range(1, 20).Draw(r, name+" length")
		s := State(rapid.Uint32Range(0, 2).Draw(r, name+" state"))
		if pos+n > 100 {
			return exts, bytes
		}
		exts = append(exts, Extent{Offset: pos, Length: n, State: s})
		for i := pos; i < pos+n; i++ {
			bytes[i] = int(s)
		}
		pos += n
	}
}

func TestExtentsModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		a, bytesA := drawExtents(r, "a")
		b, bytesB := drawExtents(r, "b")
		off := rapid.Int64Range(0, 100).Draw(r, "off")
		n := rapid.Int64Range(0, 100-off).Draw(r, "n")
		verify := func(what string, got []Extent, joined bool, want func(i int64) int) {
			state := make([]int, 100)
			for i := range state {
				state[i] = -1
			}
			for k, e := range got {
				if e.Length <= 0 || k > 0 && e.Offset < got[k-1].End() ||
					joined && k > 0 && e.Offset == got[k-1].End() && e.State == got[k-1].State {
					r.Fatalf("%s: %v", what, got)
				}
				for i := e.Offset; i < e.End(); i++ {
					state[i] = int(e.State)
				}
			}
			for i := range state {
				if state[i] != want(int64(i)) {
					r.Fatalf("%s: byte %d is %d, not %d: %v", what, i, state[i], want(int64(i)), got)
				}
			}
		}
		in := func(i int64) bool { return i >= off && i < off+n }
		before := slices.Clone(a)
		verify("merge", Merge(a), true, func(i int64) int { return bytesA[i] })
		verify("clip", Clip(a, off, n), false, func(i int64) int {
			if in(i) {
				return bytesA[i]
			}
			return -1
		})
		verify("overlay", Overlay(a, b), true, func(i int64) int {
			if bytesB[i] >= 0 {
				return bytesB[i]
			}
			return bytesA[i]
		})
		if !slices.Equal(a, before) {
			r.Fatal("the argument was changed")
		}
		if total := int64(len(slices.DeleteFunc(slices.Clone(bytesA), func(v int) bool { return v < 0 }))); Total(a) != total {
			r.Fatalf("total %d, not %d", Total(a), total)
		}
	})
}
