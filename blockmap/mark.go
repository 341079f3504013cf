package blockmap

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// How a mark and the dropping of a region from the activity log agree without a
// lock: a mark sets its bits first and looks whether the region is hot after
// that; who drops a region makes it cold first and reads the bits after that.
// So either the bits are seen and become durable before the record that drops
// the region, or the mark finds the region cold and waits for a new record.

// batch is a set of marks that wait for one record.
type batch struct {
	regions []int64
	done    chan struct{}
	err     error
}

// Mark notes that the n bytes at off are about to be written, trimmed or
// zeroed. The change may be issued when Mark has returned nil: a bit or an
// activity record that covers it is durable then. After an error nothing of it
// may be issued.
//
// In a hot region Mark takes no lock, does no I/O and allocates nothing. A cold
// region waits for one synchronous write, which all marks share that come while
// another is under way. It is safe for concurrent use, except with
// AddCheckpoint, Resize and Close.
func (t *Tracker) Mark(off, n int64) error {
	if off < 0 || n <= 0 || off > t.size-n {
		return t.markEdge(off, n)
	}
	first, last := off>>t.blockShift, (off+n-1)>>t.blockShift
	if w := first >> 6; w == last>>6 {
		mask := ^uint64(0) << (first & 63) & (^uint64(0) >> (63 - last&63))
		if p := &t.words[w]; atomic.LoadUint64(p)&mask != mask {
			atomic.OrUint64(p, mask)
		}
	} else {
		setAtomic(t.words, first, last+1)
	}
	r := off >> t.regionShift
	if r == (off+n-1)>>t.regionShift && t.regions.hotAndUsed(r) {
		return nil
	}
	return t.markRegions(off, n)
}

func (t *Tracker) markEdge(off, n int64) error {
	if n == 0 && off >= 0 && off <= t.size {
		return nil
	}
	return fmt.Errorf("mark %d bytes at %d of a volume of %d bytes: %w", n, off, t.size, errRange)
}

var errRange = errors.New("outside the volume")

// setAtomic sets the bits from start to before end.
func setAtomic(words []uint64, start, end int64) {
	for w := start >> 6; w <= (end-1)>>6; w++ {
		mask := wordMask(w, start, end)
		if p := &words[w]; atomic.LoadUint64(p)&mask != mask {
			atomic.OrUint64(p, mask)
		}
	}
}

// markRegions sees to it that all regions of a range are hot, or its bits
// durable. The bits are set already.
func (t *Tracker) markRegions(off, n int64) error {
	var cold []int64
	for r := off >> t.regionShift; r <= (off+n-1)>>t.regionShift; r++ {
		switch t.regions.get(r) {
		case regionHot | regionUsed:
		case regionHot:
			t.regions.set(r, regionUsed)
		default:
			cold = append(cold, r)
		}
	}
	if len(cold) == 0 {
		return nil
	}
	t.stats.coldMarks.Add(1)
	if len(cold) > max(t.hotMax/4, 1) {
		// A large trim or zeroing: its bits themselves, instead of a log
		// of more regions than may be hot.
		return t.markDurably(off, n)
	}
	t.queue.Lock()
	b := t.next
	lead := b == nil
	if lead {
		b = &batch{done: make(chan struct{})}
		t.next = b
	}
	b.regions = append(b.regions, cold...)
	t.queue.Unlock()
	if !lead {
		<-b.done
		return b.err
	}
	t.io.Lock()
	t.queue.Lock()
	t.next = nil
	t.queue.Unlock()
	b.err = t.heat(b.regions)
	t.io.Unlock()
	close(b.done)
	return b.err
}

// heat makes regions hot. The io mutex is held.
func (t *Tracker) heat(wanted []int64) error {
	slices.Sort(wanted)
	for part := range slices.Chunk(slices.Compact(wanted), max(t.hotMax/4, 1)) {
		var cold []int64
		for _, r := range part {
			if !t.regions.hot(r) {
				cold = append(cold, r)
			}
		}
		if len(cold) == 0 {
			continue
		}
		if err := t.logRegions(cold); err != nil {
			return err
		}
	}
	return nil
}

// logRegions writes a record that names cold regions, and others that will be
// written soon. When there would be too many it drops some first.
func (t *Tracker) logRegions(cold []int64) error {
	if t.failed != nil {
		return t.failed
	}
	h := t.regions
	added := cold
	if ahead := h.foresee(cold); len(cold)+len(ahead) <= t.hotMax/2 {
		added = slices.Concat(cold, ahead)
	}
	if over := len(h.logged) + len(added) - t.hotMax; over > 0 {
		if err := t.cool(h.choose(max(over, t.hotMax/8))); err != nil {
			return err
		}
	}
	next := h.with(added)
	if err := t.record(activity{epoch: t.list.epoch, regions: next}); err != nil {
		return err
	}
	h.logged = next
	for _, r := range added {
		h.set(r, regionHot)
	}
	for _, r := range cold {
		h.set(r, regionUsed)
	}
	return nil
}

// record appends to the activity log.
func (t *Tracker) record(a activity) error {
	t.exact = a.exact || t.exact // Until a record that is not has been written.
	if err := t.log.append(a); err != nil {
		return err
	}
	t.exact = a.exact
	t.stats.logWrites.Add(1)
	return nil
}

// cool makes the bits of logged regions durable, so that the next record need
// not name them. The io mutex is held.
func (t *Tracker) cool(victims []int64) error {
	h := t.regions
	for _, r := range victims {
		h.unset(r, regionHot|regionUsed)
	}
	var pages []int64
	for _, r := range victims {
		first, end := t.regionBlocks(r)
		for p := first / pageBlocks; p*pageBlocks < end; p++ {
			pages = append(pages, p)
		}
	}
	if err := t.flushPages(pages); err != nil {
		for _, r := range victims { // The newest record names them still.
			h.set(r, regionHot)
		}
		return err
	}
	h.logged = slices.DeleteFunc(h.logged, func(r int64) bool {
		_, dropped := slices.BinarySearch(victims, r)
		return dropped
	})
	return nil
}

// regionBlocks returns the first block of a region and the one after its last.
func (t *Tracker) regionBlocks(r int64) (first, end int64) {
	shift := t.regionShift - t.blockShift
	return r << shift, min((r+1)<<shift, t.list.geometry.Blocks())
}

// flushPages makes pages durable as their bits are now. A region is hot from
// then on if all its bits turn out to be set. The io mutex is held.
func (t *Tracker) flushPages(pages []int64) error {
	if t.failed != nil {
		return t.failed
	}
	if t.bits == nil || len(pages)+len(t.unsure) == 0 {
		return nil
	}
	if t.exact {
		// The log says that the bits on disk are exact, which ends now.
		if err := t.record(activity{epoch: t.list.epoch, regions: t.regions.logged}); err != nil {
			return err
		}
	}
	pages = slices.Concat(pages, t.unsure)
	slices.Sort(pages)
	pages = slices.Compact(pages)
	full := t.fullRegions(pages)
	n, err := t.bits.flush(t.words, pages)
	t.stats.pageWrites.Add(n)
	if err != nil {
		t.unsure = pages
		return err
	}
	t.unsure = nil
	for _, r := range full {
		t.regions.set(r, regionHot|regionUsed)
	}
	return nil
}

// fullRegions returns the regions of pages whose bits are all set. Bits are
// never cleared, so what is written after the call includes them. A region that
// a page has only a part of is left out.
func (t *Tracker) fullRegions(pages []int64) []int64 {
	var out []int64
	for _, p := range pages {
		shift := t.regionShift - t.blockShift
		for r := (p*pageBlocks + 1<<shift - 1) >> shift; ; r++ {
			first, end := t.regionBlocks(r)
			if first >= end || end > (p+1)*pageBlocks {
				break
			}
			if allSet(t.words, first, end) {
				out = append(out, r)
			}
		}
	}
	return out
}

func allSet(words []uint64, start, end int64) bool {
	for w := start >> 6; w <= (end-1)>>6; w++ {
		mask := wordMask(w, start, end)
		if atomic.LoadUint64(&words[w])&mask != mask {
			return false
		}
	}
	return true
}

// markDurably makes the bits of a range durable.
func (t *Tracker) markDurably(off, n int64) error {
	t.io.Lock()
	defer t.io.Unlock()
	var pages []int64
	for p := (off >> t.blockShift) / pageBlocks; p <= ((off+n-1)>>t.blockShift)/pageBlocks; p++ {
		pages = append(pages, p)
	}
	return t.flushPages(pages)
}
