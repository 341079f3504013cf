package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// Healing old backups. A pack that is beyond repair is compacted when everything that
// backups need of it can be had: what cannot be read in it any more from where a later
// backup stored the same chunk again. All of it moves to new packs, as if the rest were
// dead, so that what holds for a compaction holds here: the forwarding has all that
// anybody needs, and the pack goes behind it. A chunk is what its ID says, wherever
// it was found. If one cannot be had, nothing of the pack moves and it stays: its shards
// may come back.

// remedy is what a prune knows of packs that it may heal.
type remedy struct {
	packs  map[chunk.PackID]map[chunkKey]chunk.Location // all that backups name in each
	copies map[projectChunk][]chunk.Location            // where else backups have those chunks
}

// projectChunk names a chunk of any project.
type projectChunk struct {
	project string
	chunkKey
}

// maxCopies is how many other places of a chunk are remembered.
const maxCopies = 2

// errHopeless says that a pack cannot be healed now.
var errHopeless = errors.New("nobody has stored again what backups need of it")

// findRemedies is the part of P4 that says which packs that are beyond repair are
// healed.
func (p *pruner) findRemedies(ctx context.Context) error {
	candidates := make(map[chunk.PackID]bool)
	left := maxMoved
	for _, id := range slices.SortedFunc(maps.Keys(p.damage.packs), comparePacks) {
		live := p.chunks.packs[id]
		_, moved := p.moves.newest[id]
		if moved || len(p.moves.users[id]) > 0 || live == nil || len(live.keys) > left || p.owners[packSession(id)] == Undecided {
			continue // also one to which chunks of others moved: a forwarding does not say where else they are
		}
		left -= len(live.keys)
		candidates[id] = true
	}
	if err := p.seekRemedies(ctx, candidates); err != nil {
		return err
	}
	for id := range p.heals.packs {
		switch err := p.hopes(ctx, id); {
		case ctx.Err() != nil:
			return fmt.Errorf("canceled: %w", context.Cause(ctx))
		case err != nil:
			delete(p.heals.packs, id)
		}
	}
	return nil
}

// renewRemedies is the part of P7: what backups need that were made since counts too.
func (p *pruner) renewRemedies(ctx context.Context) error {
	packs := make(map[chunk.PackID]bool)
	for _, c := range p.plans {
		for id := range c.packs {
			if p.heals.packs[id] != nil {
				packs[id] = true
			}
		}
	}
	return p.seekRemedies(ctx, packs)
}

// seekRemedies is remedies whose failure heals nothing and stops nothing.
func (p *pruner) seekRemedies(ctx context.Context, packs map[chunk.PackID]bool) error {
	found, err := p.remedies(ctx, packs)
	if ctx.Err() != nil {
		return fmt.Errorf("canceled: %w", context.Cause(ctx))
	}
	if p.heals = found; err != nil {
		p.heals = remedy{}
		addProblem(&p.report.Problems, fmt.Sprintf("packs that are beyond repair are not healed: %v", err))
	}
	return nil
}

// hopes says whether all can be had that backups need of a pack. Copies are not
// read yet.
func (p *pruner) hopes(ctx context.Context, id chunk.PackID) error {
	project := p.chunks.packs[id].project
	d, err := p.r.domain(project)
	if err != nil {
		return err
	}
	for key, at := range p.heals.packs[id] {
		if len(p.heals.copies[projectChunk{project, key}]) > 0 {
			continue
		}
		if _, err := p.r.readChunk(ctx, d, key.kind, chunk.Ref{ID: key.id, Location: at}); err != nil {
			return fmt.Errorf("%w: %w", errHopeless, err)
		}
	}
	return nil
}

// remedies goes through all backups that are alive once more, for what they have in
// the given packs, and for the same chunks elsewhere.
func (p *pruner) remedies(ctx context.Context, packs map[chunk.PackID]bool) (remedy, error) {
	out := remedy{packs: make(map[chunk.PackID]map[chunkKey]chunk.Location), copies: make(map[projectChunk][]chunk.Location)}
	if len(packs) == 0 {
		return out, nil
	}
	wanted := make(map[uint64]bool)
	for id := range packs {
		out.packs[id] = make(map[chunkKey]chunk.Location)
		for _, k := range p.chunks.packs[id].keys {
			wanted[k>>lengthBits] = true
		}
	}
	names, err := p.listRoots(ctx)
	if err != nil {
		return out, err
	}
	seen := make(map[chunk.ID]struct{})
	for name, ms := range names {
		if s, _ := rootSession(name); !p.live[s] {
			continue
		}
		rt, err := p.r.readRoot(ctx, ms, name)
		if err != nil {
			return out, err
		}
		d, err := p.r.domain(rt.rec.Project)
		if err != nil {
			return out, err
		}
		tree, err := manifest.Open(rt.geometry(), rt.top, p.r.loader(d))
		if err == nil {
			err = tree.Reach(ctx, func(id chunk.ID) bool {
				_, again := seen[id]
				seen[id] = struct{}{}
				return again
			}, func(k chunk.Kind, ref chunk.Ref) {
				key := chunkKey{k, ref.ID}
				if mine := out.packs[ref.Pack]; mine != nil {
					mine[key] = ref.Location
				} else if wanted[fingerprint(ref.ID)] && !p.damage.has(ref.Pack) {
					in := projectChunk{rt.rec.Project, key}
					if at := out.copies[in]; len(at) < maxCopies && !slices.Contains(at, ref.Location) {
						out.copies[in] = append(at, ref.Location)
					}
				}
			}, nil)
		}
		if err != nil {
			return out, fmt.Errorf("backup %s: %w", rt.rec.BackupID, err)
		}
	}
	return out, nil
}

// heal returns the plaintext of a chunk of a pack that is beyond repair, from there or
// from wherever else it is.
func (m *mover) heal(ctx context.Context, c *movedChunk) ([]byte, error) {
	plain, err := m.p.r.readChunk(ctx, m.d, c.kind, chunk.Ref{ID: c.id, Location: c.to})
	for _, at := range m.p.heals.copies[projectChunk{m.c.project, chunkKey{c.kind, c.id}}] {
		if err == nil || ctx.Err() != nil {
			break
		}
		var failed error
		if plain, failed = m.p.r.readChunk(ctx, m.d, c.kind, chunk.Ref{ID: c.id, Location: at}); failed == nil {
			err = nil
		}
	}
	return plain, err
}
