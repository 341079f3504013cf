package volume

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cairnbackup/cairn/blockmap"
)

// Zero makes a range read as zeros; with punch its space may be given back. It
// is a change like a write, preimages included.
func (v *Volume) Zero(off, n int64, punch bool) error {
	if err := v.BeginWrite(off, n); err != nil {
		return err
	}
	var err error
	if n > 0 {
		err = v.data.Zero(off, n, punch)
	}
	return v.EndWrite(off, n, err)
}

// ZeroFast is Zero where that takes less than writing the range. It does not where
// the file system can only write zeros; nor while there is a snapshot, which might
// need a copy of all that is there first: a client that clears a disk before it
// writes to it would have everything copied, to be spared what costs less. The error
// is errors.ErrUnsupported then, and the content is as it was.
func (v *Volume) ZeroFast(off, n int64, punch bool) error {
	if v.snaps.set.Load().newest() != nil {
		return fmt.Errorf("zero %d bytes at %d of volume %s: its snapshots may need what is there: %w", n, off, v.name, errors.ErrUnsupported)
	}
	if err := v.BeginWrite(off, n); err != nil {
		return err
	}
	var err error
	if n > 0 {
		err = v.data.ZeroFast(off, n, punch)
	}
	return v.EndWrite(off, n, err)
}

// Trim says that the content of a range is no longer needed. Without snapshots
// the range is punched out and reads as zeros, a change like any other.
//
// While a snapshot needs the old content of a block, trimming it would cost a
// copy to free nothing. So the trim of such a block is acknowledged and put off:
// the content stays (a trim promises nothing about it), nothing is marked, and
// the block is punched when the last snapshot is gone, unless the guest wrote to
// it meanwhile. Only whole blocks are put off; what is pending is forgotten when
// the volume is closed, and of data that other hosts may have when the last
// writer leaves.
func (v *Volume) Trim(off, n int64) error {
	if err := v.checkWrite(off, n); err != nil {
		return err
	}
	v.gate.enter()
	err := v.trim(off, n)
	v.gate.leave()
	if err != nil {
		return fmt.Errorf("trim %d bytes at %d of volume %s: %w", n, off, v.name, err)
	}
	return nil
}

// trim punches the parts that no snapshot needs and puts the others off.
func (v *Volume) trim(off, n int64) error {
	set := v.snaps.set.Load()
	e := set.newest()
	if e == nil {
		return v.punch(off, n)
	}
	const bs = blockmap.DefaultBlockSize
	start, end := off, off+n // start: of the run that may be punched
	for at := off; at < end; {
		b := at / bs
		next := min((b+1)*bs, end)
		c := e.idx.load(b)
		if c == cellCopying || (c == cellAbsent || isPart(c)) && b < e.idx.blocks && set.needs(b) != routeNone {
			if err := v.punch(start, at-start); err != nil {
				return err
			}
			if at == b*bs && (next == (b+1)*bs || next == v.size.Load()) {
				v.deferred.add(b, blocksOf(v.size.Load()))
			}
			start = next
		}
		at = next
	}
	return v.punch(start, end-start)
}

// punch is called inside the gate, or by its exclusive holder.
func (v *Volume) punch(off, n int64) error {
	if n <= 0 {
		return nil
	}
	if err := v.markChanged(off, n); err != nil {
		return err
	}
	v.beat.pulse()
	return v.data.Zero(off, n, true)
}

// deferredTrims are the blocks whose trim was put off.
type deferredTrims struct {
	any atomic.Bool // false: nothing pending, nothing to cancel

	mu     sync.Mutex
	blocks *blockmap.Bitmap
}

func (d *deferredTrims) add(b, blocks int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blocks == nil || d.blocks.Len() < blocks {
		grown := blockmap.NewBitmap(blocks)
		if d.blocks != nil {
			grown.Or(d.blocks)
		}
		d.blocks = grown
	}
	d.blocks.Set(b, 1)
	d.any.Store(true)
}

// cancel forgets the blocks that a write touches. The writer is inside the gate,
// so the punch, which holds it exclusively, comes before or after the write.
func (d *deferredTrims) cancel(off, n int64) {
	if !d.any.Load() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blocks != nil {
		first := off / blockmap.DefaultBlockSize
		d.blocks.Clear(first, (off+n-1)/blockmap.DefaultBlockSize-first+1)
	}
}

// take removes and returns the next run of at most limit blocks.
func (d *deferredTrims) take(limit int64) (first, count int64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.blocks != nil {
		for first, count := range d.blocks.Runs() {
			count = min(count, limit)
			d.blocks.Clear(first, count)
			return first, count, true
		}
	}
	d.blocks = nil
	d.any.Store(false)
	return 0, 0, false
}

// runDeferred punches what was put off, once no snapshot is left. Each run is
// taken and punched while no writer is inside, so that it cannot hit newer data.
func (v *Volume) runDeferred() error {
	if !v.deferred.any.Load() || v.failed.Load() != nil || v.snaps.set.Load().newest() != nil {
		return nil
	}
	// The guest that trimmed may be gone.
	if err := v.whileOpen(v.punchAllDeferred); err != nil {
		return fmt.Errorf("trim volume %s: %w", v.name, err)
	}
	return nil
}

func (v *Volume) punchAllDeferred() error {
	const runBlocks = 64 << 20 / blockmap.DefaultBlockSize
	for v.deferred.any.Load() && v.failed.Load() == nil {
		done, err := v.punchDeferred(runBlocks)
		if err != nil || done {
			return err
		}
	}
	return nil
}

func (v *Volume) punchDeferred(limit int64) (done bool, err error) {
	v.gate.lock()
	defer v.gate.unlock()
	if v.snaps.set.Load().newest() != nil {
		return true, nil
	}
	first, count, ok := v.deferred.take(limit)
	if !ok {
		return true, nil
	}
	off := first * blockmap.DefaultBlockSize
	return false, v.punch(off, min(count*blockmap.DefaultBlockSize, v.size.Load()-off))
}
