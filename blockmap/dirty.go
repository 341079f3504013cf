package blockmap

import (
	"errors"
	"fmt"
	"slices"
)

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
	for i, s := range slices.Backward(t.list.segments) {
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
