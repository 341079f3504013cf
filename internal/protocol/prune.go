package protocol

import "github.com/cairnbackup/cairn/internal/protocol/explore"

type pruneStep uint8

const (
	pruneStart    pruneStep = iota // P0, P1
	prunePacks                     // P2
	pruneDecided                   // P3
	pruneMark                      // P4
	prunePublish                   // P5, store by store
	pruneSessions                  // P6, store by store
	pruneSettle                    // P6, vote by vote
	pruneRelist                    // P7
	pruneCompact                   // P7, what compact.go has
	prunePurge                     // P8
	pruneSweep                     // P9, pack by pack, then P10
	pruneTidy                      // P11
	pruneEnd
	pruneVoid // a member was replaced: it never goes on
)

func (m *model) prune(s *State, p int, emit func(explore.Label, *State)) {
	q := s.prunes[p].members
	t := *s
	me := &t.prunes[p]
	switch me.at {
	case pruneStart:
		m.pruneStart(s, p, emit)
	case prunePacks: // "P2 List packs."
		for i := range maxSessions {
			if s.pack[i].meets(q) {
				me.packs = me.packs.with(i)
			}
		}
		for j := range m.Prunes {
			if s.compactions[j].pack.meets(q) {
				me.packs = me.packs.with(moved + j)
			}
		}
		me.at = pruneDecided
		emit(label(actPrunePacks, p, me.packs), &t)
	case pruneDecided: // "P3 then decide their sessions."
		for i := range maxSessions {
			if s.commit[i].meets(q) || s.aborted(i, q) {
				me.decided = me.decided.with(i)
			}
		}
		for j := range m.Prunes {
			if c := &s.compactions[j]; c.commit.meets(q) || c.aborted(q) || m.Mutation == CompactNoSession {
				me.decided = me.decided.with(moved + j)
			}
		}
		me.at = pruneMark
		emit(label(actPruneDecided, p, me.decided), &t)
	case pruneMark:
		m.pruneMark(s, p, emit)
	case prunePublish: // "P5 PUT condemned on all members; go on only when all acknowledged."
		for _, x := range (q &^ me.reached).members() {
			u := t
			u.list[p] = u.list[p].with(x)
			u.prunes[p].reach(x, pruneSessions)
			emit(label(actPrunePublish, p, one(x)), &u)
		}
	case pruneSessions:
		m.pruneSessions(s, p, emit)
	case pruneSettle:
		m.pruneSettle(s, p, emit)
	case pruneRelist:
		m.pruneRelist(s, p, emit)
	case pruneCompact:
		m.compact(s, p, emit)
	case prunePurge:
		m.prunePurge(s, p, emit)
	case pruneSweep:
		m.pruneSweep(s, p, emit)
	case pruneTidy: // "P11 DELETE own list"
		t.list[p] &^= q
		me.at = pruneEnd
		emit(label(actPruneTidy, p, 0), &t)
	case pruneEnd, pruneVoid:
	}
}

// pruneRelist is P7: "then list roots again; sweep = condemned packs − reached".
func (m *model) pruneRelist(s *State, p int, emit func(explore.Label, *State)) {
	t := *s
	me := &t.prunes[p]
	q := me.members
	me.sweep = s.listPacks[p].without(spare) // which is a name only
	if m.Mutation != NoSecondListing {
		for i := range maxSessions {
			if s.root[i].meets(q) && !s.listRoots[p].has(i) && s.purge[i].lacks(q) && !s.aborted(i, q) {
				me.sweep &^= s.refs[i]
				if !me.roots.has(i) {
					m.again(s, me, s.refs[i]&chunks)
				}
			}
		}
	}
	for _, newest := range me.newest {
		if newest > 0 { // "its certificate is on all members before anything goes"
			t.compactions[newest-1].commit |= q
		}
	}
	me.at = prunePurge
	if me.compact != compactNot {
		me.at = pruneCompact
	}
	emit(label(actPruneRelist, p, me.sweep), &t)
}

// prunePurge is P8: "PUT purged on all members, then DELETE the roots".
func (m *model) prunePurge(s *State, p int, emit func(explore.Label, *State)) {
	t := *s
	me := &t.prunes[p]
	q := me.members
	if m.Mutation != ChangeUnmarked && (s.change != changeNone || me.version != s.version) {
		me.at = pruneVoid
		emit(label(actPruneVoid, p, 0), &t)
		return
	}
	for _, i := range s.listRoots[p].members() {
		t.root[i] &^= q
		if m.Mutation != NoPurgeMark {
			t.purge[i] |= q
		}
		if s.commit[i] != 0 {
			t.purged = t.purged.with(i)
		}
	}
	me.at = pruneSweep
	emit(label(actPrunePurge, p, s.listRoots[p]), &t)
}

// pruneSweep is P9 and P10: "DELETE the packs. PUT done on all, with the tombstones of P1".
func (m *model) pruneSweep(s *State, p int, emit func(explore.Label, *State)) {
	t := *s
	me := &t.prunes[p]
	q := me.members
	for _, i := range me.sweep.members() {
		u := t
		if i < maxSessions {
			u.pack[i] &^= q
		} else {
			u.compactions[i-moved].pack &^= q
		}
		u.prunes[p].sweep = me.sweep.without(i)
		emit(label(actPruneSweep, p, one(i)), &u)
	}
	if me.sweep == 0 {
		for o, strays := range me.strays {
			for _, j := range strays.members() {
				t.compactions[j].forward[o] &^= q
			}
		}
		t.done[p] |= q
		t.doneTombs[p] = me.tombs
		me.at = pruneTidy
		emit(label(actPruneDone, p, 0), &t)
	}
}

// reach notes that a step was done on store x; after the last, then comes.
func (p *prune) reach(x int, then pruneStep) {
	p.reached = p.reached.with(x)
	if p.reached == p.members {
		p.at, p.reached = then, 0
	}
}

// pruneStart is P0, "all members are there, none is joining", and P1, "read all
// done records, then list deleted/. Aged = tombstones that some done names".
func (m *model) pruneStart(s *State, p int, emit func(explore.Label, *State)) {
	if s.unsynced != 0 || s.lost || s.change != changeNone && m.Mutation != ChangeUnmarked {
		return
	}
	quorums := m.pruneQuorum
	if m.Steps {
		quorums = []set{m.all &^ s.outside}
	}
	for _, q := range quorums {
		t := *s
		me := &t.prunes[p]
		me.members, me.version = q, s.version
		for j := range m.Prunes {
			if s.done[j].meets(q) {
				me.aged |= s.doneTombs[j]
			}
		}
		if m.Start == Aged {
			me.aged = me.aged.with(0)
		}
		for i := range maxSessions {
			if s.tomb[i].meets(q) {
				me.tombs = me.tombs.with(i)
			}
		}
		if m.Mutation == NoAging {
			me.aged = me.tombs
		}
		me.aged &= me.tombs
		me.at = prunePacks
		emit(label(actPruneStart, p, q), &t)
	}
}

// pruneMark is P4: "Marked = all packs reached from roots, except roots that are
// aged, purged or aborted: these are the condemned backups." It decides what P5
// publishes: "listed at P2, session decided at P3, not marked".
func (m *model) pruneMark(s *State, p int, emit func(explore.Label, *State)) {
	t := *s
	me := &t.prunes[p]
	var marked, dying set
	for i := range maxSessions {
		switch {
		case s.root[i].lacks(me.members):
		case me.aged.has(i) || s.purge[i].meets(me.members) || s.aborted(i, me.members):
			dying = dying.with(i)
		default:
			marked |= s.refs[i]
			me.roots = me.roots.with(i)
		}
	}
	if me.live = marked & chunks; me.live != 0 && !m.Shared {
		marked = marked.with(0).without(spare)
	}
	m.markForwarded(s, me, &marked)
	t.listPacks[p] = me.packs & me.decided &^ marked
	t.listPacks[p] |= m.deadNames(me, t.listPacks[p], marked)
	t.listRoots[p] = dying
	me.at = prunePublish
	emit(label(actPruneMark, p, t.listPacks[p]), &t)
	m.mayCompact(&t, p, emit)
}

// pruneSessions is P6: "Then list again: Q = sessions with open, or any pack or
// root, not decided".
func (m *model) pruneSessions(s *State, p int, emit func(explore.Label, *State)) {
	for _, x := range (s.prunes[p].members &^ s.prunes[p].reached).members() {
		t := *s
		me := &t.prunes[p]
		for i := range maxSessions {
			if s.open[i].has(x) || i > 0 && (s.pack[i]|s.root[i]).has(x) {
				me.waits = me.waits.with(i)
			}
		}
		for j := range m.Prunes {
			if c := &s.compactions[j]; (c.open | c.pack).has(x) {
				me.waits = me.waits.with(moved + j)
			}
		}
		then := pruneSettle
		if m.Mutation == NoWait {
			then = pruneRelist
		}
		me.reach(x, then)
		emit(label(actPruneSessions, p, one(x)), &t)
	}
}

// pruneSettle is the rest of P6: "PUT-if-absent abort on every voter, and read
// the result", until all of Q are decided.
func (m *model) pruneSettle(s *State, p int, emit func(explore.Label, *State)) {
	q := s.prunes[p].members
	undecided := false
	for _, i := range s.prunes[p].waits.members() {
		if i >= moved {
			undecided = m.settleCompaction(s, p, i-moved, emit) || undecided
			continue
		}
		if s.commit[i].meets(q) || s.aborted(i, q) {
			continue
		}
		undecided = true
		for _, x := range (q &^ s.younger[i] &^ s.abort[i]).members() {
			t := *s
			t.abort[i] = t.abort[i].with(x)
			emit(label(actPruneAbort, p, one(x)|one(i)<<4), &t)
		}
	}
	if !undecided {
		t := *s
		t.prunes[p].at, t.prunes[p].waits = pruneRelist, 0
		emit(label(actPruneSettled, p, 0), &t)
	}
}

// tidy is the rest of P11: "A list is removed only by its own prune after P10, or
// by anyone once none of its packs and roots exists on any member (PUT closed
// first)".
func (m *model) tidy(s *State, p int, emit func(explore.Label, *State)) {
	at := s.prunes[p].at
	if s.list[p] == 0 || at <= prunePublish || at == pruneTidy || at == pruneEnd {
		return
	}
	left := false
	for i := range maxSessions {
		left = left || s.listPacks[p].has(i) && s.pack[i] != 0 || s.listRoots[p].has(i) && s.root[i] != 0
	}
	for j := range maxPrunes {
		left = left || s.listPacks[p].has(moved+j) && s.compactions[j].pack != 0
	}
	if left && m.Mutation != DeadListRemoved {
		return
	}
	t := *s
	t.list[p] &= s.outside
	t.done[p] |= m.all &^ s.outside
	emit(label(actTidy, p, 0), &t)
}
