package blockmap

import "fmt"

// Distrust makes everything count as changed since every checkpoint that there
// is, for a reason. It holds in this process even if the error says that it
// could not be made durable.
func (t *Tracker) Distrust(reason string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.io.Lock()
	defer t.io.Unlock()
	if t.list.idle() {
		return nil
	}
	l := t.list.clone()
	l.doubtAll(reason)
	err := t.save(l)
	if err != nil {
		t.list.doubtAll(reason)
		return fmt.Errorf("distrust the record of changes: %w", err)
	}
	t.sweep()
	return nil
}

// doubtAll marks every segment that is not in doubt yet.
func (l *list) doubtAll(reason string) {
	if reason == "" {
		reason = "the record of changes is not trusted"
	}
	reason = reason[:min(len(reason), maxDoubtSize)]
	for i := range l.segments {
		s := &l.segments[i]
		if s.doubt == "" {
			s.doubt = reason
		}
		if i < len(l.segments)-1 {
			s.id, s.sum = 0, 0 // The bits of a closed segment are of no use any more.
		}
	}
}

// Resize changes the size of the volume. What is added, or cut off, and the
// block that straddles the old or new end count as changed. It is durable on
// return; after an error the size is the old one. The caller excludes Mark
// meanwhile.
func (t *Tracker) Resize(size int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.io.Lock()
	defer t.io.Unlock()
	if t.failed != nil {
		return fmt.Errorf("resize: %w", t.failed)
	}
	old := t.list.geometry
	g := Geometry{Size: size, BlockSize: old.BlockSize}
	if err := g.Validate(); err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	if err := checkRegions(g, t.list.regionSize); err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	if size == old.Size {
		return nil
	}
	l := t.list.clone()
	l.geometry = g
	blocks := max(l.newest().blocks, g.Blocks())
	if l.idle() {
		blocks = g.Blocks()
	}
	l.newest().blocks = blocks
	if more := (blocks+63)>>6 - int64(len(t.words)); more > 0 {
		t.words = append(t.words, make([]uint64, more)...)
	}
	if !l.idle() {
		if err := t.markResized(old, g, blocks); err != nil {
			return fmt.Errorf("resize: %w", err)
		}
	}
	if err := t.save(l); err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	t.adopt(g, l.regionSize)
	t.regions.resize(t.regionCount(size))
	if l.idle() {
		t.regions.setAll(true)
	}
	return nil
}

// markResized makes the bits durable of all that a change of size touches.
func (t *Tracker) markResized(old, g Geometry, blocks int64) error {
	if err := t.bits.grow(blocks); err != nil {
		return err
	}
	first, end := g.Block(min(old.Size, g.Size)), max(old.Blocks(), g.Blocks())
	setAtomic(t.words, first, end)
	var pages []int64
	for p := first / pageBlocks; p*pageBlocks < end; p++ {
		pages = append(pages, p)
	}
	return t.flushPages(pages)
}
