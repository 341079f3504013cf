package repository

import (
	"bytes"
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// Of the forwardings of a pack, those count whose compactions are committed, and
// of these the one with the greatest ID: a compaction takes one that is greater
// than all it sees, and moves all that anybody needs. So the others may go, and
// prunes that see different ones at the same time never drop the last. What is
// aborted leads nowhere; what is not decided is left alone.

// readsAtOnce is how many forwardings are read at once.
const readsAtOnce = 8

// forwardSeen is a forwarding that some store has.
type forwardSeen struct {
	name    string
	session ident // of its compaction
}

// movesSeen is what a prune knows of forwardings.
type movesSeen struct {
	all     map[chunk.PackID][]forwardSeen  // by the pack that moved
	newest  map[chunk.PackID]forwardSeen    // of packs that are marked: what counts
	users   map[chunk.PackID][]chunk.PackID // marked packs whose chunks are in this one
	alive   map[chunk.PackID]int64          // sealed bytes in this pack that those need
	certain map[ident]bool                  // compactions that something goes for
	remains map[chunk.PackID]bool           // packs that moved and are there all the same
	rescued map[chunk.PackID]bool           // packs that somebody needs since P4
	strays  []string                        // names of forwardings that go
	latest  ident                           // the greatest ID that was seen
}

// listForwardings finds where compacted packs went.
func (p *pruner) listForwardings(ctx context.Context) (map[chunk.PackID][]forwardSeen, error) {
	all := make(map[chunk.PackID][]forwardSeen)
	seen := make(map[string]bool)
	err := p.list(ctx, forwardPrefix, func(_ *member, i objstore.Info) {
		old, session, ok := parseForwardName(i.Name)
		if !ok || seen[i.Name] {
			return
		}
		seen[i.Name] = true
		all[old] = append(all[old], forwardSeen{i.Name, session})
	})
	return all, err
}

// seeMoves is the part of P4 before the roots: which packs were compacted, and
// whose chunks the prune tells apart.
func (p *pruner) seeMoves(ctx context.Context) error {
	all, err := p.listForwardings(ctx)
	if err != nil {
		return err
	}
	p.moves = movesSeen{
		all: all, newest: make(map[chunk.PackID]forwardSeen), users: make(map[chunk.PackID][]chunk.PackID),
		alive: make(map[chunk.PackID]int64), certain: make(map[ident]bool), remains: make(map[chunk.PackID]bool),
		rescued: make(map[chunk.PackID]bool),
	}
	for _, fs := range all {
		for _, f := range fs {
			if bytes.Compare(f.session[:], p.moves.latest[:]) > 0 {
				p.moves.latest = f.session
			}
		}
	}
	p.trackChunks()
	return nil
}

// newestMove returns the forwarding of a pack that counts; the others that are
// decided are strays.
func (p *pruner) newestMove(old chunk.PackID) (newest forwardSeen, ok bool) {
	for _, f := range p.moves.all[old] {
		switch p.owners[f.session] {
		case Committed:
			if ok && bytes.Compare(f.session[:], newest.session[:]) < 0 {
				p.moves.strays = append(p.moves.strays, f.name)
				continue
			}
			if ok {
				p.moves.strays = append(p.moves.strays, newest.name)
			}
			newest, ok = f, true
		case Aborted:
			p.moves.strays = append(p.moves.strays, f.name)
		default:
		}
	}
	return newest, ok
}

// markTargets marks the packs to which packs that are marked were compacted.
func (p *pruner) markTargets(ctx context.Context) error {
	var read []forwardSeen
	for old, all := range p.moves.all {
		if !p.marked[old] {
			continue
		}
		newest, ok := p.newestMove(old)
		if !ok {
			continue
		}
		p.moves.newest[old] = newest
		if _, there := p.packs[old]; there || len(all) > 1 {
			p.moves.certain[newest.session] = true
		}
		read = append(read, newest)
	}
	return p.readMoves(ctx, read, p.markMove)
}

// rescueTargets is markTargets at P7, for packs that nobody seemed to need at P4:
// whatever may lead to their chunks stays.
func (p *pruner) rescueTargets(ctx context.Context) error {
	var read []forwardSeen
	for old, all := range p.moves.all {
		if _, known := p.moves.newest[old]; p.marked[old] && !known {
			read = append(read, all...)
			p.moves.rescued[old] = true
		}
	}
	return p.readMoves(ctx, read, func(f *forwarding) {
		for _, t := range f.targets() {
			p.marked[t] = true
		}
	})
}

// readMoves calls fn for each of the forwardings, never twice at once.
func (p *pruner) readMoves(ctx context.Context, fs []forwardSeen, fn func(*forwarding)) error {
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	for _, f := range fs {
		group.Go(func() error {
			read, err := p.r.readForwarding(gctx, p.ms, f.name)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			fn(read)
			return nil
		})
	}
	return group.Wait() //nolint:wrapcheck // each names its object
}

// markMove marks the packs that have the chunks of a pack now, and notes what is
// alive in them.
func (p *pruner) markMove(f *forwarding) {
	live := p.chunks.packs[f.old]
	for _, c := range f.chunks {
		if live.has(c.id) {
			p.moves.alive[c.to.Pack] += int64(c.to.Length)
		}
	}
	for _, t := range f.targets() {
		p.marked[t] = true
		p.moves.users[t] = append(p.moves.users[t], f.old)
	}
	if _, there := p.packs[f.old]; there && live != nil && live.within(f) {
		p.moves.remains[f.old] = true
	}
}
