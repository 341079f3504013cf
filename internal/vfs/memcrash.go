package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// Crash turns the power off and returns the file system as it is found
// afterwards. What was synced is there. Of the rest r decides: each sector of a
// file, each size and each operation on a directory's entries survives or not,
// whatever came before or after it, and so do the parts of operations under way.
// Locks and open files are gone.
//
// Every later operation on m fails with [ErrCrashed]; only Crash may be called
// again, to see what else could have been left.
func (m *Mem) Crash(r *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.crashed {
		for _, f := range m.flights {
			_ = f.apply() // An operation that is refused changes nothing.
		}
		m.flights = nil
		m.crashed = true
	}
	c := &crash{r: r, nodes: map[*memNode]*memNode{}, fates: map[*fate]bool{}}
	return &Mem{
		root: c.node(m.root),
		rng:  rand.New(rand.NewPCG(r.Uint64(), r.Uint64())), //nolint:gosec // Tests want it repeatable.
		now:  m.now,
	}
}

// crash copies what survives.
type crash struct {
	r     *rand.Rand
	nodes map[*memNode]*memNode // files may have several names
	fates map[*fate]bool
}

func (c *crash) survives(f *fate) bool {
	s, ok := c.fates[f]
	if !ok {
		s = c.r.Uint32()%2 == 0
		c.fates[f] = s
	}
	return s
}

func (c *crash) node(n *memNode) *memNode {
	if k := c.nodes[n]; k != nil {
		return k
	}
	k := &memNode{dir: n.dir, perm: n.perm, mtime: n.mtime}
	c.nodes[n] = k
	if !n.dir {
		k.data = c.data(&n.data)
		return k
	}
	entries := maps.Clone(n.durable)
	for _, o := range n.pending {
		if c.survives(o.fate) {
			o.apply(entries)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		entries[name] = c.node(entries[name])
	}
	k.durable, k.entries = entries, maps.Clone(entries)
	return k
}

func (c *crash) data(d *memData) memData {
	out := memData{size: d.size, pages: maps.Clone(d.pages)}
	if c.r.Uint32()%2 == 0 {
		out.size = d.diskSize
	}
	out.diskSize = out.size
	for _, p := range d.pages {
		if !p.shared {
			p.shared = true
		}
	}
	for _, page := range slices.Sorted(maps.Keys(d.disk)) {
		q := d.disk[page]
		old := q.lost | q.dirty&uint8(c.r.Uint32()) //nolint:gosec // Eight random bits.
		if old == 0 {
			continue
		}
		if p := pick(d.pages[page], q.p, old); p != nil {
			if out.pages == nil {
				out.pages = map[int64]*memPage{}
			}
			out.pages[page] = p
		} else {
			delete(out.pages, page)
		}
	}
	out.cut()
	return out
}

// pick returns a page with the sectors in mask of b and the others of a.
func pick(a, b *memPage, mask uint8) *memPage {
	if a == b || a == nil && b == nil {
		return a
	}
	out := new(memPage)
	for s := range memPageSize / memSectorSize {
		src := a
		if mask&(1<<s) != 0 {
			src = b
		}
		if src != nil {
			copy(out.b[s*memSectorSize:(s+1)*memSectorSize], src.b[s*memSectorSize:])
		}
	}
	return out
}

// cut drops what lies beyond the size.
func (d *memData) cut() {
	maps.DeleteFunc(d.pages, func(page int64, _ *memPage) bool { return page*memPageSize >= d.size })
	page, in := d.size/memPageSize, d.size%memPageSize
	if p := d.pages[page]; p != nil && in > 0 {
		p = own(p)
		clear(p.b[in:])
		d.pages[page] = p
	}
}
