package protocol

import "github.com/cairnbackup/cairn/internal/protocol/explore"

// changeStep is how far a change of the members is: a store is added, or takes the
// place of one that is lost.
type changeStep uint8

const (
	changeNone  changeStep = iota
	changeLists            // marked; the first copying
	changeRest
	changeRetire     // the store that goes is no member for anybody
	changeListsAgain // the second copying
	changeRestAgain
	changePublish
	changeShards // it is a member, and the mark is gone
)

// join takes the next step of a change. Until the store is a member nobody else
// writes to it or asks it.
func (m *model) join(s *State, emit func(explore.Label, *State)) {
	if s.joining == 0 && s.change != changeShards {
		return
	}
	t := *s
	x := s.joining
	t.change++
	switch s.change {
	case changeNone:
		emit(label(actMark, 0, x), &t)
	case changeRetire:
		if m.Retire && s.version == 0 {
			t.outside |= one(0)
			t.opened(func(younger *set) { *younger |= one(0) })
		}
		emit(label(actRetire, 0, t.outside&^x), &t)
	case changeLists, changeListsAgain:
		for p := range maxPrunes {
			copied(&t.list[p], x)
			copied(&t.done[p], x)
		}
		emit(label(actJoinLists, 0, x), &t)
	case changeRest, changeRestAgain:
		t.copyRecords(x)
		if m.Mutation == ChangeCopiesOnce {
			t.change = changePublish
		}
		emit(label(actJoinRest, 0, x), &t)
	case changePublish:
		if m.Retire && s.version == 0 {
			t.wipe(0, m.Mutation)
		}
		t.outside, t.lost = t.outside&^x, false
		t.version++
		t.joining, t.joined = 0, x
		t.opened(func(younger *set) { *younger |= x }) // they have it not among their voters
		emit(label(actJoin, 0, x), &t)
	case changeShards:
		for i := range maxSessions {
			if s.pack[i].len() >= m.DataShards {
				t.pack[i] |= s.joined
			}
		}
		t.change, t.joined = changeNone, 0
		emit(label(actJoinShards, 0, s.joined), &t)
	}
}

// opened calls fn for the younger stores of all who opened a session before.
func (s *State) opened(fn func(younger *set)) {
	for i := range maxSessions {
		if i == 0 || s.writers[i-1].opened != 0 {
			fn(&s.younger[i])
		}
	}
	for p := range maxPrunes {
		if c := &s.compactions[p]; c.open != 0 {
			fn(&c.younger)
		}
	}
}

func copied(stores *set, to set) {
	if *stores != 0 {
		*stores |= to
	}
}

// copyRecords copies to a store what the others have of sessions: votes as
// certificates, and no aborts.
func (s *State) copyRecords(to set) {
	for i := range maxSessions {
		for _, stores := range []*set{&s.open[i], &s.root[i], &s.commit[i], &s.tomb[i], &s.purge[i]} {
			copied(stores, to)
		}
	}
	for p := range maxPrunes {
		c := &s.compactions[p]
		for _, stores := range []*set{&c.open, &c.commit, &c.forward[0], &c.forward[1]} {
			copied(stores, to)
		}
	}
}

// voters are the stores on which a writer votes: the members at its W1.
func (m *model) voters(s *State, w int) set {
	switch {
	case !m.Steps:
		return m.all
	case s.writers[w].opened != 0:
		return s.writers[w].voters
	case s.lost:
		return m.all
	default:
		return m.all &^ s.outside
	}
}

// reach are those of them that can be reached.
func (m *model) reach(s *State, w int) set { return m.voters(s, w) &^ s.outside }

// quorums are the sets of q stores of those that can be reached, and all of these.
// Without Steps that is the same every time.
func (m *model) quorums(reach set, always []set, q int) []set {
	if !m.Steps {
		return always
	}
	var all []set
	for s := set(1); s <= m.all; s++ {
		if s.within(reach) && (s == reach || s.len() == q && !m.AllUp) && s.len() >= q {
			all = append(all, s)
		}
	}
	return all
}
