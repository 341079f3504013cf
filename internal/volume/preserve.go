package volume

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cairnbackup/cairn/blockmap"
)

// copyWaits is where writers wait for a block that another one is saving.
type copyWaits struct {
	waiting atomic.Int64
	mu      sync.Mutex
	done    sync.Cond
}

func (w *copyWaits) init() { w.done.L = &w.mu }

// publish sets a claimed cell and wakes who waits for it.
func (w *copyWaits) publish(cell *atomic.Uint32, val uint32) {
	cell.Store(val)
	if w.waiting.Load() > 0 {
		w.mu.Lock()
		w.done.Broadcast()
		w.mu.Unlock()
	}
}

// until waits as long as the cell is being copied.
func (w *copyWaits) until(cell *atomic.Uint32) {
	w.waiting.Add(1)
	w.mu.Lock()
	for cell.Load() == cellCopying {
		w.done.Wait()
	}
	w.mu.Unlock()
	w.waiting.Add(-1)
}

// preserve saves the preimages of all blocks that the range touches and a
// snapshot needs, and waits for those that another writer is saving. It is
// called inside the gate. An error is the rare case that a broken snapshot could
// not be recorded as broken; the write must not go on then.
func (v *Volume) preserve(off, n int64) error {
	e := v.snaps.set.Load().newest()
	if e == nil {
		return nil
	}
	first, last := off/blockmap.DefaultBlockSize, min((off+n-1)/blockmap.DefaultBlockSize, e.idx.blocks-1)
	for b := first; b <= last; b++ {
		if e.idx.load(b) <= cellCopying {
			return v.preserveBlocks(e, b, last)
		}
	}
	return nil
}

// saving is the work of one writer that found blocks to save.
type saving struct {
	v      *Volume
	set    *snapSet
	e      *epoch
	synced []unsynced
	err    error // a break that could not be recorded
}

// unsynced is a record that is appended but not durable yet.
type unsynced struct {
	block int64
	val   uint32
}

func (v *Volume) preserveBlocks(e *epoch, first, last int64) error {
	s := saving{v: v, set: v.snaps.set.Load(), e: e}
	var others []int64
	// First save what can be claimed, then wait for what others claimed: nobody
	// waits while it holds a claim, so two writers cannot wait for each other.
	for b := first; b <= last; b++ {
		cell := e.idx.cell(b)
		if cell.CompareAndSwap(cellAbsent, cellCopying) {
			s.save(b)
		} else if cell.Load() == cellCopying {
			others = append(others, b)
		}
	}
	s.commit()
	for _, b := range others {
		v.waits.until(e.idx.cell(b))
	}
	return s.err
}

// save copies one claimed block. A temporary record is published at once, a
// durable one by commit.
func (s *saving) save(b int64) {
	r := s.set.needs(b)
	if r == routeNone {
		s.publish(b, cellSkipped)
		return
	}
	l := s.e.temp
	if r == routeDurable {
		l = s.e.log
	}
	sector, err := s.v.copyOut(l, b)
	switch {
	case err != nil:
		s.lost(b, err)
	case r == routeTemp:
		s.publish(b, sector|cellTemp)
	default:
		s.synced = append(s.synced, unsynced{b, sector})
	}
}

// copyOut appends the live content of a block to a log.
func (v *Volume) copyOut(l *preLog, b int64) (sector uint32, err error) {
	if l == nil {
		return 0, errors.New("there is no preimage log")
	}
	g := blockmap.Geometry{Size: v.size.Load(), BlockSize: blockmap.DefaultBlockSize}
	p := preimage{block: b, length: g.BlockLen(b), buf: newRecordBuf()}
	defer p.free()
	if n, err := v.data.ReadAt(p.content(), g.Offset(b)); err != nil && (n < p.length || !errors.Is(err, io.EOF)) {
		return 0, fmt.Errorf("read the old content of block %d: %w", b, err)
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
		if err != nil {
			s.lost(u.block, err)
		} else {
			s.publish(u.block, u.val)
		}
	}
}

// lost breaks the snapshots that needed the block; the guest's write goes on.
func (s *saving) lost(b int64, cause error) {
	for _, sn := range s.set.uncovered(b) {
		if err := sn.breakOff(cause.Error()); err != nil && s.err == nil {
			s.err = fmt.Errorf("volume %s: %w", s.v.name, err)
		}
	}
	if s.err != nil {
		// A snapshot that could not be broken still needs the block: the next write tries again.
		s.publish(b, cellAbsent)
		return
	}
	s.publish(b, cellSkipped)
}

func (s *saving) publish(b int64, val uint32) { s.v.waits.publish(s.e.idx.cell(b), val) }

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
