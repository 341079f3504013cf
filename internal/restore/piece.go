package restore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cairnbackup/cairn/blockmap"
)

// worker copies pieces, one after the other. Its buffers are of stepSize: what
// comes from the image, what the target held, and what it holds after a write.
type worker struct {
	*run
	fresh, had, back []byte
}

func newWorker(r *run) *worker {
	w := &worker{run: r, fresh: stepBuffer()}
	if !r.o.Fresh {
		w.had = stepBuffer()
	}
	if r.o.Verify {
		w.back = stepBuffer()
	}
	return w
}

// stepBuffer starts at a multiple of directUnit, for direct I/O.
func stepBuffer() []byte {
	b := make([]byte, stepSize+directUnit)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % directUnit
	return b[skip:][:stepSize:stepSize]
}

// piece copies one piece, extent by extent and at most stepSize at a time.
func (w *worker) piece(ctx context.Context, off, n int64) error {
	next := off
	err := w.extents(ctx, off, n, &next)
	if lost := off + n - next; err != nil && lost > 0 && w.skips(err) {
		// What is there nobody can tell: the map of the backup is lost.
		w.skip(next, lost, err)
		w.report(Progress{Done: lost, Skipped: lost})
		return nil
	}
	return err
}

// extents copies a piece and tells how far it came.
func (w *worker) extents(ctx context.Context, off, n int64, next *int64) error {
	return each(ctx, w.img.Extents, off, n, func(off, n int64, empty bool) error {
		defer func() { *next = off }()
		if empty && w.o.Fresh {
			w.report(Progress{Done: n, Hole: n})
			off += n
			return nil
		}
		for n > 0 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			step := min(n, stepSize-off%stepSize)
			d, err := w.step(ctx, off, step, empty)
			if err != nil {
				return err
			}
			d.Done = step
			w.report(d)
			off, n = off+step, n-step
		}
		return nil
	})
}

// step copies at most stepSize bytes that are all data or all empty.
func (w *worker) step(ctx context.Context, off, n int64, empty bool) (Progress, error) {
	var d Progress
	switch {
	case empty:
		err := each(ctx, w.target.Extents, off, n, func(off, n int64, empty bool) error {
			if empty {
				d.Same += n
				return nil
			}
			return w.clear(ctx, off, n, &d)
		})
		return d, err
	case w.o.Fresh:
		return d, w.write(ctx, off, n, &d)
	default:
		return d, w.update(ctx, off, n, &d)
	}
}

// write copies a range of the image to the target.
func (w *worker) write(ctx context.Context, off, n int64, d *Progress) error {
	p := w.fresh[:n]
	if err := w.img.ReadAt(ctx, p, off); err != nil {
		if w.skips(err) {
			return w.salvage(ctx, off, n, d)
		}
		return fmt.Errorf("read the backup at byte %d: %w", off, err)
	}
	d.Read += n
	return w.put(ctx, p, off, d)
}

// put writes what was read.
func (w *worker) put(ctx context.Context, p []byte, off int64, d *Progress) error {
	n := int64(len(p))
	if err := w.target.WriteAt(ctx, p, off); err != nil {
		return fmt.Errorf("write the target at byte %d: %w", off, err)
	}
	d.Written += n
	return w.verify(ctx, off, n, func(c []byte) bool { return bytes.Equal(c, p) })
}

// verify reads n bytes of the target back, if that is asked for, and lets right
// judge them.
func (w *worker) verify(ctx context.Context, off, n int64, right func([]byte) bool) error {
	if !w.o.Verify {
		return nil
	}
	c := w.back[:n]
	if err := w.target.ReadAt(ctx, c, off); err != nil {
		return fmt.Errorf("read the target back at byte %d: %w", off, err)
	}
	if !right(c) {
		return fmt.Errorf("bytes %d to %d of the target: %w", off, off+n, ErrMismatch)
	}
	return nil
}

// update makes a range of a target with content that of the image, where the
// image has data. The target's blocks are compared by chunk ID, so that only
// those that differ are fetched from the stores.
func (w *worker) update(ctx context.Context, off, n int64, d *Progress) error {
	had := w.had[:n]
	if err := w.target.ReadAt(ctx, had, off); err != nil {
		return fmt.Errorf("read the target at byte %d: %w", off, err)
	}
	same := func(at int64, p []byte) (bool, error) {
		differs, err := w.img.Differs(ctx, at/int64(w.o.BlockSize), p)
		if err != nil && w.skips(err) {
			return false, nil // reading it says so again
		}
		if err != nil {
			return false, fmt.Errorf("compare with the backup at byte %d: %w", at, err)
		}
		return !differs, nil
	}
	return w.runs(had, off, d, same, func(off, n int64) error { return w.write(ctx, off, n, d) })
}

// clear makes a range of the target that may hold data read as zeros.
func (w *worker) clear(ctx context.Context, off, n int64, d *Progress) error {
	had := w.had[:n]
	if err := w.target.ReadAt(ctx, had, off); err != nil {
		return fmt.Errorf("read the target at byte %d: %w", off, err)
	}
	same := func(_ int64, p []byte) (bool, error) { return zeros(p), nil }
	return w.runs(had, off, d, same, func(off, n int64) error {
		if err := w.target.Zero(ctx, off, n); err != nil {
			return fmt.Errorf("clear the target at byte %d: %w", off, err)
		}
		d.Zeroed += n
		return w.verify(ctx, off, n, zeros)
	})
}

// runs asks for each block of p, which is at off, whether the target has the
// right content already, and calls differ for each run of those that have not.
func (w *worker) runs(p []byte, off int64, d *Progress, same func(int64, []byte) (bool, error), differ func(off, n int64) error) error {
	end := off + int64(len(p))
	start := off // of the run that is open, empty when it is at
	for at := off; at < end; {
		// Blocks are those of the image; a range may begin inside one.
		next := min(end, at-at%int64(w.o.BlockSize)+int64(w.o.BlockSize))
		ok, err := same(at, p[at-off:next-off])
		if err != nil {
			return err
		}
		if ok {
			d.Same += next - at
			if at > start {
				if err := differ(start, at-start); err != nil {
					return err
				}
			}
			start = next
		}
		at = next
	}
	if end > start {
		return differ(start, end-start)
	}
	return nil
}

// each calls fn for each extent of a range: empty = it reads as zeros.
func each(ctx context.Context, extents func(context.Context, int64, int64) ([]blockmap.Extent, error), off, n int64, fn func(off, n int64, empty bool) error) error {
	for end := off + n; off < end; {
		l, err := extents(ctx, off, end-off)
		if err != nil {
			return fmt.Errorf("ask for the extents at byte %d: %w", off, err)
		}
		before := off
		for _, e := range l {
			if e.Offset > off || e.Offset+e.Length <= off {
				continue
			}
			stop := min(end, e.Offset+e.Length)
			if err := fn(off, stop-off, e.State&blockmap.Zero != 0); err != nil {
				return err
			}
			off = stop
		}
		if off == before {
			return fmt.Errorf("the extents at byte %d are not described", off)
		}
	}
	return nil
}

// errNotEmpty ends a walk.
var errNotEmpty = errors.New("not empty")

// emptyFirst is how many of the n bytes at off read as zeros before one may not.
func emptyFirst(ctx context.Context, extents func(context.Context, int64, int64) ([]blockmap.Extent, error), off, n int64) (int64, error) {
	var sum int64
	err := each(ctx, extents, off, n, func(_, n int64, empty bool) error {
		if !empty {
			return errNotEmpty
		}
		sum += n
		return nil
	})
	if errors.Is(err, errNotEmpty) {
		err = nil
	}
	return sum, err
}

// zeros says whether all of p is zero.
func zeros(p []byte) bool {
	// Each byte equals the one before it, and the first is zero: one
	// comparison at the speed of memory.
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
