package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// A check that reads data publishes the packs that it found to be beyond repair,
// so that the next backup that still sees their content stores it again:
//
//   - a session does not use a chunk of such a pack again, whatever the index or
//     the parent says, and drops it from the index;
//   - a node of the parent in such a pack counts as unreadable, so that what it
//     names is read from the source;
//   - a run reads the blocks anew whose chunk is in such a pack.
//
// A list is a whole statement: it takes the place of all that have a lower number.
// Two that were written at once have the same one and both count. So a later check
// says what became of a pack without anybody deleting anything; prunes remove what
// is out of date. A list that is wrong, missing or comes too late costs space or
// time, never data: a pack goes only when all that anybody needs of it was moved
// (compactheal.go).

// maxDamage is how many packs one list names.
const maxDamage = 1 << 20

// damage is what the newest lists of damaged packs say.
type damage struct {
	packs   map[chunk.PackID]struct{}
	lists   map[ident]struct{} // that were read
	version uint64             // their number; 0 = there is no list
}

func newDamage() *damage {
	return &damage{packs: make(map[chunk.PackID]struct{}), lists: make(map[ident]struct{})}
}

// has reports whether a pack is known to be damaged. A nil damage has none.
func (d *damage) has(p chunk.PackID) bool {
	if d == nil {
		return false
	}
	_, ok := d.packs[p]
	return ok
}

func (d *damage) size() int {
	if d == nil {
		return 0
	}
	return len(d.packs)
}

// within reports whether o has all packs of d.
func (d *damage) within(o *damage) bool {
	if d.size() > o.size() {
		return false
	}
	for p := range d.packs {
		if !o.has(p) {
			return false
		}
	}
	return true
}

// decode adds the payload of a list: a count and so many packs, ascending.
func (d *damage) decode(payload []byte) error {
	const packEntry = len(chunk.PackID{})
	if len(payload) < 4 {
		return fmt.Errorf("%d bytes: %w", len(payload), errEnvelope)
	}
	n := int64(binary.BigEndian.Uint32(payload))
	payload = payload[4:]
	if n > maxDamage || int64(len(payload)) != n*int64(packEntry) {
		return fmt.Errorf("%d bytes for %d packs: %w", len(payload), n, errEnvelope)
	}
	var last chunk.PackID
	for i := range n {
		id := chunk.PackID(payload[:packEntry])
		if i > 0 && comparePacks(last, id) >= 0 {
			return fmt.Errorf("packs out of order: %w", errEnvelope)
		}
		d.packs[id] = struct{}{}
		last, payload = id, payload[packEntry:]
	}
	return nil
}

// encode is the inverse of decode. Packs beyond what a list can name are left to
// the list that follows.
func (d *damage) encode() []byte {
	ids := slices.SortedFunc(maps.Keys(d.packs), comparePacks)
	ids = ids[:min(len(ids), maxDamage)]
	out := binary.BigEndian.AppendUint32(nil, uint32(len(ids))) //nolint:gosec // at most maxDamage
	for _, id := range ids {
		out = append(out, id[:]...)
	}
	return out
}

// heed reads the lists for a session. One that cannot read them goes on: it heals
// less.
func (s *Session) heed(ctx context.Context) {
	d, err := s.r.readDamage(ctx)
	if err != nil {
		s.r.warn(ctx, "damaged packs not known", slog.Any("error", err))
		return
	}
	s.damage = d
}

// avoids reports whether nothing that is in a pack may be used again.
func (s *Session) avoids(p chunk.PackID) bool { return s.avoid.has(p) || s.damage.has(p) }

// Bad returns what reports whether a chunk is known to be damaged where it is, nil
// when none can be that the parent names: the Bad of a backup.Plan. Whoever asks
// puts the content of every chunk again that it reports, if the source still has it.
func (s *Session) Bad() func(chunk.Ref) bool {
	s.mu.Lock()
	s.heeded = true
	s.mu.Unlock()
	if s.damage.size() == 0 || s.parent != nil && s.r.soundSince(s.parentID, s.damage) {
		return nil
	}
	return func(ref chunk.Ref) bool { return s.damage.has(ref.Pack) }
}

// DamagedPacks returns how many packs are known to be damaged beyond repair; the
// backup uses nothing that is in one.
func (s *Session) DamagedPacks() int { return s.damage.size() }

// noteSound remembers that a backup names no pack of those that its session knew to
// be damaged: the next incremental need not look through its manifest for them.
func (s *Session) noteSound(backup string) {
	s.mu.Lock()
	heeded := s.heeded
	s.mu.Unlock()
	if !heeded || s.damage.size() == 0 {
		return
	}
	const most = 4096
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if len(s.r.sound) >= most {
		s.r.sound = nil
	}
	if s.r.sound == nil {
		s.r.sound = make(map[string]*damage)
	}
	s.r.sound[backup] = s.damage
}

// soundSince reports whether a backup was made in the knowledge of all damage in d.
func (r *Repository) soundSince(backup string, d *damage) bool {
	r.mu.Lock()
	before := r.sound[backup]
	r.mu.Unlock()
	return before != nil && d.within(before)
}

// errDamagedNode says that a node is in a pack that is known to be damaged.
var errDamagedNode = errors.New("its pack is known to be damaged")

// soundLoader refuses nodes in damaged packs: one that can be read by chance, or is
// in the cache, would become a part of the new backup.
type soundLoader struct {
	manifest.Loader
	bad *damage
}

// LoadNode implements manifest.Loader.
func (l soundLoader) LoadNode(ctx context.Context, ref chunk.Ref) ([]byte, error) {
	if l.bad.has(ref.Pack) {
		return nil, fmt.Errorf("pack %s: %w: %w", ref.Pack, errDamagedNode, ErrDamaged)
	}
	return l.Loader.LoadNode(ctx, ref) //nolint:wrapcheck // nothing to add
}

// soundParent returns the manifest of a parent as far as it is not in damaged
// packs. A leaf that is damaged is read from the source; a node above leaves is what
// everything else hangs on, so that the parent cannot be used without it.
func (s *Session) soundParent(ctx context.Context, rt *root, tree *manifest.Tree) (*manifest.Tree, error) {
	if s.damage.size() == 0 {
		return tree, nil
	}
	sound, err := manifest.Open(rt.geometry(), rt.top, soundLoader{s.r.loader(s.domain), s.damage})
	if err == nil {
		err = sound.Nodes(ctx, func(int, int64, chunk.Ref) error { return nil }, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("its manifest is damaged: %w", err)
	}
	return sound, nil
}
