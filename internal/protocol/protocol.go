// Package protocol is a model of how writers, deletions and prunes share the
// stores of a repository, small enough that every order of their steps can be
// tried. The steps W1–W8 and P0–P11 are those of internal/repository/PROTOCOL.md;
// README.md says what is modeled. The package is used by its tests only.
package protocol

import "github.com/cairnbackup/cairn/internal/protocol/explore"

// Kind is what a writer does.
type Kind uint8

// The kinds of writers.
const (
	Incremental Kind = iota // reuses packs of its parent, backup 0
	Indexed                 // reuses packs that a local index knows
	Undelete                // a session whose source is backup 0 in the trash
	Repair                  // copies backup 0 to the stores that lack it, without a session
	Spare                   // reuses the chunk of pack 0 that no backup needs, which a local index knows
)

// Start is the state that an exploration begins with.
type Start uint8

// The states to begin with.
const (
	Live   Start = iota // backup 0 is live; the user may delete it
	Aged                // backup 0 is deleted, and one whole prune has passed
	Purged              // backup 0 is purged; its pack is still there
)

// Mutation is a protocol with one rule left out: each must be found to be
// unsafe, or the rule would not be needed, or the model would not see it.
type Mutation uint8

// The rules that may be left out.
const (
	None            Mutation = iota
	ListBeforeOpen           // W2 before W1
	ClosedIgnored            // W4: the index outlives lists that were never seen
	RefusedIsFailed          // W7: a 412 is taken for a lost vote, without GET
	StaleVotes               // W7: votes gathered before a store was replaced count
	NewStoreVotes            // votes on stores that are no voters count
	UndeleteInPlace          // an undeletion takes the tombstone away, without a session
	NoAging                  // P1: tombstones are acted on by the first prune
	NoWait                   // P6 left out
	NoSecondListing          // P7 left out
	NotPinned                // P8: a prune goes on when a store was replaced
	NoPurgeMark              // P8: roots are deleted without a mark
	DeadListRemoved          // P11: the list of a prune that seems dead is removed

	CompactUnlisted      // P5: packs that will be compacted are not on the list
	CompactEarlyReach    // only what P4 reached is moved
	CompactNoSession     // a compaction's pack is decided from the beginning
	CompactUncommitted   // the old pack goes without the votes
	ForwardingsIgnored   // P4: what forwardings name is not marked
	ForwardedUnlisted    // P5: packs that only forwardings name go without the pack that they replace
	OldestForwardingWins // of two forwardings the older one stays
	RescuedCompacted     // P7: a pack is compacted that also has chunks of one which somebody needs again

	ChangeUnmarked   // P0, P8: a change of the members is not looked for
	ChangeCopiesOnce // a store joins behind the first copying
)

// Config is a repository and who uses it.
type Config struct {
	Stores      int // n
	DataShards  int // k
	PackQuorum  int // stores that acknowledge a pack before it counts: k+d
	WriteQuorum int // the same for control objects: 1+d
	PruneQuorum int // stores that a prune needs: n

	Steps  bool // a store that is added or replaced joins step by step
	Adds   bool // with Steps: the last store is no member yet, and joins
	Retire bool // with Adds: store 0, which answers, is the one whose place it takes
	Losses int  // how many times a store is lost and replaced by an empty one
	Resync bool // a replaced store is filled before the next one is lost, and prunes start only then

	Writers  []Kind // at most 3
	Prunes   int    // at most 3
	Compact  bool   // prunes may compact pack 0
	Shared   bool   // with Compact: before the start prune 0 moved two packs into one
	LatePuts int    // PUTs sent before that take effect a second time
	AllUp    bool   // writers reach all stores: fewer states
	Start    Start
	Mutation Mutation
}

type model struct {
	Config
	all         set
	writeSets   []set // the stores that may acknowledge a control object
	packSets    []set // the same for a pack
	pruneQuorum []set
}

// Explore visits the states of c, at most about limit of them.
func Explore(c Config, limit int) explore.Result {
	m := &model{Config: c, all: set(1)<<c.Stores - 1}
	for s := set(1); s <= m.all; s++ {
		quorum := func(q int) bool { return s == m.all || s.len() == q && !c.AllUp }
		if quorum(c.WriteQuorum) {
			m.writeSets = append(m.writeSets, s)
		}
		if quorum(c.PackQuorum) {
			m.packSets = append(m.packSets, s)
		}
		if s.len() == c.PruneQuorum {
			m.pruneQuorum = append(m.pruneQuorum, s)
		}
	}
	return explore.Run(m, m.start(), limit)
}

func (m *model) start() State {
	var s State
	if m.Adds {
		s.joining = one(m.Stores - 1)
		s.outside = s.joining
	}
	all := m.all &^ s.outside
	s.pack[0], s.commit[0], s.refs[0], s.root[0] = all, all, set(1), all
	switch m.Start {
	case Live:
	case Aged:
		s.tomb[0], s.deleted = all, true
	case Purged:
		s.root[0], s.purge[0] = 0, all
		s.purged, s.deleted = s.purged.with(0), true
	}
	if m.Shared {
		s.share(all)
	}
	return s
}

// Next does each step that somebody can take in s.
func (m *model) Next(s *State, emit func(explore.Label, *State)) {
	for w, kind := range m.Writers {
		m.writer(s, w, kind, emit)
	}
	for p := range m.Prunes {
		m.prune(s, p, emit)
		m.tidy(s, p, emit)
	}
	m.user(s, emit)
	m.lose(s, emit)
	m.join(s, emit)
	m.latePut(s, emit)
}
