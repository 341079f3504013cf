package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// settle is P6: every session that may have read the lists before ours was on
// them is decided before anything goes. One that shows no progress for a while
// is aborted: its writer is dead, or will be told.
func (p *pruner) settle(ctx context.Context) error { return p.decideOpen(ctx, true) }

// fenceSilent is settle for a prune that has nothing to remove: it aborts those
// that are silent, and does not wait for one that shows progress.
func (p *pruner) fenceSilent(ctx context.Context) error { return p.decideOpen(ctx, false) }

func (p *pruner) decideOpen(ctx context.Context, all bool) error {
	open, err := p.undecided(ctx)
	if err != nil {
		return err
	}
	total := int64(len(open))
	watched := make(map[ident]*watch)
	for len(open) > 0 {
		roots, err := p.listRoots(ctx)
		if err != nil {
			return err
		}
		for s := range open {
			before := watched[s]
			done, err := p.settleOne(ctx, s, roots, watched)
			if err != nil {
				return err
			}
			alive := before != nil && watched[s] != before
			if done || alive && !all {
				delete(open, s)
			}
		}
		p.tell("sessions", total-int64(len(open)), total)
		if len(open) == 0 {
			break
		}
		const pollAtMost = 5 * time.Second
		select {
		case <-time.After(min(p.o.Silence/4, pollAtMost)):
		case <-ctx.Done():
			return fmt.Errorf("canceled while %d backups are still being made: %w", len(open), context.Cause(ctx))
		}
	}
	return nil
}

// undecided lists the sessions that have anything on any member and no
// decision.
func (p *pruner) undecided(ctx context.Context) (map[ident]struct{}, error) {
	votes, err := p.votes(ctx)
	if err != nil {
		return nil, err
	}
	roots, err := p.listRoots(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[ident]struct{})
	for s, b := range votes {
		if len(b.open) > 0 {
			all[s] = struct{}{}
		}
	}
	for name := range roots {
		if s, ok := rootSession(name); ok {
			all[s] = struct{}{}
		}
	}
	err = p.list(ctx, packPrefix, func(_ *member, i objstore.Info) {
		if id, ok := parsePackName(i.Name); ok {
			all[packSession(id)] = struct{}{}
		}
	})
	if err != nil {
		return nil, err
	}
	for s := range all {
		voters, want, err := p.sessionKeys(ctx, s, votes[s], roots)
		if err != nil {
			return nil, err
		}
		d, err := p.decision(ctx, s, votes[s], voters, want)
		if err != nil {
			return nil, err
		}
		if d != Undecided {
			delete(all, s)
		}
	}
	return all, nil
}

// decided is decision by the voters that "open" or the root record names: stores
// that joined since have no vote in it.
func (p *pruner) decided(ctx context.Context, s ident, b *ballots, roots map[string][]*member) (Decision, error) {
	d, err := p.decision(ctx, s, b, nil, nil)
	if err != nil || d != Undecided {
		return d, err
	}
	voters, want, err := p.sessionKeys(ctx, s, b, roots)
	if err != nil || voters == nil {
		return Undecided, err
	}
	return p.decision(ctx, s, b, voters, want)
}

// sessionKeys returns who votes on a session and for what, as far as its root
// record or its "open" is left; nil voters stand for all members.
func (p *pruner) sessionKeys(ctx context.Context, s ident, b *ballots, roots map[string][]*member) ([]ident, *digest, error) {
	for name, ms := range roots {
		if found, _ := rootSession(name); found != s {
			continue
		}
		rt, err := p.r.readRoot(ctx, ms, name)
		if err == nil {
			return rt.rec.Voters, &rt.digest, nil
		}
		if !errors.Is(err, ErrDamaged) {
			return nil, nil, err
		}
	}
	if b == nil || len(b.open) == 0 {
		return nil, nil, nil
	}
	payload, err := p.r.firstControl(ctx, b.open, kindOpen, openName(s))
	var rec openRecord
	if err == nil && decodeJSON(payload, &rec) == nil && rec.Session == s {
		return rec.Voters, nil, nil
	}
	return nil, nil, nil
}

// watch is what was last seen of a session that is not decided.
type watch struct {
	seen  progressMark
	since time.Time // monotonic: no clock but our own is believed
}

// progressMark changes when a session's writer does anything.
type progressMark struct{ packs, roots, votes int }

// settleOne looks at one session and aborts it when it has been silent for long
// enough. It reports whether it is decided.
func (p *pruner) settleOne(ctx context.Context, s ident, roots map[string][]*member, watched map[ident]*watch) (bool, error) {
	all, err := p.votesUnder(ctx, sessionPrefix+s.String()+"/")
	if err != nil {
		return false, err
	}
	b := all[s]
	voters, want, err := p.sessionKeys(ctx, s, b, roots)
	if err != nil {
		return false, err
	}
	d, err := p.decision(ctx, s, b, voters, want)
	if err != nil {
		return false, err
	}
	if d == Committed {
		return true, p.spread(ctx, s, voters, want)
	}
	if d == Aborted {
		return true, nil
	}
	var now progressMark
	if b != nil {
		now.votes = len(b.verdict)
	}
	for name, ms := range roots {
		if found, _ := rootSession(name); found == s {
			now.roots = len(ms)
		}
	}
	if err = p.list(ctx, packPrefix+s.String()+"/", func(*member, objstore.Info) { now.packs++ }); err != nil {
		return false, err
	}
	w := watched[s]
	switch {
	case w == nil || w.seen != now:
		watched[s] = &watch{now, time.Now()}
		return false, nil
	case time.Since(w.since) < p.o.Silence:
		return false, nil
	}
	return true, p.fence(ctx, s, voters, want)
}

// voting are the members whose vote on a session counts.
func (p *pruner) voting(voters []ident) []*member {
	return slices.DeleteFunc(slices.Clone(p.ms), func(m *member) bool { return voters != nil && !slices.Contains(voters, m.id) })
}

// fence votes abort on every voter that has no vote. Votes that are there
// decide: one commit vote is enough for the session to be committed. Every voter
// has a vote then, so that there is nobody to copy it to.
func (p *pruner) fence(ctx context.Context, s ident, voters []ident, want *digest) error {
	aborts, commit := 0, ""
	ms := p.voting(voters)
	for _, m := range ms {
		b, err := one(ctx, p.r, m, func(ctx context.Context, m *member) (ballot, error) {
			if err := p.r.identify(ctx, m); err != nil {
				return ballot{}, err
			}
			return p.r.putVote(ctx, m, voteRecord{Session: s, Vote: voteAbort, By: p.id})
		})
		switch {
		case err != nil:
			return fmt.Errorf("session %s cannot be decided: %w", s, err)
		case b.vote == voteAbort:
			aborts++
		case want == nil || b.root == want.String():
			commit = b.root
		}
	}
	switch {
	case commit != "":
		return nil // what it reaches is looked at in P7
	case aborts == len(ms) && aborts > 0:
		p.report.Fenced++
		return nil
	default:
		return fmt.Errorf("session %s has votes for something else than its root record: %w", s, ErrDamaged)
	}
}

// spread gives the commit vote of a committed session to the voters that have
// none: more losses are survived then.
func (p *pruner) spread(ctx context.Context, s ident, voters []ident, want *digest) error {
	if want == nil {
		return nil
	}
	rec := voteRecord{Session: s, Vote: voteCommit, Root: hex.EncodeToString(want[:])}
	for _, m := range p.voting(voters) {
		_, err := one(ctx, p.r, m, func(ctx context.Context, m *member) (ballot, error) {
			if err := p.r.identify(ctx, m); err != nil {
				return ballot{}, err
			}
			return p.r.putVote(ctx, m, rec)
		})
		if err != nil {
			return fmt.Errorf("session %s: %w", s, err)
		}
	}
	return nil
}
