package volume

import "sync/atomic"

// index says for every block of one epoch whether its preimage is saved, and
// where. It is read without locks; a cell is claimed by compare-and-swap and
// then written by the claimer alone.
//
// Values of a cell:
//
//	cellAbsent   nobody wrote to the block in this epoch
//	cellCopying  a writer claimed the block; others wait until it is done
//	cellSkipped  the block may be overwritten, no snapshot needs its preimage
//	other        saved: sector of the record in the log; cellTemp = in the temporary log
//	cellPart     with cellTemp: pages of it may be saved, the rest is the part's number
type index struct {
	blocks int64
	pages  []atomic.Pointer[indexPage]
	parts  parts
}

type indexPage [indexPageLen]atomic.Uint32

const (
	indexPageLen = 512

	cellAbsent  = 0
	cellCopying = 1
	cellSkipped = 2
	cellFirst   = logHeaderSize / sectorSize // records begin here
	cellTemp    = 1 << 31
	cellPart    = 1 << 30
	cellMask    = cellTemp - 1
)

func newIndex(blocks int64) *index {
	return &index{blocks: blocks, pages: make([]atomic.Pointer[indexPage], (blocks+indexPageLen-1)/indexPageLen)}
}

// load returns the cell of a block; blocks beyond the epoch's end are absent.
func (x *index) load(b int64) uint32 {
	if b >= x.blocks {
		return cellAbsent
	}
	p := x.pages[b/indexPageLen].Load()
	if p == nil {
		return cellAbsent
	}
	return p[b%indexPageLen].Load()
}

// touched is the first block from b up to end of which load may say more than
// absent, end if there is none: b itself where its page is there, else the
// first of the next page that is.
func (x *index) touched(b, end int64) int64 {
	for at := b; at < min(end, x.blocks); at = (at/indexPageLen + 1) * indexPageLen {
		if x.pages[at/indexPageLen].Load() != nil {
			return at
		}
	}
	return end
}

// cell returns the cell of a block below x.blocks for changing it.
func (x *index) cell(b int64) *atomic.Uint32 {
	page := &x.pages[b/indexPageLen]
	p := page.Load()
	for p == nil {
		page.CompareAndSwap(nil, new(indexPage))
		p = page.Load()
	}
	return &p[b%indexPageLen]
}

// saved calls f with every saved block in ascending order, until f returns false.
func (x *index) saved(f func(b int64, c uint32) bool) {
	x.each(func(b int64, c uint32) bool { return !isSaved(c) || f(b, c) })
}

// each is saved for all blocks that are not absent.
func (x *index) each(f func(b int64, c uint32) bool) {
	for i := range x.pages {
		p := x.pages[i].Load()
		if p == nil {
			continue
		}
		for j := range p {
			if c := p[j].Load(); c != cellAbsent && !f(int64(i)*indexPageLen+int64(j), c) {
				return
			}
		}
	}
}

func isSaved(c uint32) bool { return c&cellMask >= cellFirst }

func isPart(c uint32) bool { return c&(cellTemp|cellPart) == cellTemp|cellPart }

// part is the part that a cell names.
func (x *index) part(c uint32) *part { return x.parts.at(c &^ (cellTemp | cellPart)) }

// addPart makes a part and the cell that names it.
func (x *index) addPart() (cell uint32) { return x.parts.add() | cellTemp | cellPart }

// savedPages is the pages that a cell says are saved.
func (x *index) savedPages(c uint32) pageSet {
	switch {
	case isPart(c):
		return x.part(c).saved()
	case isSaved(c):
		return allPages
	}
	return 0
}

// settled tells whether pages of a block may be overwritten.
func (x *index) settled(b int64, pages pageSet) bool {
	c := x.load(b)
	return c > cellCopying && (!isPart(c) || pages&^x.part(c).settled() == 0)
}
