package serve

import (
	"sync"
	"sync/atomic"

	"github.com/cairnbackup/cairn/blockmap"
)

// dirtyMap keeps the bitmap that was asked for last, because a client walks
// it in many requests, it is 2 MiB per TiB, and to make it takes milliseconds
// per TiB and checkpoint. A snapshot's changes with the checkpoints only. A volume's is kept
// only as long as nothing was written: whoever changes the volume marks the
// blocks, then calls changed, and only then answers, so that a bitmap that is
// still valid when a request comes has all that was answered before.
type dirtyMap struct {
	valid atomic.Bool

	mu   sync.Mutex
	from string
	b    *blockmap.Bitmap // nil = none
}

// changed makes the bitmap stale. It is called for each write: while nobody
// maps, it only loads.
func (m *dirtyMap) changed() {
	if m.valid.Load() {
		m.valid.Store(false)
	}
}

// get returns the bitmap since a checkpoint, which nobody changes: the kept
// one if it is valid and steady is true, or a fresh one.
func (m *dirtyMap) get(from string, steady bool, compute func(from string) (*blockmap.Bitmap, string, error)) (*blockmap.Bitmap, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if steady && m.b != nil && m.from == from && m.valid.Load() {
		return m.b, nil
	}
	m.b = nil           // before the next one is made
	m.valid.Store(true) // before the bits are read, so that no change in between is lost
	b, _, err := compute(from)
	if err != nil {
		return nil, err
	}
	m.from, m.b = from, b
	return b, nil
}

// drop frees the bitmap.
func (m *dirtyMap) drop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.b = nil
}
