package repository

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// A prune drops what no backup needs any more, while others write. It needs
// every store and the right to delete; nothing else does. The steps P0 to P11 in
// the comments are those of the protocol, and their order is what makes it safe:
//
//	what may go     P1 tombstones, P2 packs, P3 sessions, P4 roots -> condemned
//	say so          P5 the list, on every store: writers that open from now on avoid it
//	who knew not    P6 every session that may have opened before is decided
//	look again      P7 roots: what they reach of the list stays; what is alive of
//	                packs that are compacted moves
//	do it           P8 purged marks, then roots; P9 packs; P10 done; P11 own traces
//
// A crash anywhere leaves garbage or a list, never damage: the next prune starts
// from P0 under a new ID. Any number may run at once.

const (
	// DefaultSilence is what PruneOptions.Silence is if it is not given.
	DefaultSilence  = 10 * time.Minute
	defaultMaxShare = 0.2
	defaultCompact  = 0.5
	// prunePatience is by how much a prune is more patient with an answer than
	// others: it lists everything.
	prunePatience = 20
	// deletesAtOnce is how many objects are deleted at once on one store.
	deletesAtOnce = 8
)

// pruner is one prune.
type pruner struct {
	r      *Repository
	o      PruneOptions
	t      Timing
	id     ident
	keys   *membership // as at P0
	ms     []*member   // all members, in its order
	report PruneReport

	tombs  map[ident]bool         // P1: deleted
	aged   map[ident]bool         // P1: and a whole prune has seen that
	purged map[ident]bool         // dead for ever
	packs  map[chunk.PackID]int64 // P2: bytes of all shards
	owners map[ident]Decision     // P3: sessions that packs and forwardings are of
	lists  int                    // P1: lists of other prunes
	// P1: packs that such lists say are compacted. A prune that died has to be
	// finished: writers copy all these forward until then.
	unfinished map[chunk.PackID]bool
	roots      map[ident]string       // P4: names of condemned root records
	abort      map[ident]bool         // P4: of these, the sessions that were aborted
	live       map[ident]bool         // P4: sessions whose roots were reached from
	marked     map[chunk.PackID]bool  // P4, P7: what roots reach
	nodes      map[chunk.ID]struct{}  // manifest nodes that were gone through
	sweep      map[chunk.PackID]int64 // P5: condemned; P7: what of it goes
	moves      movesSeen              // P4: forwardings
	chunks     liveChunks             // P4, P7: what of packs is alive
	plans      []*compaction          // P4: what is compacted
	heals      remedy                 // P4, P7: what packs that are beyond repair are healed with
	gone       map[chunk.PackID]int64 // P7: packs without a live chunk

	damage  *damage              // the newest lists of damaged packs
	damaged map[string][]*member // P2: all lists of damaged packs

	finished  []string        // P0, P8: marks of changes that are done
	probes    map[string]bool // P1: left behind by others, or in use just now
	blind     bool            // P4: a backup in the trash cannot be read
	unsettled bool            // P4: some session has an "open", or a root record and no decision
}

// Prune removes for good what was in the trash when an earlier prune ran, the
// remains of sessions that made no backup, and all packs that nothing reaches.
// It needs every member. Backups may be made, restored and deleted meanwhile.
// What it had done when it failed is in the report.
func (r *Repository) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	if o.Silence <= 0 {
		o.Silence = DefaultSilence
	}
	if o.MaxShare <= 0 {
		o.MaxShare = defaultMaxShare
	}
	if o.Compact <= 0 {
		o.Compact = defaultCompact
	}
	if o.Progress == nil {
		o.Progress = func(PruneProgress) {}
	}
	p := &pruner{r: r, o: o, t: r.o.Timing}
	p.t.Call *= prunePatience
	err := p.run(ctx)
	if err != nil {
		err = fmt.Errorf("prune: %w", err)
	}
	return p.report, err
}

func (p *pruner) run(ctx context.Context) error {
	look := []step{
		{"stores", p.begin},
		{"deleted backups", p.readDeleted},
		{"packs", p.listPacks},
		{"damaged packs", p.readDamage},
		{"sessions", p.decideOwners},
		{"backups", p.mark},
	}
	act := []step{
		{"announce", p.publish},
		{"sessions", p.settle},
		{"backups", p.lookAgain},
		{"compact", p.compact},
		{"remove backups", p.purge},
		{"remove packs", p.removePacks},
		{"record", p.finish},
		{"tidy", p.tidy},
	}
	if err := p.each(ctx, look); err != nil || p.o.DryRun {
		return err
	}
	if nothing := p.blind || len(p.sweep)+len(p.roots)+p.report.Waiting+len(p.plans)+len(p.moves.strays)+len(p.moves.remains)+len(p.deadMoves()) == 0; nothing {
		act = p.quiet(act[len(act)-2:])
	}
	return p.each(ctx, act)
}

// quiet are the steps of a prune that has nothing to remove: last are P10 and
// P11. What the dead left, so that nobody has to look at it for ever, goes too.
func (p *pruner) quiet(last []step) []step {
	finish, tidy := last[0], last[1]
	var act []step
	if p.unsettled {
		act = append(act, step{"sessions", p.fenceSilent})
	}
	if p.report.Trash != len(p.aged) || p.lists > 0 {
		act = append(act, finish) // something for the next prune to know
	}
	if len(act)+len(p.probes)+len(p.finished)+len(p.staleDamage()) > 0 {
		act = append(act, tidy)
	}
	return act
}

// step is one step of the protocol.
type step struct {
	name string
	do   func(context.Context) error
}

func (p *pruner) each(ctx context.Context, steps []step) error {
	for _, s := range steps {
		p.tell(s.name, 0, 0)
		if err := s.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *pruner) tell(step string, done, total int64) {
	p.o.Progress(PruneProgress{step, done, total})
}

// begin is P0: every member is there, is the one it was, is no newcomer, and
// keeps its one promise.
func (p *pruner) begin(ctx context.Context) error {
	p.r.reunite(ctx)
	if err := p.r.upToDate(ctx); err != nil {
		return err
	}
	p.keys, p.ms = p.r.membership(), p.r.current()
	var err error
	if p.id, err = newIdent(); err != nil {
		return err
	}
	p.report.ID = p.id.String()
	if err = p.unchanged(ctx); err != nil {
		return err
	}
	_, err = everywhere(ctx, p, "prove that it creates a name only once", func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, p.r.probe(ctx, m)
	})
	return err
}

// unchanged says whether all members are still who they were, and the
// repository what it was.
func (p *pruner) unchanged(ctx context.Context) error {
	if p.keys.MinPruner > formatVersion {
		return versionError("prune", p.keys.MinPruner)
	}
	versions, err := everywhere(ctx, p, "say who it is", func(ctx context.Context, m *member) (uint64, error) {
		if err := p.r.identify(ctx, m); err != nil {
			return 0, err
		}
		latest, err := p.r.keys.latestMembership(ctx, m.store, p.r.id)
		if err != nil {
			return 0, err
		}
		if latest == nil {
			return 0, fmt.Errorf("%s has no list of the members: \"cairn repo repair --apply\" brings it there: %w", m.url(), ErrDamaged)
		}
		return latest.Version, nil
	})
	if err != nil {
		return err
	}
	if err := p.unmarked(ctx); err != nil {
		return err
	}
	for _, v := range versions {
		if v > p.keys.Version {
			return fmt.Errorf("the members of the repository changed meanwhile: prune again: %w", ErrEnded)
		}
	}
	return nil
}

// unmarked says whether no change of the members is under way.
func (p *pruner) unmarked(ctx context.Context) error {
	marks := make(map[string][]*member)
	err := p.list(ctx, changePrefix, func(m *member, i objstore.Info) { marks[i.Name] = append(marks[i.Name], m) })
	if err != nil {
		return err
	}
	p.finished = nil
	for name, ms := range marks {
		c, err := p.r.readChange(ctx, ms, name)
		switch {
		case errors.Is(err, objstore.ErrNotExist): // it has ended just now
		case err != nil:
			return err
		case !c.over(p.keys, len(ms)):
			return p.r.otherChange(c)
		default:
			p.finished = append(p.finished, name)
		}
	}
	return nil
}

// everywhere asks all members; one that fails fails the step. Values come in the
// order of p.ms.
func everywhere[T any](ctx context.Context, p *pruner, what string, fn func(context.Context, *member) (T, error)) ([]T, error) {
	answers := ask(ctx, p.t, p.ms, len(p.ms), fn)
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("canceled: %w", context.Cause(ctx))
	}
	out := make([]T, len(answers))
	for i, a := range answers {
		if a.err != nil {
			return nil, fmt.Errorf("every store is needed, and %s did not %s: mend or replace it and prune again: %w: %w", a.m.url(), what, ErrTooFewStores, a.err)
		}
		out[i] = a.value
	}
	return out, nil
}

// list calls fn, never twice at once, for all that any member has under a
// prefix.
func (p *pruner) list(ctx context.Context, prefix string, fn func(m *member, i objstore.Info)) error {
	var mu sync.Mutex
	over := false // a store that was given up may go on listing
	_, err := everywhere(ctx, p, "list "+prefix, func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, m.store.List(ctx, prefix, func(i objstore.Info) error { //nolint:wrapcheck // stores name themselves
			mu.Lock()
			defer mu.Unlock()
			if !over {
				fn(m, i)
			}
			return nil
		})
	})
	mu.Lock()
	defer mu.Unlock()
	over = true
	return err
}
