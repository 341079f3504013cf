package protocol

import "github.com/cairnbackup/cairn/internal/protocol/explore"

// With Shared there are two packs that moved before the start, into one: pack 0,
// which backup 0 needs, and spare, which the live backup of keeper needs. Both are
// names only; moved+0 has their chunks, and each has a forwarding of its own. What a
// prune then compacts is the pack that has spare's: if backup 0 is condemned, pack 0
// is no source of that, and its chunk is dead, unless somebody needs it at P7.

// keeper is the session of the backup that needs spare.
const keeper = maxSessions - 1

// share is the start: prune 0 moved both, and has ended.
func (s *State) share(all set) {
	s.pack[0] = 0
	s.root[keeper], s.commit[keeper], s.refs[keeper] = all, all, one(spare)
	s.told = s.told.with(keeper)
	s.compactions[0] = compaction{pack: all, commit: all, forward: [olds]set{all, all}, kept: chunks}
	s.prunes[0].at = pruneEnd
}

// name is how manifests, and the lists of prunes, name a pack that moved.
func name(o int) int {
	if o == 0 {
		return 0
	}
	return spare
}

// olds is how many packs may have moved.
func (m *model) olds() int {
	if m.Shared {
		return olds
	}
	return 1
}

// of is the chunks of a pack that moved, old its inverse.
func (m *model) of(o int) set {
	if m.Shared {
		return one(name(o))
	}
	return chunks
}

func (m *model) old(chunk int) int {
	if m.Shared && chunk == spare {
		return 1
	}
	return 0
}

// sources are the packs whose chunks a compaction moves: those that were marked at P4
// and are where spare is.
func (m *model) sources(p *prune) []int {
	switch {
	case !m.Shared:
		return []int{0}
	case p.newest[0] == p.newest[1]:
		return []int{0, 1}
	}
	return []int{1}
}

// chunksOf is the chunks of the sources.
func (m *model) chunksOf(p *prune) (s set) {
	for _, o := range m.sources(p) {
		s |= m.of(o)
	}
	return s
}

// shared is the pack that has spare's chunk.
func (p *prune) shared() set { return one(moved + int(p.newest[1]) - 1) }

// mayCompactShared is mayCompact: the pack goes on the list, and its sources.
func (m *model) mayCompactShared(t *State, p int, emit func(explore.Label, *State)) {
	me := &t.prunes[p]
	if me.newest[1] == 0 || int(me.newest[1]) > p {
		return
	}
	u := *t
	u.prunes[p].compact = compactOpen
	u.listPacks[p] |= me.shared()
	for _, o := range m.sources(me) {
		u.listPacks[p] = u.listPacks[p].with(name(o))
	}
	emit(label(actCompactWill, p, u.listPacks[p]), &u)
}

// mayLeaveOut is P4 when the list has no room for the packs that nobody needs and that
// moved: what has their chunks stays, and so do their forwardings.
func (m *model) mayLeaveOut(t *State, p int, emit func(explore.Label, *State)) {
	u := *t
	me := &u.prunes[p]
	for o := range m.olds() {
		if me.newest[o] > 0 {
			continue
		}
		me.strays[o] = 0
		u.listPacks[p] = u.listPacks[p].without(name(o))
		for j := range m.Prunes {
			if t.compactions[j].forward[o] != 0 {
				u.listPacks[p] = u.listPacks[p].without(moved + j)
			}
		}
	}
	if u != *t {
		emit(label(actPruneMark, p, u.listPacks[p]), &u)
	}
}

// againShared is what again does for a pack that was not marked at P4: whatever may
// lead to its chunks stays, and what has them is not compacted.
func (m *model) againShared(s *State, p *prune, reached set) {
	for o := range m.olds() {
		if reached.lacks(m.of(o)) || p.newest[o] > 0 {
			continue
		}
		p.strays[o] = 0
		for j := range m.Prunes {
			if s.compactions[j].forward[o] == 0 {
				continue
			}
			p.sweep = p.sweep.without(moved + j)
			if p.compact != compactNot && p.shared().has(moved+j) && m.Mutation != RescuedCompacted {
				p.compact = compactNot
			}
		}
	}
}
