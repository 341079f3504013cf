package volume

import (
	"errors"
	"fmt"
)

// Extend grows the volume; what is added reads as zeros on a file, and as it is
// on a device, which has to have grown before. Snapshots keep their size. After
// a crash the next Open finishes it.
func (v *Volume) Extend(size int64) error {
	v.admin.Lock()
	defer v.admin.Unlock()
	if err := v.extend(size); err != nil {
		return fmt.Errorf("extend volume %s: %w", v.name, err)
	}
	return nil
}

func (v *Volume) extend(size int64) error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	if err := checkSize(size); err != nil {
		return err
	}
	switch {
	case size == v.rec.Size:
		return nil
	case size < v.rec.Size:
		return fmt.Errorf("%w: it has %d bytes, and volumes do not shrink to %d", ErrInvalid, v.rec.Size, size)
	}
	return v.whileOpen(func() error { return v.extendTo(size) })
}

// extendTo announces a larger size and grows to it.
func (v *Volume) extendTo(size int64) error {
	// The intent first: a data file that is longer than its volume is a reason for doubt, unless this explains it.
	r := v.rec
	r.Extending = size
	if err := v.saveRecord(&r); err != nil {
		return err
	}
	if err := v.grow(size); err != nil {
		r := v.rec
		r.Extending = 0
		return errors.Join(err, v.saveRecord(&r))
	}
	return nil
}

// grow does what rec.Extending announces: data file, tracker, record, in this
// order, each durable before the next. admin is held, or nobody else is there.
func (v *Volume) grow(size int64) error {
	if err := v.growData(size); err != nil {
		return err
	}
	if err := v.beat.save(func(b *beatRecord) { b.Size = v.data.size }); err != nil {
		return err
	}
	v.gate.lock()
	defer v.gate.unlock()
	if err := v.tracker.Resize(size); err != nil {
		return fmt.Errorf("resize the change tracker: %w", err)
	}
	r := v.rec
	r.Size, r.Extending = size, 0
	if err := v.saveRecord(&r); err != nil {
		return errors.Join(err, v.tracker.Resize(v.rec.Size)) // or it would not be believed
	}
	v.size.Store(size)
	return nil
}

func (v *Volume) growData(size int64) error {
	path := v.rec.dataPath(v.dir)
	if v.rec.Kind == kindDevice {
		if err := v.data.look(path, true); err != nil {
			return err
		}
		if v.data.size < size {
			return fmt.Errorf("%w: device %s has %d bytes; grow it to %d first", ErrInvalid, path, v.data.size, size)
		}
		return nil
	}
	v.beat.pulse()
	if v.data.size < size {
		if err := v.data.Truncate(size); err != nil {
			return fmt.Errorf("grow the data file to %d bytes: %w", size, err)
		}
		v.data.size = size
	}
	return v.syncData()
}
