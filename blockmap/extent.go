package blockmap

import "slices"

// State tells what an extent is. The values are those of NBD's metadata
// contexts, so that they go over the wire as they are.
type State uint32

// States of base:allocation. They are bits: a hole is Hole|Zero, and Zero alone
// is allocated space that reads as zeros.
const (
	Data State = 0
	Hole State = 1
	Zero State = 2
)

// States of a dirty bitmap.
const (
	Clean State = 0
	Dirty State = 1
)

// States of an allocation depth, as qemu counts the layers that it reads through.
const (
	Nowhere State = 0 // a hole in all of them
	Top     State = 1 // in what is exported itself
	Beneath State = 2 // in the next one; deeper ones follow
)

// Extent is a run of bytes in one state.
//
// The functions below take and return extents that are sorted by offset, do
// not overlap and are not empty. All but [Append] leave their arguments alone.
type Extent struct {
	Offset, Length int64
	State          State
}

// End returns the offset after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Append adds e after the last of exts, which grows instead when e continues it
// in the same state. An empty e adds nothing.
func Append(exts []Extent, e Extent) []Extent {
	if e.Length <= 0 {
		return exts
	}
	if n := len(exts); n > 0 && exts[n-1].State == e.State && exts[n-1].End() == e.Offset {
		exts[n-1].Length += e.Length
		return exts
	}
	return append(exts, e)
}

// Merge joins neighbors that touch and have the same state.
func Merge(exts []Extent) []Extent {
	var out []Extent
	for _, e := range exts {
		out = Append(out, e)
	}
	return out
}

// Clip returns what of exts lies in the n bytes at off.
func Clip(exts []Extent, off, n int64) []Extent {
	var out []Extent
	for _, e := range exts[searchExtent(exts, off):] {
		start, end := max(e.Offset, off), min(e.End(), off+n)
		if start >= end {
			break
		}
		out = append(out, Extent{Offset: start, Length: end - start, State: e.State})
	}
	return out
}

// searchExtent returns the index of the first extent that ends after off.
func searchExtent(exts []Extent, off int64) int {
	i, _ := slices.BinarySearchFunc(exts, off, func(e Extent, off int64) int {
		if e.End() <= off {
			return -1
		}
		return 1
	})
	return i
}

// Overlay returns base with over laid on it: where both have an extent the
// state is over's. Neighbors of one state are joined.
func Overlay(base, over []Extent) []Extent {
	var out []Extent
	pos := int64(0)
	for _, o := range over {
		for _, b := range Clip(base, pos, o.Offset-pos) {
			out = Append(out, b)
		}
		out = Append(out, o)
		pos = o.End()
	}
	if n := len(base); n > 0 {
		for _, b := range Clip(base, pos, base[n-1].End()-pos) {
			out = Append(out, b)
		}
	}
	return out
}

// Total returns the number of bytes that exts cover.
func Total(exts []Extent) int64 {
	var n int64
	for _, e := range exts {
		n += e.Length
	}
	return n
}
