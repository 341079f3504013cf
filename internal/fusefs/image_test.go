package fusefs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
)

// mapImage is an image whose content follows from the offset: in its data runs
// every 8 bytes hold their own offset, xor a seed; the rest is zeros.
type mapImage struct {
	size   int64
	seed   uint64
	data   []run // sorted, data only
	step   int64 // Extents stops after so many bytes; 0 = never
	block  chan struct{}
	fail   error
	closed atomic.Bool
	reads  atomic.Int64
	maps   atomic.Int64
}

func (m *mapImage) Size() int64 { return m.size }

func (m *mapImage) isData(off int64) bool {
	for _, r := range m.data {
		if r.off <= off && off < r.end {
			return true
		}
	}
	return false
}

// fillAt computes the content; off and len(p) are multiples of 8 or not.
func (m *mapImage) fillAt(p []byte, off int64) {
	clear(p)
	var word [8]byte
	for _, r := range m.data {
		from, to := max(r.off, off), min(r.end, off+int64(len(p)))
		for at := from; at < to; {
			base := at &^ 7
			binary.LittleEndian.PutUint64(word[:], uint64(base)^m.seed)
			at += int64(copy(p[at-off:to-off], word[at-base:]))
		}
	}
}

func (m *mapImage) ReadAt(ctx context.Context, p []byte, off int64) error {
	m.reads.Add(1)
	if m.closed.Load() {
		return errors.New("read of a closed image")
	}
	if off < 0 || off+int64(len(p)) > m.size {
		return fmt.Errorf("read of %d bytes at %d beyond the end", len(p), off)
	}
	if m.block != nil {
		select {
		case <-m.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if m.fail != nil {
		return m.fail
	}
	m.fillAt(p, off)
	return nil
}

func (m *mapImage) Extents(_ context.Context, off, n int64) ([]blockmap.Extent, error) {
	m.maps.Add(1)
	if m.closed.Load() {
		return nil, errors.New("extents of a closed image")
	}
	end := off + n
	if m.step > 0 {
		end = min(end, off+m.step)
	}
	var out []blockmap.Extent
	add := func(from, to int64, s blockmap.State) {
		if from, to = max(from, off), min(to, end); from < to {
			out = append(out, blockmap.Extent{Offset: from, Length: to - from, State: s})
		}
	}
	at := int64(0)
	for _, r := range m.data {
		add(at, r.off, blockmap.Hole|blockmap.Zero)
		add(r.off, r.end, blockmap.Data)
		at = r.end
	}
	add(at, m.size, blockmap.Hole|blockmap.Zero)
	return out, nil
}

func (m *mapImage) Close() error {
	if m.closed.Swap(true) {
		return errors.New("closed twice")
	}
	return nil
}

// mapSource is a source of such images.
type mapSource struct {
	mu      sync.Mutex
	entries []Entry
	images  map[string]func() *mapImage
	opened  map[string][]*mapImage
	listErr error
}

func newSource() *mapSource {
	return &mapSource{images: make(map[string]func() *mapImage), opened: make(map[string][]*mapImage)}
}

func (s *mapSource) add(e Entry, img func() *mapImage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.Size = img().size
	s.entries = append(s.entries, e)
	s.images[e.ID] = img
}

func (s *mapSource) List(context.Context) ([]Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Entry(nil), s.entries...), s.listErr
}

func (s *mapSource) Open(_ context.Context, id string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.images[id]
	if !ok {
		return nil, errors.New("no such backup")
	}
	img := f()
	s.opened[id] = append(s.opened[id], img)
	return img, nil
}

// state counts the images of a backup that were opened and those still open.
func (s *mapSource) state(id string) (opened, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, img := range s.opened[id] {
		opened++
		if !img.closed.Load() {
			open++
		}
	}
	return opened, open
}

var noon = time.Date(2026, 3, 4, 12, 30, 15, 0, time.UTC)

// sparse is 64 MiB with data in three places, the last a short tail.
func sparse() *mapImage {
	return &mapImage{size: 64<<20 + 1000, seed: 0x1122, data: []run{
		{off: 0, end: 1 << 20}, {off: 10 << 20, end: 13<<20 + 4096}, {off: 64 << 20, end: 64<<20 + 1000},
	}}
}
