package nbd

import "slices"

// maxSpans bounds how scattered the parts of one read may arrive.
const maxSpans = 4096

// coverage is which bytes of a read have arrived: sorted spans that do not
// touch. Servers send parts in order almost always, so that it is one span.
type coverage []span

type span struct{ start, end int64 }

// add notes [start, end) and reports whether it is new in every byte and not
// one piece of litter too many.
func (c *coverage) add(start, end int64) bool {
	s := *c
	i, found := slices.BinarySearchFunc(s, start, func(x span, at int64) int { return int(min(max(x.start-at, -1), 1)) })
	if found || i > 0 && s[i-1].end > start || i < len(s) && s[i].start < end {
		return false
	}
	left := i > 0 && s[i-1].end == start
	right := i < len(s) && s[i].start == end
	switch {
	case left && right:
		s[i-1].end = s[i].end
		s = slices.Delete(s, i, i+1)
	case left:
		s[i-1].end = end
	case right:
		s[i].start = start
	default:
		s = slices.Insert(s, i, span{start, end})
	}
	*c = s
	return len(s) <= maxSpans
}

// whole reports whether exactly the first n bytes have arrived.
func (c *coverage) whole(n int64) bool {
	s := *c
	return n == 0 && len(s) == 0 || len(s) == 1 && s[0] == span{0, n}
}
