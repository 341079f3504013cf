package volume

import (
	"errors"
	"fmt"
	"io"
	"syscall"
)

// failure is why the volume refuses writes.
type failure struct {
	err          error
	halfReverted bool // a further Revert may mend it
}

// ReadAt reads the volume's present content. Reads run beside everything else
// and beside each other. A read beyond the end is short and answers io.EOF.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	size := v.size.Load()
	if off < 0 || off > size {
		return 0, fmt.Errorf("read at %d of volume %s of %d bytes: %w", off, v.name, size, syscall.EINVAL)
	}
	short := int64(len(p)) > size-off
	if short {
		p = p[:size-off]
	}
	n, err := v.data.ReadAt(p, off)
	switch {
	case n == len(p) && short:
		return n, io.EOF
	case n == len(p):
		return n, nil
	case errors.Is(err, io.EOF):
		return n, fmt.Errorf("read volume %s at %d: the data file ends early: %w", v.name, off+int64(n), syscall.EIO)
	}
	return n, fmt.Errorf("read volume %s at %d: %w", v.name, off, err)
}

// WriteAt writes to the volume. When it returns without error, all of p is
// written, but durable only after Flush. p is not kept.
func (v *Volume) WriteAt(p []byte, off int64) (int, error) {
	if err := v.BeginWrite(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := v.data.WriteAt(p, off)
	return n, v.EndWrite(off, int64(len(p)), err)
}

// BeginWrite does all that has to precede a write of n bytes at off to DataFile:
// the range is marked as changed and the preimages that snapshots need are saved.
// After a nil answer the caller writes and then calls EndWrite, exactly once. The
// data must be at hand: snapshots and resizes wait for the EndWrite. A goroutine
// ends one write before it begins, trims or zeroes another, or it may wait for
// itself; EndWrite may come from another goroutine.
func (v *Volume) BeginWrite(off, n int64) error {
	if err := v.checkWrite(off, n); err != nil {
		return err
	}
	v.gate.enter()
	if err := v.prepare(off, n); err != nil {
		v.gate.leave()
		return err
	}
	return nil
}

// EndWrite ends what BeginWrite began; err is how the write went, and comes back
// as the error to answer.
func (v *Volume) EndWrite(off, n int64, err error) error {
	v.gate.leave()
	if err != nil {
		return fmt.Errorf("write %d bytes at %d of volume %s: %w", n, off, v.name, err)
	}
	return nil
}

// checkWrite refuses what lies outside of the volume, and everything once the volume has failed.
func (v *Volume) checkWrite(off, n int64) error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	if size := v.size.Load(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%d bytes at %d do not lie in volume %s of %d bytes: %w", n, off, v.name, size, syscall.ENOSPC)
	}
	return nil
}

// prepare is called inside the gate before the bytes change: mark, preimages,
// lease.
func (v *Volume) prepare(off, n int64) error {
	if n == 0 {
		return nil
	}
	if err := v.markChanged(off, n); err != nil {
		return err
	}
	v.deferred.cancel(off, n)
	if err := v.preserve(off, n); err != nil {
		return err
	}
	v.beat.pulse()
	return nil
}

// markChanged makes the tracker cover the range.
func (v *Volume) markChanged(off, n int64) error {
	if err := v.tracker.Mark(off, n); err != nil {
		return fmt.Errorf("track %d bytes at %d of volume %s: %w", n, off, v.name, err)
	}
	return nil
}

// Flush makes everything durable that was acknowledged before the call, whoever
// wrote it. Flushes at the same time share an fsync. After a failed one every
// later write and flush answers ErrFailed until the volume is reopened: the
// kernel reports lost data only once, and then forgets it.
func (v *Volume) Flush() error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	return v.syncData()
}

func (v *Volume) syncData() error {
	err := v.flusher.wait()
	if err == nil {
		return nil
	}
	return v.fail(err)
}

// fail makes the volume refuse writes and records, as well as still possible,
// that its tracker is not to be trusted.
func (v *Volume) fail(cause error) error {
	f := &failure{err: fmt.Errorf("volume %s: fsync of its data file failed (%w); reopen it after looking at the disk: %w", v.name, cause, ErrFailed)}
	if !v.failed.CompareAndSwap(nil, f) {
		return v.failed.Load().err
	}
	const reason = "an fsync of the data file failed"
	err := errors.Join(
		v.beat.save(func(b *beatRecord) { b.Failed = true }),
		v.tracker.Distrust(reason),
	)
	v.log.Error("volume failed", attrVolume(v), attrReason(cause.Error()), attrError(err))
	return f.err
}
