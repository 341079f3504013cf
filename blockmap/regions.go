package blockmap

import (
	"slices"
	"sync/atomic"
)

// regions knows which regions are hot: writes there need no I/O, because a
// durable record of the activity log names the region, or because all its bits
// are durable ("full"), or because nobody asks (idle). Two bits each, read
// without a lock by every write: hot, and whether it was used lately.
type regions struct {
	states []uint64 // 32 regions each; changed atomically
	n      int64

	// What the newest record names, in ascending order: at most max. Guarded
	// by the tracker's io mutex, as is the rest.
	logged []int64
	max    int
	hand   int64 // where the search for a region to drop goes on
	runs   [4]run
	oldest int     // of runs, the next to be replaced
	warm   []int64 // were in use before the last checkpoint
}

const (
	regionHot  = 1
	regionUsed = 2

	maxAhead = 16
	maxWarm  = 256
)

// run is a sequence of regions that turned hot one after the other.
type run struct{ next, ahead int64 }

func newRegions(n int64, most int) *regions {
	return &regions{states: make([]uint64, (n+31)/32), n: n, max: most}
}

// hotAndUsed is the path of every write: whether nothing is to be done.
func (r *regions) hotAndUsed(i int64) bool {
	return atomic.LoadUint64(&r.states[i>>5])>>(uint(i&31)*2)&3 == regionHot|regionUsed
}

func (r *regions) get(i int64) uint64 {
	return atomic.LoadUint64(&r.states[i>>5]) >> (uint(i&31) * 2) & 3
}

func (r *regions) hot(i int64) bool { return r.get(i)&regionHot != 0 }

func (r *regions) set(i int64, state uint64) {
	atomic.OrUint64(&r.states[i>>5], state<<(uint(i&31)*2))
}

func (r *regions) unset(i int64, state uint64) {
	atomic.AndUint64(&r.states[i>>5], ^(state << (uint(i&31) * 2)))
}

// setAll makes every region hot, or none.
func (r *regions) setAll(hot bool) {
	v := uint64(0)
	if hot {
		v = ^v
	}
	for i := range r.states {
		atomic.StoreUint64(&r.states[i], v)
	}
}

// resize changes the number of regions. Those that go keep their states, because
// the log may still name them. Nobody else uses r meanwhile.
func (r *regions) resize(n int64) {
	if more := (n+31)/32 - int64(len(r.states)); more > 0 {
		r.states = append(r.states, make([]uint64, more)...)
	}
	r.n = n
}

// with returns what a record that adds regions names.
func (r *regions) with(added []int64) []int64 {
	out := slices.Concat(r.logged, added)
	slices.Sort(out)
	return slices.Compact(out)
}

// foresee returns regions that are likely to be written next: those after a
// sequential run that the cold regions continue, and once after a checkpoint
// those in use before it.
func (r *regions) foresee(cold []int64) []int64 {
	var out []int64
	add := func(i int64) {
		if i < r.n && !r.hot(i) {
			out = append(out, i)
		}
	}
	limit := min(maxAhead, int64(r.max)/64)
	for _, c := range cold {
		k := slices.IndexFunc(r.runs[:], func(s run) bool { return s.next == c })
		if k < 0 {
			r.runs[r.oldest] = run{next: c + 1}
			r.oldest = (r.oldest + 1) % len(r.runs)
			continue
		}
		s := &r.runs[k]
		s.ahead = min(max(2*s.ahead, 1), limit)
		s.next = c + 1 + s.ahead
		for i := c + 1; i < s.next; i++ {
			add(i)
		}
	}
	for _, i := range r.warm {
		add(i)
	}
	r.warm = nil
	return out
}

// keepWarm remembers regions in use for foresee.
func (r *regions) keepWarm() {
	r.warm = r.warm[:0]
	for _, i := range r.logged {
		if r.get(i) == regionHot|regionUsed && len(r.warm) < min(maxWarm, r.max/4) {
			r.warm = append(r.warm, i)
		}
	}
}

// choose picks at least k logged regions to drop, first those that were not
// used since the search last came by. It forgets that the others were.
func (r *regions) choose(k int) []int64 {
	if k >= len(r.logged) {
		return slices.Clone(r.logged)
	}
	start, _ := slices.BinarySearch(r.logged, r.hand)
	picked := make(map[int64]bool, k)
	for step := 0; len(picked) < k && step < 3*len(r.logged); step++ {
		i := r.logged[(start+step)%len(r.logged)]
		switch {
		case picked[i]:
		case r.get(i)&regionUsed != 0 && step < 2*len(r.logged):
			r.unset(i, regionUsed)
		default:
			picked[i] = true
		}
		r.hand = i + 1
	}
	var out []int64
	for _, i := range r.logged {
		if picked[i] {
			out = append(out, i)
		}
	}
	return out
}
