package protocol

import "fmt"

// Check holds s to the invariants of PROTOCOL.md.
func (m *model) Check(s *State) string {
	for i := range maxSessions {
		if bad := m.checkBackup(s, i); bad != "" {
			return bad
		}
	}
	return m.drained(*s)
}

func (m *model) checkBackup(s *State, i int) string {
	kept := s.told.has(i)
	if i == 0 {
		kept = !m.mayGo(s)
	}
	switch {
	case kept && s.root[i] == 0:
		return fmt.Sprintf("I2: the root of backup %d is gone", i)
	case kept && s.commit[i] == 0:
		return fmt.Sprintf("I2: no commit vote proves backup %d any more", i)
	case s.told.has(i) && s.aborted(i, m.all):
		return fmt.Sprintf("I2: session %d was told committed, and is aborted", i)
	case s.failed.has(i) && s.committed(i):
		return fmt.Sprintf("I3: session %d was told failed, and is committed", i)
	case s.failed.has(i) && s.told.has(i):
		return fmt.Sprintf("I3: session %d was told both", i)
	case s.purged.has(i) && s.committed(i) && m.Losses < m.Stores:
		return fmt.Sprintf("I6: backup %d was purged, and is live", i)
	case kept || i > 0 && s.committed(i):
		for _, j := range s.refs[i].members() {
			if !m.readable(s, j) {
				return fmt.Sprintf("I1: backup %d lacks pack %d", i, j)
			}
		}
	}
	return ""
}

// mayGo says whether backup 0 may go: I4, "a tombstoned backup is intact until a
// prune that started after another's done condemned it".
func (m *model) mayGo(s *State) bool {
	if !s.deleted {
		return false
	}
	if m.Start != Live {
		return true
	}
	for p := range m.Prunes {
		if s.done[p] != 0 && s.doneTombs[p].has(0) {
			return true
		}
	}
	return false
}

// drained is I5: "all crash, stores are back, three quiet prunes: no garbage".
func (m *model) drained(s State) string {
	for round := range 3 {
		var marked set
		for i := range maxSessions {
			if (s.open[i] != 0 || i > 0 && s.pack[i]|s.root[i] != 0) && s.commit[i] == 0 {
				s.abort[i] = m.all
			}
			if round > 0 && s.tomb[i] != 0 || s.purge[i] != 0 || s.aborted(i, m.all) {
				s.root[i] = 0
			}
			if s.root[i] != 0 {
				marked |= s.refs[i]
			}
		}
		for i := range maxSessions {
			if !marked.has(i) && (s.commit[i] != 0 || s.abort[i] == m.all) && (i > 0 || !marked.has(spare)) {
				s.pack[i] = 0
			}
		}
		m.drainForwarded(&s, marked)
	}
	for i := range maxSessions {
		named := false
		for j := range maxSessions {
			named = named || s.root[j] != 0 && (s.refs[j].has(i) || i == 0 && s.refs[j].has(spare))
		}
		if s.pack[i] != 0 && !named {
			return fmt.Sprintf("I5: pack %d is garbage for ever", i)
		}
	}
	return ""
}
