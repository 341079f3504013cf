package protocol

import (
	"fmt"

	"github.com/cairnbackup/cairn/internal/protocol/explore"
)

// Rotation is the model of how a rotation of the key is published or given up: what
// each store has under the name of the next membership, of which it creates one. The
// one who gives up publishes another membership there.
type Rotation struct {
	Stores, DataShards int
	Lost               int // stores that may be named as gone for good
	Mutation           RotationMutation
}

// RotationMutation is a rule that is left out.
type RotationMutation uint8

// Rules that the rotation of keys hangs on.
const (
	RotationSound      RotationMutation = iota
	PublishedByFewer                    // told on n-k stores
	FollowedUnseen                      // who meets it writes under it, on however few stores it is
	BeginAsksFewer                      // a writer asks k-1 stores whether its key is the newest
	GivenUpWithoutName                  // nothing is published in its place
	GivenUpOnSome                       // on k stores, not on all that are left
	LostStayMembers                     // a store that was named counts when it is back
)

// slots of a store, under the name of the next membership.
const (
	slotFree uint8 = iota
	slotRotated
	slotGivenUp
)

// maxRotated is how many stores the model has at most.
const maxRotated = 6

// RotationState is what is on the stores, and what the participants remember.
type RotationState struct {
	slot   [maxRotated]uint8
	away   set  // stores that do not answer just now; they come back as they were
	named  set  // those that were named as gone for good
	looked set  // those that the one who gives up found without the rotation
	giving bool // somebody gives it up
	told   bool // the one who rotates was told that the key is rotated
	used   bool // something is written under the new key
	gaveUp bool // somebody was told that the rotation is given up
}

// Start is the state behind the mark.
func (Rotation) Start() RotationState { return RotationState{} }

func (m Rotation) all() set { return 1<<m.Stores - 1 }

// published is on how many stores a rotation has to be before anybody relies on it:
// any k stores have one with it.
func (m Rotation) published() int {
	if m.Mutation == PublishedByFewer {
		return m.Stores - m.DataShards
	}
	return m.Stores - m.DataShards + 1
}

func (s *RotationState) with(slot uint8) (out set) {
	for x, has := range s.slot {
		if has == slot {
			out = out.with(x)
		}
	}
	return out
}

// Steps of the model.
const (
	rotAway uint8 = iota
	rotBack
	rotPut
	rotTold
	rotUse
	rotName
	rotLook
	rotFence
	rotGaveUp
)

// Next calls emit for each possible step.
func (m Rotation) Next(s *RotationState, emit func(explore.Label, *RotationState)) {
	step := func(what uint8, x set, change func(*RotationState)) {
		t := *s
		change(&t)
		emit(explore.Label(what)<<8|explore.Label(x), &t)
	}
	for x := range m.Stores {
		if s.away.has(x) {
			step(rotBack, one(x), func(t *RotationState) { t.away = t.away.without(x) })
			continue
		}
		step(rotAway, one(x), func(t *RotationState) { t.away = t.away.with(x) })
		// By the one who rotates, or by whoever meets it and has its key.
		if s.slot[x] == slotFree {
			step(rotPut, one(x), func(t *RotationState) { t.slot[x] = slotRotated })
		}
	}
	rotated := s.with(slotRotated) & m.all()
	if !s.told && rotated.len() >= m.published() {
		step(rotTold, rotated, func(t *RotationState) { t.told = true })
	}
	if !s.used && (rotated.len() >= m.published() || m.Mutation == FollowedUnseen && rotated != 0) {
		step(rotUse, rotated, func(t *RotationState) { t.used = true })
	}
	m.giveUp(s, step)
}

// giveUp are the steps of the one who gives up: all stores but those that are named
// are looked at, then get another membership under the same name.
func (m Rotation) giveUp(s *RotationState, step func(uint8, set, func(*RotationState))) {
	if !s.giving {
		for lost := set(0); lost <= m.all(); lost++ {
			if lost.within(s.away) && lost.len() <= m.Lost && m.Stores-lost.len() >= m.DataShards {
				step(rotName, lost, func(t *RotationState) { t.giving, t.named = true, lost })
			}
		}
		return
	}
	staying := m.all() &^ s.named
	for _, x := range (staying &^ s.away).members() {
		switch {
		case !s.looked.has(x) && s.slot[x] == slotFree:
			step(rotLook, one(x), func(t *RotationState) { t.looked = t.looked.with(x) })
		case s.looked == staying && s.slot[x] == slotFree && m.Mutation != GivenUpWithoutName:
			step(rotFence, one(x), func(t *RotationState) { t.slot[x] = slotGivenUp })
		}
	}
	enough := s.with(slotGivenUp) == staying
	if m.Mutation == GivenUpWithoutName {
		enough = s.looked == staying
	}
	if m.Mutation == GivenUpOnSome {
		enough = s.with(slotGivenUp).len() >= m.DataShards
	}
	if enough && !s.gaveUp {
		step(rotGaveUp, staying, func(t *RotationState) { t.gaveUp = true })
	}
}

// Check returns what is wrong with a state.
func (m Rotation) Check(s *RotationState) string {
	rotated, expelled := s.with(slotRotated)&m.all(), s.named
	if m.Mutation == LostStayMembers {
		expelled = 0
	}
	switch {
	case s.gaveUp && s.told:
		return "the same rotation is told to be done and to be given up"
	case s.gaveUp && s.used:
		return "something is written under a key that was given up"
	case s.gaveUp && rotated&^expelled != 0:
		return "a rotation that was given up shuts other passwords out"
	}
	asks := m.DataShards
	if m.Mutation == BeginAsksFewer {
		asks--
	}
	for r := set(1); s.told && r <= m.all(); r++ {
		counted := r
		if r.meets(s.with(slotGivenUp)) {
			counted &^= expelled
		}
		if counted.len() >= asks && counted.lacks(rotated) {
			return fmt.Sprintf("a writer that asks the stores %v begins under the old key", counted.members())
		}
	}
	return ""
}

// Describe says in words what a step does.
func (Rotation) Describe(l explore.Label) string {
	what := [...]string{"goes away", "is back", "takes the rotated membership", "have it: told that it is done", "have it: written under its key", "are named as lost", "is looked at", "takes the other membership", "have that: told that it is given up"}
	return fmt.Sprintf("stores %v: %s", set(l&0xff).members(), what[l>>8])
}
