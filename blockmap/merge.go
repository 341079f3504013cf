package blockmap

import (
	"fmt"
	"slices"
)

// DropCheckpoint removes a name. When it was the last of its position, what
// changed before and after becomes one; without any position left, nothing more
// is remembered. After an error the checkpoint is there still.
func (t *Tracker) DropCheckpoint(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, j, ok := t.list.find(name)
	if !ok {
		return fmt.Errorf("checkpoint %q: %w", name, ErrCheckpoint)
	}
	l := t.list.clone()
	l.segments[i].names = slices.Delete(l.segments[i].names, j, j+1)
	var err error
	newest := i == len(l.segments)-1
	switch {
	case len(l.segments[i].names) > 0:
		err = t.saveLocked(l)
	case i == 0 && newest:
		err = t.forget(l)
	case i == 0:
		l.segments = l.segments[1:]
		err = t.saveLocked(l)
	case newest:
		err = t.mergeNewest(l)
	default:
		err = t.mergeClosed(l, i)
	}
	if err != nil {
		return fmt.Errorf("drop checkpoint %q: %w", name, err)
	}
	t.sweep()
	return nil
}

func (t *Tracker) saveLocked(l *list) error {
	t.io.Lock()
	defer t.io.Unlock()
	return t.save(l)
}

// forget ends the recording: there is no checkpoint in l.
func (t *Tracker) forget(l *list) error {
	t.io.Lock()
	defer t.io.Unlock()
	if t.failed != nil {
		return t.failed
	}
	s := l.newest()
	s.id, s.doubt, s.sum = 0, "", 0
	s.blocks = l.geometry.Blocks()
	if err := t.save(l); err != nil {
		return err
	}
	_ = t.bits.close() // Nobody needs it.
	t.bits, t.exact, t.unsure, t.regions.logged = nil, false, nil, nil
	t.regions.setAll(true)
	return nil
}

// mergeNewest adds the last closed segment of l to the newest. Its bits are
// durable there before the list says so; until then they only make what is
// dropped look larger.
func (t *Tracker) mergeNewest(l *list) error {
	older, newest := l.segments[len(l.segments)-2], l.newest()
	b := NewBitmap(older.blocks)
	doubt, _ := readBits(t.fsys, t.dir, l.volume, older, b)
	newest.names = older.names
	if newest.doubt == "" {
		newest.doubt = doubt
	}
	l.segments = append(l.segments[:len(l.segments)-2], *newest)

	t.io.Lock()
	defer t.io.Unlock()
	if doubt == "" {
		var pages []int64
		for first, count := range b.Runs() {
			setAtomic(t.words, first, first+count)
			for p := first / pageBlocks; p <= (first+count-1)/pageBlocks; p++ {
				if len(pages) == 0 || pages[len(pages)-1] != p {
					pages = append(pages, p)
				}
			}
		}
		if err := t.flushPages(pages); err != nil {
			return err
		}
	}
	return t.save(l)
}

// mergeClosed joins the segment i of l, which is closed, with the one before.
func (t *Tracker) mergeClosed(l *list, i int) error {
	a, b := l.segments[i-1], l.segments[i]
	merged := segment{blocks: max(a.blocks, b.blocks), names: a.names}
	bits := NewBitmap(merged.blocks)
	for _, s := range []segment{a, b} {
		if doubt, _ := readBits(t.fsys, t.dir, l.volume, s, bits); doubt != "" && merged.doubt == "" {
			merged.doubt = doubt
		}
	}
	if merged.doubt == "" {
		merged.id = t.freeID()
		f, err := createBits(t.fsys, t.dir, l.volume, merged.id, bits.words, merged.blocks)
		if err != nil {
			return err
		}
		merged.sum = sumOf(f.sums)
		if err := f.close(); err != nil {
			return err
		}
		l.nextID = merged.id + 1
	}
	l.segments = slices.Replace(l.segments, i-1, i+1, merged)
	return t.saveLocked(l)
}
