package backup

import (
	"math/bits"
	"slices"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// mask holds a bit for each block of a leaf.
type mask [manifest.LeafBlocks / 64]uint64

func (m mask) has(i int) bool { return m[i/64]&(1<<(i%64)) != 0 }

func (m mask) with(i int) mask {
	m[i/64] |= 1 << (i % 64)
	return m
}

// bitRange returns the mask with the bits from first up to, not including, end.
func bitRange(first, end int) mask {
	var m mask
	for i := first; i < end; i++ {
		m = m.with(i)
	}
	return m
}

func (m mask) and(o mask) mask { return mask{m[0] & o[0], m[1] & o[1]} }
func (m mask) or(o mask) mask  { return mask{m[0] | o[0], m[1] | o[1]} }
func (m mask) not(o mask) mask { return mask{m[0] &^ o[0], m[1] &^ o[1]} }
func (m mask) empty() bool     { return m == mask{} }
func (m mask) count() int      { return bits.OnesCount64(m[0]) + bits.OnesCount64(m[1]) }

// next returns the first bit set at or after i, manifest.LeafBlocks for none.
func (m mask) next(i int) int {
	for i < manifest.LeafBlocks {
		if w := m[i/64] >> (i % 64); w != 0 {
			return i + bits.TrailingZeros64(w)
		}
		i = (i/64 + 1) * 64
	}
	return manifest.LeafBlocks
}

// span is a run of blocks: those from first up to, not including, end.
type span struct{ first, end int64 }

// spans are runs of blocks in order that neither touch nor overlap.
type spans []span

// normal sorts spans and joins those that touch or overlap.
func normal(s spans) spans {
	slices.SortFunc(s, func(a, b span) int {
		switch {
		case a.first < b.first:
			return -1
		case a.first > b.first:
			return 1
		}
		return 0
	})
	out := s[:0]
	for _, x := range s {
		switch n := len(out); {
		case x.first >= x.end:
		case n > 0 && x.first <= out[n-1].end:
			out[n-1].end = max(out[n-1].end, x.end)
		default:
			out = append(out, x)
		}
	}
	return out
}

// search returns the index of the first span that ends after a block.
func (s spans) search(block int64) int {
	i, _ := slices.BinarySearchFunc(s, block, func(x span, block int64) int {
		if x.end <= block {
			return -1
		}
		return 1
	})
	return i
}

// next returns the first block at or after block that is in s.
func (s spans) next(block int64) (int64, bool) {
	if i := s.search(block); i < len(s) {
		return max(block, s[i].first), true
	}
	return 0, false
}

// nextOut returns the first block at or after block that is not in s.
func (s spans) nextOut(block int64) int64 {
	if i := s.search(block); i < len(s) && s[i].first <= block {
		return s[i].end
	}
	return block
}

// mask returns which blocks of a leaf are in s.
func (s spans) mask(leaf int64) mask {
	var m mask
	base := leaf * manifest.LeafBlocks
	for i := s.search(base); i < len(s) && s[i].first < base+manifest.LeafBlocks; i++ {
		m = m.or(bitRange(int(max(s[i].first-base, 0)), int(min(s[i].end-base, manifest.LeafBlocks))))
	}
	return m
}

// blocks returns the number of blocks in s.
func (s spans) blocks() int64 {
	var n int64
	for _, x := range s {
		n += x.end - x.first
	}
	return n
}

// touched returns the blocks that extents with a bit of state touch.
func touched(g blockmap.Geometry, exts []blockmap.Extent, state blockmap.State) spans {
	var s spans
	for _, e := range exts {
		if e.State&state == 0 {
			continue
		}
		off := max(e.Offset, 0)
		first, n := g.Span(off, e.Length-(off-e.Offset))
		s = append(s, span{first, first + n})
	}
	return normal(s)
}

// within returns the blocks that extents with a bit of state cover wholly.
func within(g blockmap.Geometry, exts []blockmap.Extent, state blockmap.State) spans {
	// In bytes first: a block may lie across extents that touch.
	var s spans
	for _, e := range exts {
		if e.State&state != 0 {
			s = append(s, span{max(e.Offset, 0), min(e.End(), g.Size)})
		}
	}
	s = normal(s)
	for i, x := range s {
		s[i].first = g.Block(x.first + int64(g.BlockSize) - 1)
		if s[i].end = g.Block(x.end); x.end == g.Size {
			s[i].end = g.Blocks()
		}
	}
	return normal(s)
}
