package repository

import (
	"context"
	"slices"
)

// CheckOptions say how deep a check goes.
type CheckOptions struct {
	// ReadData verifies every cell of every shard and opens every chunk of
	// every backup. Without it the shards only have to be there, with the right
	// size.
	ReadData bool
	// Share makes ReadData read only this percentage of the packs, one at least:
	// those behind the position After. Whoever passes on the Position of each
	// finished check to the next reads everything in turn. Zero and 100 mean all.
	Share int
	// After is the Position of an earlier check; empty = the beginning.
	After string
	// Before is what an interrupted check has done already: packs by their ID, and
	// whether all was well with them. Those that were sound are not read again. Of one
	// that was not and is now, the report says so: it is never clean.
	Before map[string]bool
	// Opened are the backups, by their sessions, whose chunks that check opened in
	// every pack of Before that was sound. What others have there is opened now.
	Opened map[string]bool
	// Opens, if not nil, is told of these backups before Read is told of the first
	// pack, and whenever there are fewer of them: what counts is what it was told
	// last. Its error ends the check. Not concurrently.
	Opens func(sessions []string) error
	// Read, if not nil, is told of each pack whose data was read and whether all was
	// well, for a check that is interrupted to go on from. It makes ReadData go pack
	// by pack in some parts, each of which goes through all manifests. Its error ends
	// the check. Not concurrently.
	Read func(pack string, sound bool) error
	// Publish puts what ReadData finds to be beyond repair on the stores, for the
	// next backups to heal. It is the only thing that a check writes.
	Publish bool
	// Pace, if not nil, is called before n bytes are read for ReadData, and may
	// wait; its error ends the check. Not concurrently.
	Pace func(ctx context.Context, n int64) error
	// Progress, if not nil, is called now and then, by one goroutine at a time.
	Progress func(CheckProgress)
}

// CheckProgress says how far a check is. Total grows while backups are read.
type CheckProgress struct {
	Phase       string // "backups", "packs", "data"
	Done, Total int64
}

// CheckReport is what a check found.
type CheckReport struct {
	Backups  []BackupReport
	Stores   []StoreReport
	Packs    int      // that the backups need
	Read     int      // of these, the packs whose data was read
	Recalled int      // of these, the packs that were read by the check that this one goes on with
	Position string   // where the next check with a Share goes on
	Problems []string // of the repository as a whole
	Unjudged string   // what could not be judged, as the key was rotated and the password does not open the new one; empty = nothing

	Beyond      int    // packs that are known to be damaged beyond repair, by this check or earlier ones (Publish)
	Unpublished string // why that is not on the stores for the next backups to heal; empty = it is (Publish)
}

// OK reports whether there is nothing to mend: every backup can be restored and
// every store has everything.
func (c CheckReport) OK() bool {
	return len(c.Problems) == 0 && c.Unjudged == "" &&
		!slices.ContainsFunc(c.Backups, func(b BackupReport) bool { return !b.Restorable || len(b.Problems) > 0 }) &&
		!slices.ContainsFunc(c.Stores, func(s StoreReport) bool {
			return s.Status.State != StoreUp || s.Missing > 0 || s.Damaged > 0 || len(s.Problems) > 0
		})
}

// BackupReport is what a check says about one backup.
type BackupReport struct {
	Backup     Backup
	Restorable bool // completely
	Unjudged   bool // it is not Restorable only in that the password does not open where some of it is: it may well be
	Problems   []string
	Damaged    []DamagedRange // blocks that cannot be read, in order
	BlockSize  int64          // bytes; zero if nothing of the backup can be read

	broken bool // something of it cannot be read, whatever the password
}

// DamagedRange is a run of blocks of a volume.
type DamagedRange struct{ First, Count int64 }

// StoreReport is what a check says about one store.
type StoreReport struct {
	Status   StoreStatus
	Missing  int64 // shards and records that should be there and are not, or have a wrong size
	Damaged  int64 // those with wrong bytes (ReadData)
	Problems []string
}

// maxProblems bounds the sentences in each part of a report.
const maxProblems = 20

func addProblem(to *[]string, text string) {
	switch {
	case len(*to) < maxProblems && !slices.Contains(*to, text):
		*to = append(*to, text)
	case len(*to) == maxProblems:
		*to = append(*to, "and more")
	}
}
