package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

const (
	memPageSize   = 4096
	memSectorSize = 512
)

// memPage is a page of a file. A shared one belongs to several files or file
// systems and is copied before it is changed.
type memPage struct {
	b      [memPageSize]byte
	shared bool
}

// own returns a page with the content of p that may be changed.
func own(p *memPage) *memPage {
	switch {
	case p == nil:
		return new(memPage)
	case p.shared:
		return &memPage{b: p.b}
	}
	return p
}

// diskPage is what the disk has of a page whose newest content it lacks. Its
// sectors count where a bit of a mask is set; the others are as in the cache.
type diskPage struct {
	p     *memPage // nil = zeros
	dirty uint8    // sectors that the next sync will write
	lost  uint8    // sectors that a failed sync has given up
}

// memData is the content of a file: pages as everybody sees them (absent ones
// are holes), and for pages that differ on disk what is there.
type memData struct {
	size, diskSize int64
	pages          map[int64]*memPage
	disk           map[int64]*diskPage
}

func (d *memData) read(p []byte, off int64) int {
	n := int(min(int64(len(p)), max(d.size-off, 0)))
	for pos := 0; pos < n; {
		page, in := (off+int64(pos))/memPageSize, int((off+int64(pos))%memPageSize)
		k := min(n-pos, memPageSize-in)
		if q := d.pages[page]; q != nil {
			copy(p[pos:pos+k], q.b[in:])
		} else {
			clear(p[pos : pos+k])
		}
		pos += k
	}
	return n
}

// sectors returns the mask of those that n bytes from in touch.
func sectors(in, n int) uint8 {
	first, last := in/memSectorSize, (in+n-1)/memSectorSize
	return uint8((1<<(last+1) - 1) &^ (1<<first - 1))
}

// dirty notes that sectors of a page are about to change. An older content of
// theirs that waits for a sync may reach the disk before the new one.
func (d *memData) dirty(page int64, mask uint8, rng *rand.Rand) {
	q := d.disk[page]
	if q == nil {
		if d.disk == nil {
			d.disk = map[int64]*diskPage{}
		}
		q = &diskPage{p: d.pages[page]}
		if q.p != nil {
			q.p.shared = true
		}
		d.disk[page] = q
	}
	if again := q.dirty & mask; again != 0 && rng.Uint32()%4 == 0 {
		d.copySectors(page, again)
	}
	// A sector that joins the masks leaves the common content: the disk's
	// copy must hold what the cache has now.
	d.copySectors(page, mask&^(q.dirty|q.lost))
	q.dirty |= mask
	q.lost &^= mask
}

// copySectors copies sectors of the cache to the disk's page.
func (d *memData) copySectors(page int64, mask uint8) {
	q := d.disk[page]
	src := d.pages[page]
	if mask == 0 || q.p == src {
		return
	}
	q.p = own(q.p)
	for s := range memPageSize / memSectorSize {
		if mask&(1<<s) == 0 {
			continue
		}
		dst := q.p.b[s*memSectorSize : (s+1)*memSectorSize]
		if src == nil {
			clear(dst)
		} else {
			copy(dst, src.b[s*memSectorSize:])
		}
	}
}

// writeBack makes sectors durable as they are in the cache, but for those that
// are lost.
func (d *memData) writeBack(page int64, mask uint8) {
	q := d.disk[page]
	if q == nil {
		return
	}
	d.copySectors(page, mask&q.dirty)
	q.dirty &^= mask
	if q.dirty|q.lost == 0 {
		delete(d.disk, page)
	}
}

// write changes the bytes at off and grows the file; p nil writes n zeros.
func (d *memData) write(p []byte, off, n int64, rng *rand.Rand) {
	d.put(p, off, n, rng)
	if off+n > d.size {
		d.resize(off+n, rng)
	}
}

// put changes the bytes at off whatever the size.
func (d *memData) put(p []byte, off, n int64, rng *rand.Rand) {
	for pos := int64(0); pos < n; {
		page, in := (off+pos)/memPageSize, int((off+pos)%memPageSize)
		k := int(min(n-pos, int64(memPageSize-in)))
		d.dirty(page, sectors(in, k), rng)
		q := own(d.pages[page])
		if p == nil {
			clear(q.b[in : in+k])
		} else {
			copy(q.b[in:in+k], p[pos:])
		}
		if d.pages == nil {
			d.pages = map[int64]*memPage{}
		}
		d.pages[page] = q
		pos += int64(k)
	}
}

// resize changes the size alone; earlier sizes may reach the disk first.
func (d *memData) resize(size int64, rng *rand.Rand) {
	if rng.Uint32()%4 == 0 {
		d.diskSize = d.size
	}
	d.size = size
}

// punch makes holes of the pages that lie within the n bytes at off, and writes
// zeros to the parts of pages at its ends.
func (d *memData) punch(off, n int64, rng *rand.Rand) {
	end := off + n
	first, last := (off+memPageSize-1)/memPageSize, end/memPageSize
	if first > last { // Within a page.
		d.clear(off, n, rng)
		return
	}
	d.clear(off, first*memPageSize-off, rng)
	d.clear(last*memPageSize, end-last*memPageSize, rng)
	for _, page := range d.between(first, last) {
		d.dirty(page, 0xff, rng)
		delete(d.pages, page)
	}
}

// clear writes zeros to n bytes of one page, unless it is a hole.
func (d *memData) clear(off, n int64, rng *rand.Rand) {
	if n > 0 && d.pages[off/memPageSize] != nil {
		d.put(nil, off, n, rng)
	}
}

// between returns the pages that are not holes, from first to before last.
func (d *memData) between(first, last int64) []int64 {
	var out []int64
	if last-first < int64(len(d.pages)) {
		for page := first; page < last; page++ {
			if d.pages[page] != nil {
				out = append(out, page)
			}
		}
		return out
	}
	for page := range d.pages {
		if page >= first && page < last {
			out = append(out, page)
		}
	}
	slices.Sort(out)
	return out
}

// truncate sets the size; what lies beyond is gone.
func (d *memData) truncate(size int64, rng *rand.Rand) {
	if size < d.size {
		end := (d.size + memPageSize - 1) / memPageSize * memPageSize
		d.punch(size, end-size, rng)
	}
	d.resize(size, rng)
}

// nextData finds the first run of pages that are not holes.
func (d *memData) nextData(off int64) (start, end int64, ok bool) {
	if off < 0 || off >= d.size {
		return 0, 0, false
	}
	first := d.nextPage(off/memPageSize, (d.size+memPageSize-1)/memPageSize)
	if first < 0 {
		return 0, 0, false
	}
	next := first + 1
	for next*memPageSize < d.size && d.pages[next] != nil {
		next++
	}
	return max(off, first*memPageSize), min(d.size, next*memPageSize), true
}

// nextPage returns the first page that is not a hole, from first to before
// last, or -1.
func (d *memData) nextPage(first, last int64) int64 {
	const near = 4096
	for page := first; page < min(last, first+near); page++ {
		if d.pages[page] != nil {
			return page
		}
	}
	found := int64(-1)
	for page := range d.pages {
		if page >= first+near && page < last && (found < 0 || page < found) {
			found = page
		}
	}
	return found
}

// sync makes everything durable that was not given up.
func (d *memData) sync() {
	for page, q := range d.disk {
		d.writeBack(page, q.dirty)
	}
	d.diskSize = d.size
}

// failSync leaves each sector durable or given up.
func (d *memData) failSync(rng *rand.Rand) {
	for _, page := range slices.Sorted(maps.Keys(d.disk)) {
		q := d.disk[page]
		keep := uint8(rng.Uint32()) //nolint:gosec // Eight random bits.
		q.lost |= q.dirty &^ keep
		q.dirty &= keep
		d.writeBack(page, q.dirty)
	}
}
