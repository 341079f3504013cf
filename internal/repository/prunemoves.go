package repository

import (
	"bytes"
	"context"
	"errors"
	"slices"
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
	rescued map[chunk.PackID]bool           // P7: packs with chunks of others that somebody needs since P4
	strays  []string                        // names of forwardings that go
	later   map[chunk.PackID]bool           // packs that moved, that nobody needs, and that do not fit on the list
	held    map[chunk.PackID]bool           // packs that have chunks of those: they stay
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
		rescued: make(map[chunk.PackID]bool), later: make(map[chunk.PackID]bool), held: make(map[chunk.PackID]bool),
	}
	p.trackChunks()
	return nil
}

// candidates returns the forwardings of a pack whose compactions are committed, the
// greatest ID first. What is aborted leads nowhere.
func (p *pruner) candidates(old chunk.PackID) (fs []forwardSeen) {
	for _, f := range p.moves.all[old] {
		switch p.owners[f.session] {
		case Committed:
			fs = append(fs, f)
		case Aborted:
			p.moves.strays = append(p.moves.strays, f.name)
		default:
		}
	}
	slices.SortFunc(fs, func(a, b forwardSeen) int { return bytes.Compare(b.session[:], a.session[:]) })
	return fs
}

// markTargets marks the packs to which packs that are marked were compacted: of
// each pack the first candidate counts that is genuine anywhere, and those behind
// it are strays.
func (p *pruner) markTargets(ctx context.Context) error {
	left := make(map[chunk.PackID][]forwardSeen)
	for old := range p.moves.all {
		if fs := p.candidates(old); p.marked[old] && len(fs) > 0 {
			left[old] = fs
		}
	}
	for len(left) > 0 {
		var read []forwardSeen
		for _, fs := range left {
			read = append(read, fs[0])
		}
		err := p.readMoves(ctx, read, func(seen forwardSeen, f *forwarding) {
			old, _, _ := parseForwardName(seen.name)
			fs := left[old]
			if delete(left, old); f != nil {
				p.markMove(f, fs)
			} else if len(fs) > 1 {
				left[old] = fs[1:]
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deadMoves returns the packs that moved and that nobody needs, in order.
func (p *pruner) deadMoves() (dead []chunk.PackID) {
	for old, fs := range p.moves.all {
		decided := slices.ContainsFunc(fs, func(f forwardSeen) bool { return p.owners[f.session] != Undecided })
		if !p.marked[old] && decided {
			dead = append(dead, old)
		}
	}
	slices.SortFunc(dead, comparePacks)
	return dead
}

// leaveOut says which of the packs that moved and that nobody needs are for the next
// prune: the list has no room for them. A writer would not know then that what has
// their chunks goes, so that it stays, and so do their forwardings.
func (p *pruner) leaveOut(ctx context.Context) error {
	dead, most := p.deadMoves(), p.most(maxDeadMoves)
	if len(dead) <= most {
		return nil
	}
	var read []forwardSeen
	for _, old := range dead[most:] {
		p.moves.later[old] = true
		read = append(read, p.moves.all[old]...)
	}
	p.report.Left += len(dead) - most
	return p.readMoves(ctx, read, func(_ forwardSeen, f *forwarding) {
		if f == nil {
			return
		}
		for _, t := range f.targets() {
			p.moves.held[t] = true
		}
	})
}

// rescueTargets is markTargets at P7, for packs that nobody seemed to need at P4:
// whatever may lead to their chunks stays.
func (p *pruner) rescueTargets(ctx context.Context) error {
	var read []forwardSeen
	for old, all := range p.moves.all {
		if _, known := p.moves.newest[old]; p.marked[old] && !known {
			read = append(read, all...)
		}
	}
	return p.readMoves(ctx, read, func(_ forwardSeen, f *forwarding) {
		if f == nil {
			return
		}
		for _, t := range f.targets() {
			p.marked[t], p.moves.rescued[t] = true, true
		}
	})
}

// readMoves calls fn with each of the forwardings, never twice at once; with nil
// if it is one that a store made up: no member has a genuine one, and some have
// none. A committed forwarding was on all members.
func (p *pruner) readMoves(ctx context.Context, fs []forwardSeen, fn func(forwardSeen, *forwarding)) error {
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	for _, seen := range fs {
		group.Go(func() error {
			f, err := p.r.readForwarding(gctx, p.ms, seen.name)
			if err != nil && (gctx.Err() != nil || !errors.Is(err, objstore.ErrNotExist)) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			fn(seen, f)
			return nil
		})
	}
	return group.Wait() //nolint:wrapcheck // each names its object
}

// markMove notes the forwarding that counts of a pack, the first of fs, marks the
// packs that have the pack's chunks now, and notes what is alive in them.
func (p *pruner) markMove(f *forwarding, fs []forwardSeen) {
	p.moves.newest[f.old] = fs[0]
	for _, stray := range fs[1:] {
		p.moves.strays = append(p.moves.strays, stray.name)
	}
	if _, there := p.packs[f.old]; there || len(p.moves.all[f.old]) > 1 {
		p.moves.certain[fs[0].session] = true
	}
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
