package blockmap

import (
	"iter"
	"math/bits"
	"slices"
)

// Bitmap holds one bit for each block of a volume: 2 MiB for 1 TiB in blocks of
// 64 KiB. It is not safe for concurrent use while somebody changes it.
type Bitmap struct {
	n     int64
	words []uint64 // bits from n on are clear
}

// NewBitmap returns a bitmap of n clear bits.
func NewBitmap(n int64) *Bitmap {
	n = max(n, 0)
	return &Bitmap{n: n, words: make([]uint64, (n+63)>>6)}
}

// Len returns the number of bits.
func (b *Bitmap) Len() int64 { return b.n }

// clip cuts a run of count bits at first to those that there are, end
// exclusive.
func (b *Bitmap) clip(first, count int64) (start, end int64) {
	if count <= 0 || first >= b.n {
		return 0, 0
	}
	end = b.n
	if count < b.n-first {
		end = first + count
	}
	return min(max(first, 0), max(end, 0)), max(end, 0)
}

// wordMask returns the bits of word w that lie in [start, end).
func wordMask(w, start, end int64) uint64 {
	mask := ^uint64(0)
	if lo := start - w<<6; lo > 0 {
		mask <<= uint(lo)
	}
	if hi := (w+1)<<6 - end; hi > 0 {
		mask &= ^uint64(0) >> uint(hi)
	}
	return mask
}

// Set sets count bits from first on; those outside the bitmap are left out.
func (b *Bitmap) Set(first, count int64) {
	start, end := b.clip(first, count)
	if start >= end {
		return
	}
	for w := start >> 6; w <= (end-1)>>6; w++ {
		b.words[w] |= wordMask(w, start, end)
	}
}

// Clear clears count bits from first on.
func (b *Bitmap) Clear(first, count int64) {
	start, end := b.clip(first, count)
	if start >= end {
		return
	}
	for w := start >> 6; w <= (end-1)>>6; w++ {
		b.words[w] &^= wordMask(w, start, end)
	}
}

// Test returns bit i, false outside the bitmap.
func (b *Bitmap) Test(i int64) bool {
	return i >= 0 && i < b.n && b.words[i>>6]&(1<<(i&63)) != 0
}

// Or sets the bits that are set in o, which may be shorter or longer; bits that
// b does not have are left out.
func (b *Bitmap) Or(o *Bitmap) {
	k := min(len(b.words), len(o.words))
	for i, w := range o.words[:k] {
		b.words[i] |= w
	}
	if k > 0 && k == len(b.words) {
		b.words[k-1] &= wordMask(int64(k-1), 0, b.n)
	}
}

// Count returns the number of bits that are set.
func (b *Bitmap) Count() int64 {
	n := 0
	for _, w := range b.words {
		n += bits.OnesCount64(w)
	}
	return int64(n)
}

// Clone returns a copy.
func (b *Bitmap) Clone() *Bitmap { return &Bitmap{n: b.n, words: slices.Clone(b.words)} }

// Next returns the first bit from i on whose value is v, or end, if it is not
// below that. It looks no farther than end, and not beyond Len.
func (b *Bitmap) Next(i, end int64, v bool) int64 {
	end = min(end, b.n)
	if i >= end {
		return end
	}
	flip := ^uint64(0)
	if v {
		flip = 0
	}
	w, last := i>>6, (end-1)>>6
	word := (b.words[w] ^ flip) &^ (1<<(i&63) - 1)
	for word == 0 {
		if w++; w > last {
			return end
		}
		word = b.words[w] ^ flip
	}
	return min(w<<6+int64(bits.TrailingZeros64(word)), end)
}

// Runs yields the first bit and the length of each run of set bits, in order.
func (b *Bitmap) Runs() iter.Seq2[int64, int64] {
	return func(yield func(first, count int64) bool) {
		for i := b.Next(0, b.n, true); i < b.n; {
			end := b.Next(i, b.n, false)
			if !yield(i, end-i) {
				return
			}
			i = b.Next(end, b.n, true)
		}
	}
}

// Extents returns the set bits as extents of state Dirty in bytes of g, cut at
// its end. Clean stretches are left out: [Fill] adds them.
func (b *Bitmap) Extents(g Geometry) []Extent {
	var out []Extent
	blocks := g.Blocks()
	for first, count := range b.Runs() {
		if first >= blocks {
			break
		}
		off := g.Offset(first)
		out = append(out, Extent{Offset: off, Length: min(g.Offset(min(first+count, blocks)), g.Size) - off, State: Dirty})
	}
	return out
}
