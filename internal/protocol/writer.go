package protocol

import "github.com/cairnbackup/cairn/internal/protocol/explore"

type writerStep uint8

const (
	writerOpen   writerStep = iota // W1, store by store
	writerList                     // W2, store by store
	writerSource                   // W3, W4
	writerPack                     // W5
	writerRoot                     // W6
	writerVote                     // W7, store by store
	writerEnd
	repairCopy
)

func (m *model) writer(s *State, w int, kind Kind, emit func(explore.Label, *State)) {
	switch s.writers[w].at {
	case writerOpen:
		switch {
		case kind == Repair:
			m.repairRead(s, w, emit)
		case m.Mutation == ListBeforeOpen && s.writers[w].listed.len() < m.WriteQuorum:
			m.writerList(s, w, m.reach(s, w), writerOpen, emit)
		default:
			m.writerOpen(s, w, emit)
		}
	case writerList:
		m.writerList(s, w, s.writers[w].opened, writerSource, emit)
	case writerSource:
		m.writerSource(s, w, kind, emit)
	case writerPack:
		m.writerPack(s, w, kind, emit)
	case writerRoot:
		for _, stores := range m.quorums(m.reach(s, w), m.writeSets, m.WriteQuorum) {
			t := *s
			t.root[1+w] |= stores
			t.refs[1+w] = s.writers[w].refs
			t.writers[w].at, t.writers[w].rootSent = writerVote, true
			emit(label(actRoot, w, stores), &t)
		}
	case writerVote:
		m.writerVote(s, w, emit)
	case repairCopy:
		m.repairCopy(s, w, emit)
	case writerEnd:
	}
}

// writerOpen is W1: "PUT open to all members in parallel; |A| ≥ 1+d or fail".
func (m *model) writerOpen(s *State, w int, emit func(explore.Label, *State)) {
	reach := m.reach(s, w)
	for _, x := range (reach &^ s.writers[w].opened).members() {
		t := *s
		t.writers[w].voters = m.voters(s, w)
		t.open[1+w] = t.open[1+w].with(x)
		t.writers[w].opened = t.writers[w].opened.with(x)
		l, n := label(actOpen, w, one(x)), t.writers[w].opened.len()
		if n < reach.len() {
			emit(l, &t)
		}
		if n == reach.len() || n >= m.WriteQuorum && !m.AllUp {
			t.writers[w].at = writerList
			if m.Mutation == ListBeforeOpen {
				t.writers[w].at = writerSource
			}
			emit(l, &t)
		}
	}
}

// writerList is W2: "On at least 1+d stores of A: LIST prune/. C = union".
func (m *model) writerList(s *State, w int, among set, then writerStep, emit func(explore.Label, *State)) {
	for _, x := range (among &^ s.writers[w].listed &^ s.outside).members() {
		if m.Mutation != NotPinned && s.younger[1+w].has(x) {
			continue // "a store whose ID changed since W1 counts in none of W1, W2, W6, W7"
		}
		t := *s
		me := &t.writers[w]
		me.listed = me.listed.with(x)
		for p := range m.Prunes {
			switch {
			case s.list[p].has(x):
				me.condemned |= s.listPacks[p]
				me.dying |= s.listRoots[p]
			case s.done[p].has(x):
				me.drop = true // "an unknown done or closed without its list drops it whole"
			}
		}
		l := label(actList, w, one(x))
		if me.listed != among {
			emit(l, &t)
		}
		if me.listed.len() >= m.WriteQuorum {
			me.at = then
			emit(l, &t)
		}
	}
}

// writerSource is W3, "after W2 read the source afresh", and W4, what is reused.
func (m *model) writerSource(s *State, w int, kind Kind, emit func(explore.Label, *State)) {
	t := *s
	me := &t.writers[w]
	me.at = writerPack
	switch kind {
	case Incremental:
		if s.committed(0) {
			me.refs = s.refs[0] &^ me.condemned
		}
	case Indexed:
		if !me.drop || m.Mutation == ClosedIgnored {
			me.refs = one(0) &^ me.condemned
		}
	case Spare:
		if (!me.drop || m.Mutation == ClosedIgnored) && !me.condemned.has(0) {
			me.refs = one(spare)
		}
	case Undelete, Repair:
		if s.tomb[0] == 0 {
			return // nothing to undelete yet
		}
		if !s.committed(0) || me.dying.has(0) {
			me.at = writerEnd
			t.failed = t.failed.with(1 + w)
			emit(label(actGiveUp, w, 0), &t)
			return
		}
		me.refs = s.refs[0] &^ me.condemned
	}
	emit(label(actSource, w, me.refs), &t)
}

// writerPack is W5, "packs (k+d each)". An undeletion writes one only in place
// of a condemned one.
func (m *model) writerPack(s *State, w int, kind Kind, emit func(explore.Label, *State)) {
	for _, stores := range m.quorums(m.reach(s, w), m.packSets, m.PackQuorum) {
		t := *s
		me := &t.writers[w]
		me.at = writerRoot
		if kind != Undelete || me.refs != s.refs[0] {
			t.pack[1+w] |= stores
			me.refs = me.refs.with(1 + w)
		}
		emit(label(actPack, w, stores), &t)
	}
}

// writerVote is W7: "PUT-if-absent verdict = commit on every voter". It is told
// committed when 1+d stores that are still what they were at W1 hold its
// open, its root and its vote; it is told failed when all answered and none
// holds the vote; else the outcome is unknown.
func (m *model) writerVote(s *State, w int, emit func(explore.Label, *State)) {
	i := 1 + w
	all := m.voters(s, w)
	for _, x := range (m.reach(s, w) &^ s.writers[w].voted).members() {
		t := *s
		me := &t.writers[w]
		me.voted = me.voted.with(x)
		switch {
		case s.younger[i].has(x) && m.Mutation != NewStoreVotes:
			emit(label(actVoteYounger, w, one(x)), &t)
			continue
		case s.abort[i].has(x):
			if me.voted == all && t.commit[i] == 0 {
				t.failed = t.failed.with(i)
			}
			emit(label(actVoteLost, w, one(x)), &t)
			continue
		}
		t.commit[i] = t.commit[i].with(x)
		if m.Mutation == RefusedIsFailed {
			u := t
			if me.voted == all && me.votes == 0 {
				u.failed = u.failed.with(i)
			}
			emit(label(actVoteRefused, w, one(x)), &u)
		}
		me.votes++
		old := t.younger[i]
		if m.Mutation == NewStoreVotes {
			old = 0
		}
		held := min((t.commit[i] &^ old).len(), (t.root[i] &^ old).len(), (me.opened &^ old).len())
		if held >= m.WriteQuorum || m.Mutation == StaleVotes && int(me.votes) >= m.WriteQuorum {
			t.told = t.told.with(i)
		}
		emit(label(actVote, w, one(x)), &t)
	}
}

// repairRead is a repair that reads a root which it may write much later.
func (m *model) repairRead(s *State, w int, emit func(explore.Label, *State)) {
	t := *s
	t.writers[w].at = writerEnd
	if s.committed(0) {
		t.writers[w].at = repairCopy
	}
	emit(label(actRepairRead, w, 0), &t)
}

func (m *model) repairCopy(s *State, w int, emit func(explore.Label, *State)) {
	for _, x := range (m.all &^ s.outside &^ s.root[0]).members() {
		t := *s
		t.root[0] = t.root[0].with(x)
		if !s.abort[0].has(x) {
			t.commit[0] = t.commit[0].with(x)
		}
		emit(label(actRepairCopy, w, one(x)), &t)
	}
	t := *s
	t.writers[w].at = writerEnd
	emit(label(actRepairEnd, w, 0), &t)
}
