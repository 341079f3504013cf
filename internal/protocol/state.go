package protocol

import "math/bits"

const (
	maxSessions = 4 // 0 wrote backup 0 and its pack before the start; 1+w is that of writer w
	maxWriters  = maxSessions - 1
	maxPrunes   = 3

	// Pack 0 has two chunks: 0, which backup 0 needs, and spare, which nobody
	// needs any more. In sets of packs, moved+p is the one to which prune p
	// compacted it. With Shared, spare is another pack that moved; see shared.go.
	spare = maxSessions
	moved = spare + 1

	olds = 2 // packs that may have moved: 0 and, with Shared, spare
)

const chunks = set(1 | 1<<spare) // of pack 0

// set is a set of stores or of sessions, by number. A session writes at most
// one pack and one backup, which have its number.
type set uint8

func (s set) has(i int) bool     { return s>>i&1 != 0 }
func (s set) with(i int) set     { return s | 1<<i }
func (s set) without(i int) set  { return s &^ (1 << i) }
func (s set) len() int           { return bits.OnesCount8(uint8(s)) }
func (s set) meets(t set) bool   { return s&t != 0 }
func (s set) within(t set) bool  { return s&^t == 0 }
func (s set) lacks(t set) bool   { return s&t == 0 }
func one(i int) set              { return 1 << i }
func (s set) members() (m []int) { return members[s] }

var members = func() (m [256][]int) {
	for s := range m {
		for i := range 8 {
			if s>>i&1 != 0 {
				m[s] = append(m[s], i)
			}
		}
	}
	return m
}()

// State is all stores and all that anybody remembers. It holds arrays of
// bytes only, so that states are copied and compared fast.
type State struct {
	// On which stores the objects of each session are.
	pack, open, commit, abort, root, tomb, purge [maxSessions]set
	refs                                         [maxSessions]set // the packs that the root names
	// younger are the stores that were replaced since the session opened:
	// they are none of its voters.
	younger [maxSessions]set

	// On which stores the objects of each prune are, and what they say.
	list, done           [maxPrunes]set
	listPacks, listRoots [maxPrunes]set
	doneTombs            [maxPrunes]set

	compactions [maxPrunes]compaction

	writers [maxWriters]writer
	prunes  [maxPrunes]prune

	told, failed set  // sessions whose writer was told committed, or failed
	purged       set  // sessions that a prune purged though they had a commit
	deleted      bool // the user deleted backup 0
	losses, late uint8
	unsynced     set // the store that was replaced and is not filled yet

	outside set // with Steps: stores that are no members, or lost
	lost    bool
	joining set // the store that is to join
	joined  set // the store that did, and has no shards yet
	change  changeStep
	version uint8 // of the membership
}

// writer is what a writer knows.
type writer struct {
	at        writerStep
	voters    set // with Steps: the members at W1
	opened    set // stores that acknowledged W1
	listed    set // stores whose lists it read at W2
	condemned set // C: packs
	dying     set // C: backups
	drop      bool
	refs      set // packs that its root will name
	rootSent  bool
	voted     set // voters that answered W7
	votes     uint8
}

// prune is what a prune knows.
type prune struct {
	at      pruneStep
	members set // the stores of P0
	version uint8
	reached set // stores done in the present step
	aged    set // tombstones that a done named
	tombs   set // tombstones seen
	packs   set // listed at P2
	decided set // sessions, at P3
	waits   set // Q of P6
	sweep   set // packs left to delete
	roots   set // P4: not condemned
	compact compactStep
	newest  [olds]uint8 // 1 + the prune whose forwarding counts, at P4; 0: none
	live    set         // chunks of pack 0 that backups need, at P4 and P7
	strays  [olds]set   // prunes whose forwardings are superseded, or lead nowhere
}

// committed says whether readers take session i's backup for a live one.
func (s *State) committed(i int) bool {
	return s.root[i] != 0 && s.commit[i] != 0 && s.purge[i] == 0
}

// aborted says whether session i is decided so, as far as the stores of q
// know. A commit on a younger store is a certificate, and counts; an abort
// there does not.
func (s *State) aborted(i int, q set) bool {
	return s.commit[i].lacks(q) && (q &^ s.younger[i]).within(s.abort[i])
}
