package repository

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// maxTracked is about how many chunks a prune tells apart, to see which packs are
// worth compacting: 8 bytes each, twice that while they are gathered. Of a larger
// repository it looks at a random part of the packs; the next one at another.
const maxTracked = 8 << 20

// liveChunks are the chunks that backups need, of a part of the packs.
//
// Of each it keeps 64 bits: 47 of the chunk's ID and 17 of its length. Two chunks
// of one pack that look alike are both taken for alive, never for dead.
type liveChunks struct {
	off    bool   // nobody asks
	salt   uint64 // which part
	share  uint64 // how large, of all 64-bit numbers
	packs  map[chunk.PackID]*liveSet
	moved  map[chunk.PackID]ident // packs that moved: by what their part goes, so that those that moved together are in one
	forced map[chunk.PackID]bool  // tracked whatever the part is
	frozen bool                   // what is not tracked by now never is
	until  map[string]time.Time   // by project: what any of its backups reaches is retained to here
}

// liveSet is what is alive of one pack.
type liveSet struct {
	project string
	keys    []uint64 // of which the first few are in order, none twice
	ordered int
}

// expect says how many chunks there may be.
func (l *liveChunks) expect(n int64, salt uint64) {
	l.salt, l.share = salt, ^uint64(0)
	if n > maxTracked {
		l.share = l.share / uint64(n) * maxTracked
	}
}

// tracks says whether the chunks of a pack are told apart.
func (l *liveChunks) tracks(id chunk.PackID) bool {
	if l.forced[id] || l.off {
		return l.forced[id]
	}
	part := id[len(id)-8:]
	if s, ok := l.moved[id]; ok {
		part = s[len(s)-8:]
	}
	return binary.BigEndian.Uint64(part)^l.salt <= l.share
}

// add notes that a backup of the project needs a chunk.
func (l *liveChunks) add(project string, ref chunk.Ref) {
	s := l.packs[ref.Pack]
	if s == nil {
		if l.frozen || !l.tracks(ref.Pack) {
			return
		}
		s = &liveSet{project: project}
		l.packs[ref.Pack] = s
	}
	s.keys = append(s.keys, fingerprint(ref.ID)<<lengthBits|uint64(ref.Length)&(1<<lengthBits-1))
	if len(s.keys) > 2*s.ordered+64 {
		s.order()
	}
}

// retain notes to when what a backup of a project reaches is retained.
func (l *liveChunks) retain(project string, to time.Time) {
	if to.After(l.until[project]) {
		l.until[project] = to
	}
}

// lengthBits is enough for the length of a sealed chunk.
const lengthBits = 17

// fingerprint is what is kept of a chunk's ID.
func fingerprint(id chunk.ID) uint64 { return binary.BigEndian.Uint64(id[:]) >> lengthBits }

func (s *liveSet) order() {
	slices.Sort(s.keys)
	s.keys = slices.Compact(s.keys)
	s.ordered = len(s.keys)
}

// has says whether a chunk is alive.
func (s *liveSet) has(id chunk.ID) bool {
	if s == nil {
		return false
	}
	if s.ordered < len(s.keys) {
		s.order()
	}
	want := fingerprint(id)
	i, _ := slices.BinarySearch(s.keys, want<<lengthBits)
	return i < len(s.keys) && s.keys[i]>>lengthBits == want
}

// within says whether all that is alive is among the chunks of a forwarding.
func (s *liveSet) within(f *forwarding) bool {
	moved := make(map[uint64]bool, len(f.chunks))
	for _, c := range f.chunks {
		moved[fingerprint(c.id)] = true
	}
	return !slices.ContainsFunc(s.keys, func(k uint64) bool { return !moved[k>>lengthBits] })
}

// bytes is the sum of the lengths of all.
func (s *liveSet) bytes() int64 {
	if s == nil {
		return 0
	}
	s.order()
	var n int64
	for _, k := range s.keys {
		n += int64(k & (1<<lengthBits - 1))
	}
	return n
}
