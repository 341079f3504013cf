package volume

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cairnbackup/cairn/blockmap"
)

// copyWaits is where writers wait for what another one is saving.
type copyWaits struct {
	waiting atomic.Int64
	mu      sync.Mutex
	done    sync.Cond
}

func (w *copyWaits) init() { w.done.L = &w.mu }

// wake is called behind whatever ends what until waits for.
func (w *copyWaits) wake() {
	if w.waiting.Load() > 0 {
		w.mu.Lock()
		w.done.Broadcast()
		w.mu.Unlock()
	}
}

// while waits as long as what it asks about is being copied.
func (w *copyWaits) while(copying func() bool) {
	w.waiting.Add(1)
	w.mu.Lock()
	for copying() {
		w.done.Wait()
	}
	w.mu.Unlock()
	w.waiting.Add(-1)
}

// preserve saves the preimages of all that the range touches and a snapshot needs,
// and waits for those that another writer is saving. It is called inside the gate.
// An error is the rare case that a broken snapshot could not be recorded as broken;
// the write must not go on then.
func (v *Volume) preserve(off, n int64) error {
	e := v.snaps.set.Load().newest()
	if e == nil {
		return nil
	}
	first, last := off/blockmap.DefaultBlockSize, min((off+n-1)/blockmap.DefaultBlockSize, e.idx.blocks-1)
	for b := first; b <= last; b++ {
		if !e.idx.settled(b, pagesOf(off, n, b)) {
			s := saving{v: v, set: v.snaps.set.Load(), e: e, off: off, n: n}
			return s.all(b, last)
		}
	}
	return nil
}

// saving is the work of one writer that found something to save.
type saving struct {
	v      *Volume
	set    *snapSet
	e      *epoch
	off, n int64 // the range
	synced []unsynced
	err    error // a break that could not be recorded
}

// unsynced is a record that is appended but not durable yet.
type unsynced struct {
	block int64
	val   uint32
}

// all saves the blocks first to last. First it saves what can be claimed, then it waits
// for what others claimed: nobody waits while it holds a claim, so two writers cannot
// wait for each other.
func (s *saving) all(first, last int64) error {
	var others []int64
	for b := first; b <= last; b++ {
		if !s.try(b) {
			others = append(others, b)
		}
	}
	s.commit()
	for _, b := range others {
		for done := false; !done && s.err == nil; {
			s.v.waits.while(func() bool { return s.copying(b) })
			done = s.try(b)
			s.commit()
		}
	}
	return s.err
}

// try saves what it can claim of a block. It is false where that is not all, as
// another writer was there first, who may fail yet.
func (s *saving) try(b int64) bool {
	cell, pages := s.e.idx.cell(b), pagesOf(s.off, s.n, b)
	if cell.CompareAndSwap(cellAbsent, cellCopying) {
		s.save(b, pages)
		return true
	}
	if c := cell.Load(); isPart(c) {
		p := s.e.idx.part(c)
		if mine := p.claim(pages); mine != 0 {
			s.savePages(b, p, mine)
		}
	}
	return s.e.idx.settled(b, pages)
}

// copying tells whether another writer is copying what the range touches of a block.
func (s *saving) copying(b int64) bool {
	c := s.e.idx.load(b)
	return c == cellCopying || isPart(c) && s.e.idx.part(c).copying(pagesOf(s.off, s.n, b))
}

// save copies a claimed block, or the pages of it that the range touches. A temporary
// record is published at once, a durable one by commit.
func (s *saving) save(b int64, pages pageSet) {
	r := s.set.needs(b)
	if r == routeNone {
		s.publish(b, cellSkipped)
		return
	}
	l := s.e.log
	if r == routeTemp {
		if !pages.large() && partChunks.Load() < maxPartChunks {
			cell := s.e.idx.addPart()
			p := s.e.idx.part(cell)
			p.claim(pages)
			s.publish(b, cell)
			s.savePages(b, p, pages)
			return
		}
		l = s.e.temp
	}
	sector, err := s.v.copyOut(l, preimage{block: b}, allPages)
	switch {
	case err != nil && s.lost(b, err):
		s.publish(b, cellSkipped)
	case err != nil: // the snapshot still needs the block: the next write tries again
		s.publish(b, cellAbsent)
	case r == routeTemp:
		s.publish(b, sector|cellTemp)
	default:
		s.synced = append(s.synced, unsynced{b, sector})
	}
}

// savePages settles claimed pages of a part, or gives the claim back.
func (s *saving) savePages(b int64, p *part, mine pageSet) {
	defer s.v.waits.wake()
	var err error
	switch s.set.needs(b) {
	case routeNone:
		p.skip(mine)
		return
	case routeTemp:
		mine, err = s.copyPages(b, p, mine)
	case routeDurable:
		err = errPartKept
	}
	switch {
	case err == nil:
	case s.lost(b, err):
		p.skip(mine)
	default:
		p.giveBack(mine)
	}
}

// copyPages copies claimed pages of a part. On an error it returns those that it has not
// copied, all of them claimed.
func (s *saving) copyPages(b int64, p *part, mine pageSet) (pageSet, error) {
	if p.follows(mine) { // whoever writes page by page has the rest saved at once
		first, _ := mine.first()
		mine |= p.claim(pagesOf(0, s.v.size.Load(), b) & pageRun(first, blockPages))
	}
	for mine != 0 {
		first, end := mine.first()
		run := pageRun(first, end)
		sector, err := s.v.copyOut(s.e.temp, preimage{block: b, part: true}, run)
		if err != nil {
			return mine, err
		}
		p.save(run, sector)
		mine &^= run
	}
	return 0, nil
}

// copyOut appends the live content of a run of pages of p's block, which end at the
// volume's end, to a log.
func (v *Volume) copyOut(l *preLog, p preimage, run pageSet) (sector uint32, err error) {
	if l == nil {
		return 0, errors.New("there is no preimage log")
	}
	g := blockmap.Geometry{Size: v.size.Load(), BlockSize: blockmap.DefaultBlockSize}
	first, end := run.first()
	p.page = first
	p.length = min(end*pageSize, g.BlockLen(p.block)) - first*pageSize
	p.buf = newRecordBuf()
	defer p.free()
	if n, err := v.data.ReadAt(p.content(), g.Offset(p.block)+int64(first*pageSize)); err != nil && (n < p.length || !errors.Is(err, io.EOF)) {
		return 0, fmt.Errorf("read the old content of block %d: %w", p.block, err)
	}
	p.seal()
	return l.append(&p)
}

// commit makes the appended records durable, together with those of other
// writers, and publishes them.
func (s *saving) commit() {
	if len(s.synced) == 0 {
		return
	}
	err := s.e.log.flush.wait()
	for _, u := range s.synced {
		switch {
		case err == nil:
			s.publish(u.block, u.val)
		case s.lost(u.block, err):
			s.publish(u.block, cellSkipped)
		default:
			s.publish(u.block, cellAbsent)
		}
	}
	s.synced = s.synced[:0]
}

// lost breaks the snapshots that needed the block; the guest's write goes on. It is
// false where one could not be broken: that one still needs the block, and the write
// ends with s.err.
func (s *saving) lost(b int64, cause error) bool {
	err := breakAll(s.set.uncovered(b), cause)
	if err != nil && s.err == nil {
		s.err = fmt.Errorf("volume %s: %w", s.v.name, err)
	}
	return err == nil
}

// breakAll breaks snapshots, as many as it can.
func breakAll(all []*Snapshot, cause error) (err error) {
	for _, s := range all {
		err = errors.Join(err, s.breakOff(cause.Error()))
	}
	return err
}

// publish sets the cell of a claimed block.
func (s *saving) publish(b int64, val uint32) {
	s.e.idx.cell(b).Store(val)
	s.v.waits.wake()
}

// breakOff gives the snapshot up. For a persistent one this is on stable storage
// before anybody sees it, because the next write may overwrite what it lacks.
func (s *Snapshot) breakOff(reason string) error {
	v := s.v
	v.breaking.Lock()
	defer v.breaking.Unlock()
	if s.isBroken() {
		return nil
	}
	if !s.temporary {
		if err := v.recordBreak(s, reason); err != nil {
			return err
		}
	}
	s.broken.Store(&reason)
	v.log.Warn("snapshot broken", attrVolume(v), attrSnapshot(s), attrReason(reason))
	v.back.Go(v.reclaimBroken)
	return nil
}

// recordBreak writes the mark into the snapshot's own log. If even that fails the
// log is removed: a snapshot without its log is broken too, and so are the older
// ones that need preimages from it. breaking is held.
func (v *Volume) recordBreak(s *Snapshot, reason string) error {
	set := v.snaps.set.Load()
	e := set.at(s.epoch)
	if e == nil || e.log == nil {
		return fmt.Errorf("snapshot %s has no preimage log", s.id)
	}
	err := e.log.markBroken(reason)
	if err == nil {
		return nil
	}
	if rerr := e.log.unlink(); rerr != nil {
		return fmt.Errorf("a snapshot lost its content (%s) and this could not be recorded: %w", reason, errors.Join(err, rerr))
	}
	for _, older := range set.snaps {
		if !older.temporary && older.epoch < s.epoch && set.reliesOn(older, e) {
			older.breakFound("preimages saved for it were lost when a newer snapshot broke: " + reason)
		}
	}
	return nil
}
