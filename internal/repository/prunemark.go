package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// packSession returns the session that a pack is of.
func packSession(id chunk.PackID) ident { return id.Session() }

// listRoots returns who has each root record.
func (p *pruner) listRoots(ctx context.Context) (map[string][]*member, error) {
	names := make(map[string][]*member)
	err := p.list(ctx, rootPrefix, func(m *member, i objstore.Info) {
		if _, ok := rootSession(i.Name); ok {
			names[i.Name] = append(names[i.Name], m)
		}
	})
	return names, err
}

// mark is P4: root records, which of them are condemned, and all packs that the
// others reach. Then it says which packs are condemned.
func (p *pruner) mark(ctx context.Context) error {
	p.abort = make(map[ident]bool)
	p.roots, p.live = make(map[ident]string), make(map[ident]bool)
	p.marked, p.nodes = make(map[chunk.PackID]bool), make(map[chunk.ID]struct{})
	if err := p.seeMoves(ctx); err != nil {
		return err
	}
	names, err := p.listRoots(ctx)
	if err != nil {
		return err
	}
	votes, err := p.votes(ctx)
	if err != nil {
		return err
	}
	for n, name := range slices.Sorted(maps.Keys(names)) {
		p.tell("backups", int64(n), int64(len(names)))
		s, _ := rootSession(name)
		condemned, err := p.markRoot(ctx, name, s, names[name], votes[s])
		if err != nil {
			return err
		}
		if condemned {
			p.roots[s] = name
		} else {
			p.live[s] = true
		}
	}
	for _, b := range votes {
		p.unsettled = p.unsettled || len(b.open) > 0
	}
	if err := p.markTargets(ctx); err != nil {
		return err
	}
	if p.blind {
		return nil
	}
	if err := p.leaveOut(ctx); err != nil {
		return err
	}
	p.condemn()
	return p.plan(ctx)
}

// markRoot marks what a root record reaches, or says that it is condemned. One
// that cannot be read and may be live stops the prune; of one in the trash this
// prune only notes the tombstone, and removes nothing.
func (p *pruner) markRoot(ctx context.Context, name string, s ident, ms []*member, votes *ballots) (condemned bool, err error) {
	if p.purged[s] {
		return true, nil
	}
	rt, err := p.r.readRoot(ctx, ms, name)
	if p.aged[s] && (err != nil || rt.retentionError(p.r.o.Now()) == nil) {
		return true, ctx.Err() //nolint:wrapcheck // canceled: no sentence is missing
	}
	if err == nil {
		var d Decision
		if d, err = p.decision(ctx, s, votes, rt.rec.Voters, &rt.digest); err != nil {
			return false, err
		}
		if d == Aborted {
			p.abort[s] = true
			return true, nil
		}
		p.unsettled = p.unsettled || d == Undecided
		p.chunks.retain(rt.rec.Project, rt.rec.Retained)
		err = p.reach(ctx, rt)
	} else if d, derr := p.decision(ctx, s, votes, nil, nil); derr == nil && d == Aborted {
		p.abort[s] = true
		return true, nil
	}
	if err == nil || ctx.Err() != nil {
		return false, err
	}
	if p.tombs[s] {
		p.blind = true
		addProblem(&p.report.Problems, fmt.Sprintf("nothing is removed this time: a backup in the trash cannot be read, so that nobody can say which packs it needs; the next prune goes without it: %v", err))
		return false, nil
	}
	// Another prune may be removing it just now: then it needs nothing.
	if gone, markErr := p.r.isMarked(ctx, purgedName(s)); markErr == nil && gone {
		return false, nil
	}
	return false, fmt.Errorf("a backup cannot be read, so that nobody can say which packs it needs: repair it, or delete it and prune without it when a prune has seen that: %w", err)
}

// reach marks the packs of a backup's nodes and blocks. Of nodes that other
// backups have too, only the first is gone below.
func (p *pruner) reach(ctx context.Context, rt *root) error {
	d, err := p.r.domain(rt.rec.Project)
	if err != nil {
		return err
	}
	tree, err := manifest.Open(rt.geometry(), rt.top, p.r.loader(d))
	if err == nil {
		err = tree.Reach(ctx, func(id chunk.ID) bool {
			_, seen := p.nodes[id]
			p.nodes[id] = struct{}{}
			return seen
		}, func(_ chunk.Kind, ref chunk.Ref) {
			p.marked[ref.Pack] = true
			p.chunks.add(rt.rec.Project, ref)
		}, nil)
	}
	if err != nil {
		return fmt.Errorf("backup %s: %w", rt.rec.BackupID, err)
	}
	return nil
}

// lookAgain is P7: what has been committed since P4, or may still be, keeps its
// packs.
func (p *pruner) lookAgain(ctx context.Context) error {
	names, err := p.listRoots(ctx)
	if err != nil {
		return err
	}
	votes, err := p.votes(ctx)
	if err != nil {
		return err
	}
	for name, ms := range names {
		s, _ := rootSession(name)
		if p.live[s] || p.roots[s] != "" {
			continue
		}
		rt, err := p.r.readRoot(ctx, ms, name)
		if err != nil {
			return fmt.Errorf("a backup that was made meanwhile cannot be read: %w", err)
		}
		d, err := p.decision(ctx, s, votes[s], rt.rec.Voters, &rt.digest)
		if err != nil {
			return err
		}
		if d == Aborted {
			continue
		}
		p.chunks.retain(rt.rec.Project, rt.rec.Retained)
		if err := p.reach(ctx, rt); err != nil {
			return err
		}
		p.live[s] = true
	}
	if err := p.rescueTargets(ctx); err != nil {
		return err
	}
	for id, size := range p.sweep {
		if p.marked[id] {
			delete(p.sweep, id)
			p.report.Packs--
			p.report.Bytes -= size
			p.report.Kept += size
		}
	}
	return nil
}

// ballots says which members have which objects of a session.
type ballots struct {
	open, verdict, certificate []*member
}

// votes lists who has what of all sessions.
func (p *pruner) votes(ctx context.Context) (map[ident]*ballots, error) {
	return p.votesUnder(ctx, sessionPrefix)
}

func (p *pruner) votesUnder(ctx context.Context, prefix string) (map[ident]*ballots, error) {
	out := make(map[ident]*ballots)
	err := p.list(ctx, prefix, func(m *member, i objstore.Info) {
		s, leaf, ok := sessionObject(i.Name)
		if !ok {
			return
		}
		b := out[s]
		if b == nil {
			b = &ballots{}
			out[s] = b
		}
		switch leaf {
		case openLeaf:
			b.open = append(b.open, m)
		case verdictLeaf:
			b.verdict = append(b.verdict, m)
		case certificateLeaf:
			b.certificate = append(b.certificate, m)
		}
	})
	return out, err
}

// decision is what all members together have on a session. Unlike
// [Repository.decide] it takes no silence for an answer. want and voters may be
// nil, as there.
func (p *pruner) decision(ctx context.Context, s ident, b *ballots, voters []ident, want *digest) (Decision, error) {
	if p.purged[s] {
		return Committed, nil // and dead
	}
	if b == nil {
		b = &ballots{}
	}
	right := func(root string) bool { return want == nil && root != "" || want != nil && root == want.String() }
	aborts := make(map[ident]bool)
	for _, m := range b.verdict {
		v, err := one(ctx, p.r, m, func(ctx context.Context, m *member) (ballot, error) { return p.r.readVote(ctx, m, s) })
		switch {
		case errors.Is(err, errEnvelope), errors.Is(err, objstore.ErrNotExist):
			continue // no vote that could be shown; with too few, the session stays undecided
		case err != nil:
			return Undecided, fmt.Errorf("read a vote: %w", err)
		case v.vote == voteAbort:
			aborts[m.id] = true
		case (voters == nil || slices.Contains(voters, m.id)) && right(v.root):
			return Committed, nil
		}
	}
	for _, m := range b.certificate {
		v, err := one(ctx, p.r, m, func(ctx context.Context, m *member) (ballot, error) { return p.r.readBallot(ctx, m, s) })
		if err != nil && !errors.Is(err, errEnvelope) {
			return Undecided, fmt.Errorf("read a certificate: %w", err)
		}
		if right(v.certificate) {
			return Committed, nil
		}
	}
	for _, id := range p.keys.Stores {
		if (voters == nil || slices.Contains(voters, id)) && !aborts[id] {
			return Undecided, nil
		}
	}
	if len(aborts) == 0 && voters == nil {
		return Undecided, nil
	}
	return Aborted, nil // also when all who might have voted were replaced: nobody can any more
}
