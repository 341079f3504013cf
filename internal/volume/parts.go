package volume

import (
	"errors"
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cairnbackup/cairn/blockmap"
)

// Of a block that only temporary snapshots need, a small write has the pages saved
// that it touches: with a preimage of the whole block it takes five times as long, and a
// guest waits for it.
const (
	pageSize   = 4096
	blockPages = blockmap.DefaultBlockSize / pageSize
	allPages   = pageSet(1<<blockPages - 1)

	// maxPartChunks bounds the memory of the parts of all volumes: 2^17 of them, of 80
	// bytes. Whoever writes to further blocks saves them whole; a merge, behind which as
	// many go as come, does not stop there.
	maxPartChunks = 1 << 9
	partChunk     = 1 << 8
)

// partChunks is how many chunks of parts there are in the process.
var partChunks atomic.Int64

// errPartKept is a mistake in this package: where single pages are saved, every
// persistent snapshot that wants the block has it from an older epoch.
var errPartKept = errors.New("a persistent snapshot needs a block of which single pages were saved")

// pageSet is a set of the pages of one block.
type pageSet uint16

// pagesOf is the pages of block b that n bytes at off touch.
func pagesOf(off, n, b int64) pageSet {
	start := max(off-b*blockmap.DefaultBlockSize, 0)
	end := min(off+n-b*blockmap.DefaultBlockSize, blockmap.DefaultBlockSize)
	if start >= end {
		return 0
	}
	return pageRun(int(start/pageSize), int((end+pageSize-1)/pageSize))
}

// pageRun is the pages from first up to, not including, end.
func pageRun(first, end int) pageSet { return pageSet(1<<end-1) &^ pageSet(1<<first-1) }

// first is the first page and the end of the run that it begins. The set is not empty.
func (p pageSet) first() (first, end int) {
	first = bits.TrailingZeros16(uint16(p))
	return first, first + bits.TrailingZeros16(^uint16(p>>first))
}

// large tells whether to save the whole block is less work.
func (p pageSet) large() bool { return bits.OnesCount16(uint16(p)) > blockPages/2 }

// part is what an epoch knows of a block of which it saves single pages. Each page is
// claimed by one writer, who then settles it.
type part struct {
	state  atomic.Uint64      // three sets of pages, each within the one before: claimed, settled, saved
	sector [blockPages]uint32 // of a saved page: where its record is in the temporary log
	run    atomic.Int32       // see follows
}

// Where the sets begin in the state.
const (
	claimedShift = iota * blockPages
	settledShift
	savedShift
)

func pagesIn(state uint64, shift int) pageSet { return pageSet(state >> shift & uint64(allPages)) }

// settled is the pages that may be overwritten.
func (p *part) settled() pageSet { return pagesIn(p.state.Load(), settledShift) }

// saved is the pages that have a record; its sector may be read then.
func (p *part) saved() pageSet { return pagesIn(p.state.Load(), savedShift) }

// copying tells whether any of the pages is claimed and not settled.
func (p *part) copying(pages pageSet) bool {
	s := p.state.Load()
	return pagesIn(s, claimedShift)&^pagesIn(s, settledShift)&pages != 0
}

// claim claims those of the pages that nobody has claimed, and returns them.
func (p *part) claim(pages pageSet) pageSet {
	for {
		s := p.state.Load()
		mine := pages &^ pagesIn(s, claimedShift)
		if mine == 0 || p.state.CompareAndSwap(s, s|uint64(mine)) {
			return mine
		}
	}
}

// follows notes that the pages are being saved, and tells whether they are the third in
// a row that begins where the one before ended.
func (p *part) follows(pages pageSet) bool {
	first, end := pages.first()
	was := int(p.run.Load()) // twice the page that would follow, 1 more if that is the third
	third := 0
	if first > 0 && was>>1 == first {
		third = 1
	}
	p.run.Store(int32(end<<1 | third)) //nolint:gosec // at most twice blockPages and 1
	return third&was == 1
}

// giveBack ends a claim with nothing done.
func (p *part) giveBack(pages pageSet) { p.state.And(^uint64(pages)) }

// skip settles pages that nobody needs.
func (p *part) skip(pages pageSet) {
	p.state.Or(uint64(pages) | uint64(pages)<<settledShift)
}

// save settles pages whose record is at a sector.
func (p *part) save(pages pageSet, sector uint32) {
	for rest := pages; rest != 0; rest &= rest - 1 {
		p.sector[bits.TrailingZeros16(uint16(rest))] = sector
	}
	p.state.Or(uint64(pages) | uint64(pages)<<settledShift | uint64(pages)<<savedShift)
}

// parts holds the parts of an epoch, by number. They are only ever added, and go with it.
type parts struct {
	mu     sync.Mutex
	n      uint32
	chunks atomic.Pointer[[]*[partChunk]part]
}

// at is the part of a number that add gave.
func (t *parts) at(number uint32) *part {
	return &(*t.chunks.Load())[number/partChunk][number%partChunk]
}

// add makes a part.
func (t *parts) add() (number uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n%partChunk == 0 {
		var chunks []*[partChunk]part
		if l := t.chunks.Load(); l != nil {
			chunks = append(chunks, *l...)
		}
		chunk := new([partChunk]part)
		partChunks.Add(1)
		runtime.AddCleanup(chunk, func(n int64) { partChunks.Add(n) }, -1)
		chunks = append(chunks, chunk)
		t.chunks.Store(&chunks)
	}
	t.n++
	return t.n - 1
}
