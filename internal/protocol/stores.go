package protocol

import "github.com/cairnbackup/cairn/internal/protocol/explore"

// user deletes backup 0: a PUT of its tombstone.
func (m *model) user(s *State, emit func(explore.Label, *State)) {
	if !s.deleted {
		for _, stores := range m.quorums(m.all&^s.outside, m.writeSets, m.WriteQuorum) {
			t := *s
			t.tomb[0] |= stores
			t.deleted = true
			emit(label(actDelete, 0, stores), &t)
		}
	}
	if m.Mutation == UndeleteInPlace && s.deleted && s.committed(0) {
		t := *s
		t.tomb[0], t.deleted = 0, false
		emit(label(actUndelete, 0, 0), &t)
	}
}

// lose takes a store with all that is on it, and puts an empty one in its
// place; with Resync that is filled in one step before the next is lost.
func (m *model) lose(s *State, emit func(explore.Label, *State)) {
	if s.unsynced != 0 {
		t := *s
		m.fill(&t, s.unsynced)
		t.unsynced = 0
		emit(label(actResync, 0, s.unsynced), &t)
		return
	}
	if int(s.losses) == m.Losses || s.joining != 0 || s.change != changeNone {
		return
	}
	for _, x := range (m.all &^ s.outside).members() {
		t := *s
		t.wipe(x, m.Mutation)
		t.losses++
		switch {
		case m.Steps:
			t.outside, t.joining, t.lost = t.outside.with(x), one(x), true
		case m.Resync:
			t.unsynced = one(x)
		}
		emit(label(actLose, 0, one(x)), &t)
	}
}

func (s *State) wipe(x int, mutation Mutation) {
	for i := range maxSessions {
		if i == 0 || s.writers[i-1].opened != 0 {
			s.younger[i] = s.younger[i].with(x)
		}
		for _, stores := range []*set{&s.pack[i], &s.open[i], &s.commit[i], &s.abort[i], &s.root[i], &s.tomb[i], &s.purge[i]} {
			*stores = stores.without(x)
		}
		if mutation == NewStoreVotes {
			s.younger[i] = 0
		}
	}
	for p := range maxPrunes {
		s.compactions[p].wipe(x)
		s.list[p], s.done[p] = s.list[p].without(x), s.done[p].without(x)
		// "P8 All members are still who they were, or the prune is void."
		if at := s.prunes[p].at; mutation != NotPinned && at > pruneStart && at <= prunePurge {
			s.prunes[p].at = pruneVoid
		}
	}
}

// fill copies to the store all that any other has: votes as certificates, so
// no aborts, and packs where enough shards are left to compute one.
func (m *model) fill(s *State, store set) {
	s.copyRecords(store)
	for i := range maxSessions {
		if s.pack[i].len() >= m.DataShards {
			s.pack[i] |= store
		}
	}
	for p := range maxPrunes {
		if c := &s.compactions[p]; c.pack.len() >= m.DataShards {
			c.pack |= store
		}
		copied(&s.list[p], store)
		copied(&s.done[p], store)
	}
}

// latePut is a PUT sent long ago that takes effect again.
func (m *model) latePut(s *State, emit func(explore.Label, *State)) {
	if int(s.late) == m.LatePuts {
		return
	}
	put := func(of *State, a action, w int, stores *set, x int) {
		if !stores.has(x) {
			*stores = stores.with(x)
			of.late++
			emit(label(a, w, one(x)), of)
		}
	}
	for w, kind := range m.Writers {
		if s.writers[w].at != writerEnd && s.writers[w].voted != m.all || kind == Repair {
			continue
		}
		for x := range m.Stores {
			t, u := *s, *s
			if s.writers[w].rootSent {
				put(&t, actLateRoot, 1+w, &t.root[1+w], x)
			}
			if kind != Undelete && s.refs[1+w].has(1+w) {
				put(&u, actLatePack, 1+w, &u.pack[1+w], x)
			}
		}
	}
	m.lateCompaction(s, put)
	if s.purged.has(0) {
		t := *s
		put(&t, actLateRoot, 0, &t.root[0], 0)
	}
}
