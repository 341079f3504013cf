package blockmap

import (
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
	next := segment{blocks: l.mostBlocks(), names: names}
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
		s.sum = t.sum()
	}
	if err := t.prepare(next.blocks); err != nil {
		return err
	}
	bits := t.spare
	next.id = bits.seal.owner
	l.segments = append(l.segments, next)
	l.nextID = max(l.nextID, next.id+1)
	l.epoch++
	if err := t.save(l); err != nil {
		return err
	}
	// From here on nothing fails: the records of the log are of an older
	// epoch, so that they say nothing about this segment.
	if t.bits != nil {
		_ = t.bits.close() // Its content is durable.
	}
	t.bits, t.spare, t.exact, t.unsure = bits, nil, false, nil
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

// PrepareCheckpoint does what of the next AddCheckpoint can be done while marks
// go on, so that they wait for less. Without it AddCheckpoint does it.
func (t *Tracker) PrepareCheckpoint() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.io.Lock()
	defer t.io.Unlock()
	if t.failed != nil {
		return fmt.Errorf("prepare a checkpoint: %w", t.failed)
	}
	if err := t.prepare(t.list.mostBlocks()); err != nil {
		return fmt.Errorf("prepare a checkpoint: %w", err)
	}
	return nil
}

// prepare makes the file of the next segment, unless it is there.
func (t *Tracker) prepare(blocks int64) error {
	if t.spare != nil && int64(len(t.spare.sums)) == pagesOf(blocks) {
		return nil
	}
	if t.spare != nil {
		_ = t.spare.close() // The next sweep removes it.
		t.spare = nil
	}
	var err error
	t.spare, err = createBits(t.fsys, t.dir, t.list.volume, t.freeID(), nil, blocks)
	return err
}

// freeID returns an ID that no file has that matters.
func (t *Tracker) freeID() uint64 {
	if t.spare != nil {
		return max(t.list.nextID, t.spare.seal.owner+1)
	}
	return t.list.nextID
}
