package repository

import "time"

// PruneOptions say how a prune goes about it.
type PruneOptions struct {
	// DryRun stops before P5: nothing is written.
	DryRun bool
	// Silence is how long a session that is not decided may show no progress
	// before it is aborted; its backup then fails. 0 = 10 minutes.
	Silence time.Duration
	// MaxShare is the part of the repository's bytes that may go without
	// being asked for: more is refused with ErrLargePrune. 0 = 0.2; 1 = all.
	MaxShare float64
	// Compact is which part of a pack has to be dead for what is alive of it to
	// move into a new one. 0 = 0.5; 1 = none is compacted.
	Compact float64
	// listMost, if not 0, is how many packs of each sort a list names, for tests.
	listMost int
	// Progress, if not nil, is told each step, and while it waits or deletes.
	Progress func(PruneProgress)
}

// PruneProgress says where a prune is.
type PruneProgress struct {
	Step        string
	Done, Total int64 // of the step; Total 0 = unknown
}

// PruneReport is what a prune did, or would do.
type PruneReport struct {
	ID      string
	Trash   int   // backups with a tombstone
	Backups int   // backups that went for good
	Aborted int   // root records that went of sessions that were dead already
	Packs   int   // packs that went
	Bytes   int64 // of their shards, on all stores
	Kept    int64 // bytes of shards that stay
	Fenced  int   // sessions that were silent and are aborted now
	Waiting int   // packs of sessions that were not decided in time for this prune
	Left    int   // packs that did not fit on this prune's list: the next one takes them
	Locked  int   // objects that a store retains still: a later prune removes them
	Lists   int   // lists of other prunes that were tidied away

	Compacted int      // packs that went because their live chunks moved
	Healed    int      // of these, packs that were beyond repair: all that backups need of them was stored again, or is readable
	Moved     int64    // sealed bytes that moved, once and without parity
	Freed     int64    // bytes of the shards of compacted packs, less those of the new ones; before it is done, an estimate
	Problems  []string // why packs were not compacted, in sentences
}
