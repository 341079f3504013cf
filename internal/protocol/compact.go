package protocol

import "github.com/cairnbackup/cairn/internal/protocol/explore"

// compactStep is where a prune is that compacts pack 0.
type compactStep uint8

const (
	compactNot     compactStep = iota
	compactRemains             // it was compacted before: the old pack goes, which somebody left
	compactOpen                // session of the compaction, on all members
	compactCopy                // the new pack
	compactForward             // forwarding, store by store
	compactVote                // vote by vote
)

// compaction is what a prune that compacts pack 0 puts on the stores: a session
// without a backup. Its ID is greater than all that the prune has seen.
type compaction struct {
	open, pack, commit, abort set
	forward                   [olds]set // of each pack that it moved
	younger                   set       // stores replaced since it opened
	kept                      set       // chunks that it moved
}

func (c *compaction) wipe(x int) {
	if c.open != 0 {
		c.younger = c.younger.with(x)
	}
	for _, stores := range []*set{&c.open, &c.pack, &c.forward[0], &c.forward[1], &c.commit, &c.abort} {
		*stores = stores.without(x)
	}
}

// aborted is that of [State.aborted].
func (c *compaction) aborted(q set) bool {
	return c.abort != 0 && c.commit.lacks(q) && (q &^ c.younger).within(c.abort)
}

// readable says whether readers get pack j, or that chunk of pack 0: they read
// the pack, else by any forwarding of it.
func (m *model) readable(s *State, j int) bool {
	k := m.DataShards
	if j != 0 && j != spare {
		return s.pack[j].len() >= k
	}
	if s.pack[0].len() >= k {
		return true
	}
	for i := range s.compactions {
		if c := &s.compactions[i]; c.forward[m.old(j)] != 0 && c.kept.has(j) && c.pack.len() >= k {
			return true
		}
	}
	return false
}

// markForwarded is P4 behind the roots: of the committed forwardings of a pack
// that is marked the newest counts, and the pack that it names is marked. All
// other decided ones are strays.
func (m *model) markForwarded(s *State, me *prune, marked *set) {
	for o := range m.olds() {
		newest, strays := &me.newest[o], &me.strays[o]
		for j := range m.Prunes {
			c := &s.compactions[j]
			if !me.decided.has(moved+j) || c.forward[o].lacks(me.members) {
				continue
			}
			counts := c.commit.meets(me.members) && marked.has(name(o)) && m.Mutation != ForwardingsIgnored
			switch {
			case !counts || m.Mutation == OldestForwardingWins && *newest > 0:
				*strays = strays.with(j)
				continue
			case *newest > 0:
				*strays = strays.with(int(*newest) - 1)
			}
			*newest = uint8(1 + j)
		}
		if *newest > 0 {
			*marked = marked.with(moved + int(*newest) - 1)
		}
	}
}

// deadNames is what P5 also lists: packs that nobody needs and that moved, when what
// has their chunks goes, as writers know those by the old name. going is what else
// is on the list.
func (m *model) deadNames(me *prune, going, marked set) (names set) {
	for o := range m.olds() {
		if dead := going>>moved != 0 || m.Shared && me.strays[o] != 0; dead && !marked.has(name(o)) && m.Mutation != ForwardedUnlisted {
			names = names.with(name(o))
		}
	}
	return names
}

// mayCompact is the choice of P4 to compact pack 0: it goes on the list, and so
// does the pack that has its chunks now. Where a forwarding and the old pack are
// there, the old pack may also just go.
func (m *model) mayCompact(t *State, p int, emit func(explore.Label, *State)) {
	me := &t.prunes[p]
	if m.Shared {
		m.mayCompactShared(t, p, emit)
		m.mayLeaveOut(t, p, emit)
		return
	}
	if !m.Compact || me.live == 0 || !me.decided.has(0) {
		return
	}
	will := func(at compactStep, packs set) {
		u := *t
		u.listPacks[p] |= packs
		u.prunes[p].compact = at
		emit(label(actCompactWill, p, u.listPacks[p]), &u)
	}
	if me.newest[0] > 0 && me.packs.has(0) {
		will(compactRemains, one(0))
	}
	switch {
	case int(me.newest[0]) > p: // its ID would not be greater
	case m.Mutation == CompactUnlisted:
		will(compactOpen, 0)
	default:
		will(compactOpen, one(0)|me.replaced())
	}
}

// replaced is the pack that has the chunks of pack 0 before a compaction, if
// that is another.
func (p *prune) replaced() set {
	if p.newest[0] == 0 {
		return 0
	}
	return one(moved + int(p.newest[0]) - 1)
}

// goes is what a compaction removes.
func (m *model) goes(p *prune) set {
	if m.Shared {
		return p.shared()
	}
	return one(0) | p.replaced()
}

// again is what a root that P7 found reaches of pack 0: it is needed, and if it
// was not at P4, so is all that leads to it.
func (m *model) again(s *State, p *prune, reached set) {
	if reached == 0 {
		return
	}
	switch {
	case m.Shared:
		m.againShared(s, p, reached)
	case p.live == 0:
		p.sweep &= (1<<moved - 1) &^ one(0)
		p.strays[0] = 0
	}
	if m.Mutation != CompactEarlyReach {
		p.live |= reached
	}
}

// compact is P7 behind the second listing.
func (m *model) compact(s *State, p int, emit func(explore.Label, *State)) {
	t := *s
	me, c := &t.prunes[p], &t.compactions[p]
	q := me.members
	switch me.compact {
	case compactRemains:
		me.sweep = me.sweep.with(0)
		me.at = prunePurge
		emit(label(actPruneRelist, p, me.sweep), &t)
	case compactOpen:
		me.sweep &^= m.goes(me)
		c.open, me.compact = q, compactCopy
		emit(label(actCompactOpen, p, 0), &t)
	case compactCopy:
		moves := me.live & m.chunksOf(me)
		for _, j := range moves.members() {
			if !m.readable(s, j) {
				me.at = prunePurge
				emit(label(actCompactGiveUp, p, 0), &t)
				return
			}
		}
		c.pack, c.kept, me.compact = q, moves, compactForward
		emit(label(actCompactCopy, p, moves), &t)
	case compactForward:
		sources := m.sources(me)
		put := c.forward[sources[0]] // one step for those of all sources
		for _, x := range (q &^ put).members() {
			u := t
			for _, o := range sources {
				u.compactions[p].forward[o] = put.with(x)
			}
			if put.with(x) == q {
				u.prunes[p].compact = compactVote
				if m.Mutation == CompactUncommitted {
					m.compacted(&u.prunes[p])
				}
			}
			emit(label(actCompactForward, p, one(x)), &u)
		}
	case compactVote:
		for _, x := range (q &^ c.commit).members() {
			u := t
			switch {
			case c.abort.has(x):
				u.prunes[p].at = prunePurge
				emit(label(actCompactLost, p, one(x)), &u)
				continue
			case c.commit.with(x) == q:
				m.compacted(&u.prunes[p])
			}
			u.compactions[p].commit = c.commit.with(x)
			emit(label(actCompactVote, p, one(x)), &u)
		}
	case compactNot:
	}
}

// compacted lets pack 0 go, and the pack to which it was moved before.
func (m *model) compacted(p *prune) {
	p.at = prunePurge
	p.sweep |= m.goes(p)
	for _, o := range m.sources(p) {
		if p.newest[o] > 0 {
			p.strays[o] = p.strays[o].with(int(p.newest[o]) - 1)
		}
	}
}

// settleCompaction is pruneSettle for a compaction: it reports whether that is
// not decided.
func (m *model) settleCompaction(s *State, p, j int, emit func(explore.Label, *State)) bool {
	q, c := s.prunes[p].members, &s.compactions[j]
	if c.commit.meets(q) || c.aborted(q) {
		return false
	}
	for _, x := range (q &^ c.younger &^ c.abort).members() {
		t := *s
		t.compactions[j].abort = c.abort.with(x)
		emit(label(actCompactFence, p, one(x)), &t)
	}
	return true
}

// lateCompaction is what latePut does with pack 0, and with what compactions put.
func (m *model) lateCompaction(s *State, put func(of *State, a action, w int, stores *set, x int)) {
	if !m.Compact {
		return
	}
	t := *s
	put(&t, actLatePack, 0, &t.pack[0], 0)
	for p := range m.Prunes {
		me := &s.prunes[p]
		if s.compactions[p].kept == 0 {
			continue
		}
		t := *s
		put(&t, actLateMoved, p, &t.compactions[p].pack, 0)
		if me.at > pruneCompact || me.compact > compactForward {
			u := *s
			put(&u, actLateForward, p, &u.compactions[p].forward[0], 0)
		}
	}
}

// drainForwarded is what a quiet prune does with compactions, when backups need what
// is marked.
func (m *model) drainForwarded(s *State, marked set) {
	var newest [olds]int
	var kept set
	for j := range s.compactions {
		c := &s.compactions[j]
		if c.open|c.pack != 0 && c.commit == 0 {
			c.abort = m.all
		}
		for o := range newest {
			if marked.meets(m.of(o)) && c.commit != 0 && c.forward[o] != 0 {
				newest[o] = 1 + j
			}
		}
	}
	for _, j := range newest {
		kept = kept.with(j)
	}
	for j := range s.compactions {
		c := &s.compactions[j]
		if !kept.has(1 + j) {
			c.pack = 0
		}
		for o := range c.forward {
			if newest[o] != 1+j {
				c.forward[o] = 0
			}
		}
	}
	if newest[0] > 0 {
		s.pack[0] = 0
	}
}
