package repository

import (
	"sync"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// recentEntries is how many chunks of its own a session remembers at least:
// about 8 MiB.
const recentEntries = 32 << 10

// recent remembers where the last chunks are that a session stored. Two
// generations bound it: when the younger is full, the older is forgotten.
type recent struct {
	limit int

	mu         sync.Mutex
	young, old map[chunk.ID]chunk.Location
}

func newRecent(limit int) *recent {
	return &recent{limit: limit, young: make(map[chunk.ID]chunk.Location)}
}

func (r *recent) get(id chunk.ID) (chunk.Location, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.young[id]
	if ok {
		return at, true
	}
	if at, ok = r.old[id]; ok {
		r.addLocked(id, at) // used: worth another generation
	}
	return at, ok
}

func (r *recent) put(id chunk.ID, at chunk.Location) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addLocked(id, at)
}

func (r *recent) addLocked(id chunk.ID, at chunk.Location) {
	if len(r.young) >= r.limit {
		r.old, r.young = r.young, make(map[chunk.ID]chunk.Location, r.limit)
	}
	r.young[id] = at
}
