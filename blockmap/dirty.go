package blockmap

import (
	"errors"
	"fmt"
	"slices"
)

// Checkpoints returns all names, oldest position first, with what is known
// without reading the record of changes.
func (t *Tracker) Checkpoints() []Checkpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Checkpoint
	doubt := t.newestDoubt()
	for _, s := range slices.Backward(t.list.segments) {
		if doubt == "" {
			doubt = s.doubt
		}
		for _, n := range slices.Backward(s.names) {
			out = append(out, Checkpoint{Name: n.name, Created: n.created, Doubt: doubt})
		}
	}
	slices.Reverse(out)
	return out
}

// Changes returns all names, oldest position first, with what changed since. It
// reads the record of all changes, 2 MiB for each TiB and position, and nobody
// waits for it.
func (t *Tracker) Changes() []Change {
	t.mu.Lock()
	h := t.hold(0, len(t.list.segments))
	most := t.list.mostBlocks()
	t.mu.Unlock()
	defer h.close()
	var out []Change
	b := NewBitmap(most)
	doubt := ""
	for _, p := range slices.Backward(h) {
		if doubt == "" {
			doubt = p.read(b)
		}
		if doubt != "" {
			b.Set(0, b.n)
		}
		dirty := b.Count()
		for _, n := range slices.Backward(p.seg.names) {
			out = append(out, Change{Checkpoint{Name: n.name, Created: n.created, Doubt: doubt}, dirty})
		}
	}
	slices.Reverse(out)
	return out
}

// held are segments as they were at one moment, to be read whatever happens to
// them since.
type held []heldSegment

type heldSegment struct {
	closedBits
	live *Bitmap // a copy of the newest's bits; nil for others
}

// hold holds the segments from first to before end. The mutex mu is held, which
// the next snapshot of the volume waits for with all guests held up: nothing is
// read here.
func (t *Tracker) hold(first, end int) held {
	var h held
	for i, s := range t.list.segments[first:end] {
		if first+i == len(t.list.segments)-1 {
			h = append(h, heldSegment{closedBits{seg: s, doubt: t.newestDoubt()}, t.live()})
		} else {
			h = append(h, heldSegment{closedBits: openClosed(t.fsys, t.dir, t.list.volume, s)})
		}
	}
	return h
}

// read sets the bits of the segment in dst and returns why they cannot be trusted.
func (s heldSegment) read(dst *Bitmap) (doubt string) {
	if s.live != nil {
		dst.Or(s.live)
		return s.doubt
	}
	doubt, _ = s.closedBits.read(dst)
	return doubt
}

func (h held) close() {
	for _, s := range h {
		s.close()
	}
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
	h, blocks, err := t.between(from, to)
	if err != nil {
		return nil, "", err
	}
	defer h.close()
	b := NewBitmap(blocks)
	why := ""
	for _, s := range h {
		if why == "" {
			why = s.read(b)
		}
	}
	if why != "" {
		b.Set(0, b.n)
	}
	return b, why, nil
}

// between holds the segments between two positions, and returns the most blocks
// that the volume had in them.
func (t *Tracker) between(from, to string) (h held, blocks int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	first, _, ok := t.list.find(from)
	if !ok {
		return nil, 0, fmt.Errorf("checkpoint %q: %w", from, ErrCheckpoint)
	}
	end := len(t.list.segments)
	if to != "" {
		if end, _, ok = t.list.find(to); !ok {
			return nil, 0, fmt.Errorf("checkpoint %q: %w", to, ErrCheckpoint)
		}
	}
	first, end = min(first, end), max(first, end)
	for _, s := range t.list.segments[first:max(end, first+1)] {
		blocks = max(blocks, s.blocks)
	}
	return t.hold(first, end), blocks, nil
}
