package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// chunkKey names a chunk of a project.
type chunkKey struct {
	kind chunk.Kind
	id   chunk.ID
}

// findChunks says where all is that is alive of the sources.
func (m *mover) findChunks(ctx context.Context) error {
	for _, old := range slices.SortedFunc(maps.Keys(m.c.sources), comparePacks) {
		f, err := m.where(ctx, old)
		if cerr := ctx.Err(); cerr != nil {
			return fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		if err != nil {
			m.problem(old, err)
			continue
		}
		m.before[old] = f.targets()
		live := m.p.chunks.packs[old]
		f.chunks = slices.DeleteFunc(f.chunks, func(c movedChunk) bool { return !live.has(c.id) })
		slices.SortStableFunc(f.chunks, compareMoved)
		f.chunks = slices.CompactFunc(f.chunks, func(a, b movedChunk) bool { return compareMoved(a, b) == 0 })
		if !live.within(f) {
			m.problem(old, fmt.Errorf("not all chunks that backups need are in it: %w", ErrDamaged))
			continue
		}
		m.sources[old] = f
	}
	return nil
}

// where returns the chunks of a pack that manifests name, and where they are.
func (m *mover) where(ctx context.Context, old chunk.PackID) (*forwarding, error) {
	if newest, ok := m.p.moves.newest[old]; ok {
		return m.p.r.readForwarding(ctx, m.p.ms, newest.name)
	}
	f := &forwarding{old: old}
	if needed := m.p.heals.packs[old]; needed != nil {
		for key, at := range needed {
			f.chunks = append(f.chunks, movedChunk{key.kind, key.id, at})
		}
		return f, nil
	}
	toc, err := m.p.contents(ctx, m.c.project, old)
	for _, e := range toc {
		f.chunks = append(f.chunks, movedChunk{e.Kind, e.ID, chunk.Location{Pack: old, Offset: e.Offset, Length: e.Length}})
	}
	return f, err
}

// move copies what is alive of each pack that goes.
func (m *mover) move(ctx context.Context) error {
	here := make(map[chunk.PackID][]*movedChunk)
	for _, f := range m.sources {
		for i := range f.chunks {
			if to := f.chunks[i].to.Pack; m.c.packs[to] {
				here[to] = append(here[to], &f.chunks[i])
			}
		}
	}
	w, err := m.s.Worker()
	if err != nil {
		return err
	}
	ids := slices.SortedFunc(maps.Keys(m.c.packs), comparePacks)
	for n, id := range ids {
		m.p.tell("compact", int64(n), int64(len(ids)))
		if err = m.movePack(ctx, w, id, here[id]); err != nil {
			break
		}
	}
	if err = errors.Join(err, w.Close(ctx)); err != nil {
		return err
	}
	return m.s.ship.flush(ctx)
}

// movePack copies the chunks of one pack. One that cannot be read stays.
func (m *mover) movePack(ctx context.Context, w *Worker, id chunk.PackID, chunks []*movedChunk) error {
	if m.p.moves.rescued[id] {
		return nil // somebody needs more of it now
	}
	for _, user := range append(slices.Clone(m.p.moves.users[id]), id) {
		if m.c.sources[user] && m.sources[user] == nil {
			return nil // a problem that is told
		}
	}
	read, err := m.reader(ctx, id, chunks)
	at := make([]chunk.Location, len(chunks))
	for i, c := range chunks {
		if err != nil {
			break
		}
		var plain []byte
		if plain, err = read(c); err == nil {
			var failed error
			if at[i], failed = m.place(ctx, w, c, plain); failed != nil {
				return failed
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("canceled: %w", context.Cause(ctx))
	case err != nil:
		m.problem(id, err)
		return nil
	}
	for i, c := range chunks {
		c.to = at[i]
	}
	m.moved[id] = true
	return nil
}

// place puts a chunk into a new pack, unless it is in one: it may have been in
// several.
func (m *mover) place(ctx context.Context, w *Worker, c *movedChunk, plain []byte) (chunk.Location, error) {
	key := chunkKey{c.kind, c.id}
	at, ok := m.placed[key]
	if !ok {
		ref, err := w.add(ctx, c.kind, c.id, plain)
		if err != nil {
			return at, err
		}
		at = ref.Location
		m.placed[key] = at
	}
	return at, nil
}

// reader returns what reads the chunks of a pack: all at once, or, of one that is
// beyond repair, one by one from wherever it is.
func (m *mover) reader(ctx context.Context, id chunk.PackID, chunks []*movedChunk) (func(*movedChunk) ([]byte, error), error) {
	if m.p.heals.packs[id] != nil {
		return func(c *movedChunk) ([]byte, error) { return m.heal(ctx, c) }, nil
	}
	container, first, err := m.read(ctx, id, chunks)
	return func(c *movedChunk) ([]byte, error) {
		sealed := container[int64(c.to.Offset)-first:][:c.to.Length]
		return openChunk(m.d, c.kind, chunk.Ref{ID: c.id, Location: c.to}, sealed)
	}, err
}

// read returns the part of a pack's container that has the chunks, and its offset.
func (m *mover) read(ctx context.Context, id chunk.PackID, chunks []*movedChunk) (container []byte, first int64, err error) {
	if len(chunks) == 0 {
		return nil, 0, nil
	}
	first, end := int64(math.MaxInt64), int64(0)
	for _, c := range chunks {
		if err = checkLocation(c.to); err != nil {
			return nil, 0, err
		}
		first, end = min(first, int64(c.to.Offset)), max(end, int64(c.to.Offset)+int64(c.to.Length))
	}
	container = make([]byte, end-first)
	return container, first, m.p.r.readContainer(ctx, id, container, first)
}
