package blockmap

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// AddCheckpoint makes the present a position that changes are counted from,
// under one or more names that no checkpoint has. It is durable on return; after
// an error it does not exist, unless the power fails just then, and marks go on
// as before. The caller excludes Mark meanwhile.
func (t *Tracker) AddCheckpoint(names ...string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	labels, err := t.newLabels(names)
	if err != nil {
		return fmt.Errorf("add a checkpoint: %w", err)
	}
	t.io.Lock()
	defer t.io.Unlock()
	if t.failed != nil {
		return fmt.Errorf("add checkpoint %q: %w", names[0], t.failed)
	}
	l := t.list.clone()
	if !l.idle() && l.newest().doubt == "" && t.live().Count() == 0 {
		// Nothing was written since the last position, so this is the same.
		l.newest().names = append(l.newest().names, labels...)
		err = t.save(l)
	} else {
		err = t.swap(l, labels)
	}
	if err != nil {
		return fmt.Errorf("add checkpoint %q: %w", names[0], err)
	}
	return nil
}

// newLabels checks names for a position.
func (t *Tracker) newLabels(names []string) ([]label, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("no name was given: %w", os.ErrInvalid)
	}
	now := time.Unix(0, time.Now().UnixNano())
	var out []label
	for i, n := range names {
		if n == "" || len(n) > maxNameSize {
			return nil, fmt.Errorf("the name %.20q has %d bytes, 1 to %d are possible: %w", n, len(n), maxNameSize, os.ErrInvalid)
		}
		if _, _, taken := t.list.find(n); taken || slices.Contains(names[:i], n) {
			return nil, fmt.Errorf("%q: %w", n, ErrCheckpointExists)
		}
		out = append(out, label{name: n, created: now})
	}
	return out, nil
}

// swap closes the newest segment of l, which becomes the list, and opens
// another. mu and io are held, and no marks come.
func (t *Tracker) swap(l *list, names []label) error {
	next := segment{id: l.nextID, blocks: l.mostBlocks(), names: names}
	t.regions.keepWarm()
	switch s := l.newest(); {
	case l.idle():
		l.segments = nil // What was before the first checkpoint nobody can ask for.
	case s.doubt != "":
		s.id, s.sum = 0, 0 // Its bits are of no use.
	default:
		if err := t.settle(); err != nil {
			return err
		}
		s.sum = sumOf(t.bits.sums)
	}
	bits, err := createBits(t.fsys, t.dir, l.volume, next.id, nil, next.blocks)
	if err != nil {
		return err
	}
	l.segments = append(l.segments, next)
	l.nextID++
	l.epoch++
	if err = t.save(l); err != nil {
		_ = bits.close() // The next open removes it.
		return err
	}
	// From here on nothing fails: the records of the log are of an older
	// epoch, so that they say nothing about this segment.
	if t.bits != nil {
		_ = t.bits.close() // Its content is durable.
	}
	t.bits, t.exact, t.unsure = bits, false, nil
	t.words = NewBitmap(next.blocks).words
	t.regions.logged = nil
	t.regions.setAll(false)
	return nil
}

// AliasCheckpoint gives the position of an existing checkpoint a further name.
func (t *Tracker) AliasCheckpoint(at, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	i, j, ok := t.list.find(at)
	if !ok {
		return fmt.Errorf("checkpoint %q: %w", at, ErrCheckpoint)
	}
	labels, err := t.newLabels([]string{name})
	if err != nil {
		return fmt.Errorf("name checkpoint %q: %w", at, err)
	}
	t.io.Lock()
	defer t.io.Unlock()
	l := t.list.clone()
	labels[0].created = l.segments[i].names[j].created
	l.segments[i].names = append(l.segments[i].names, labels...)
	return t.save(l)
}

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
		merged.id = l.nextID
		f, err := createBits(t.fsys, t.dir, l.volume, merged.id, bits.words, merged.blocks)
		if err != nil {
			return err
		}
		merged.sum = sumOf(f.sums)
		if err := f.close(); err != nil {
			return err
		}
		l.nextID++
	}
	l.segments = slices.Replace(l.segments, i-1, i+1, merged)
	return t.saveLocked(l)
}

// Checkpoints returns all names, oldest position first. It reads the record of
// all changes, 2 MiB for each TiB and position.
func (t *Tracker) Checkpoints() []Checkpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.list.idle() {
		return nil
	}
	var out []Checkpoint
	b := NewBitmap(t.list.mostBlocks())
	b.Or(t.live())
	doubt := t.newestDoubt()
	for i := len(t.list.segments) - 1; i >= 0; i-- {
		s := t.list.segments[i]
		if i < len(t.list.segments)-1 && doubt == "" {
			doubt, _ = readBits(t.fsys, t.dir, t.list.volume, s, b)
		}
		if doubt != "" {
			b.Set(0, b.n)
		}
		dirty := b.Count()
		for _, n := range slices.Backward(s.names) {
			out = append(out, Checkpoint{Name: n.name, Created: n.created, Doubt: doubt, DirtyBlocks: dirty})
		}
	}
	slices.Reverse(out)
	return out
}

// newestDoubt returns why the newest segment cannot be trusted. The mutex mu is
// held.
func (t *Tracker) newestDoubt() string {
	t.io.Lock()
	defer t.io.Unlock()
	if s := t.list.newest(); s.doubt != "" || t.failed == nil || errors.Is(t.failed, ErrClosed) {
		return s.doubt
	}
	return t.failed.Error()
}

// Dirty returns the blocks that may differ between the positions of two
// checkpoints, in either order; to "" is the present. Its length is the largest
// number of blocks that the volume had between them, and blocks that it did not
// have at one of them are set. The second result is "", or why the record of
// changes cannot be trusted; all bits are set then.
func (t *Tracker) Dirty(from, to string) (*Bitmap, string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first, _, ok := t.list.find(from)
	if !ok {
		return nil, "", fmt.Errorf("checkpoint %q: %w", from, ErrCheckpoint)
	}
	end := len(t.list.segments)
	if to != "" {
		if end, _, ok = t.list.find(to); !ok {
			return nil, "", fmt.Errorf("checkpoint %q: %w", to, ErrCheckpoint)
		}
	}
	first, end = min(first, end), max(first, end)
	blocks := int64(0)
	for _, s := range t.list.segments[first:max(end, first+1)] {
		blocks = max(blocks, s.blocks)
	}
	b := NewBitmap(blocks)
	why := ""
	for i, s := range t.list.segments[first:end] {
		var doubt string
		if first+i == len(t.list.segments)-1 {
			b.Or(t.live())
			doubt = t.newestDoubt()
		} else {
			doubt, _ = readBits(t.fsys, t.dir, t.list.volume, s, b)
		}
		if why == "" {
			why = doubt
		}
	}
	if why != "" {
		b.Set(0, b.n)
	}
	return b, why, nil
}

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
