// Package repocopy copies backups from one repository to another.
//
// # How it goes
//
// Each backup is one session of the destination, as if the volume were backed up
// there: what is read is the image in the source, chunks get the IDs and keys of
// the destination, and the root record is written last. So a copy is committed
// whole or not at all, dedup and retention are the destination's, and a prune
// over there knows no difference.
//
// When the destination has another backup of the same volume that the source has
// as well – the base – two manifests of the source are compared, and only the
// blocks in which they differ are read; all others are those of the base in the
// destination. Chunk IDs are keyed, so that IDs of two repositories cannot be
// compared: the base is found by its backup ID. Without a base everything is
// read that is no hole.
//
// While a backup is read it is pinned in the source, so that nobody's deletion
// and prune take it away half-way. A source that cannot be written to is read
// all the same: what a prune takes then ends that copy, and nothing is listed. A
// pin has the ID of its copy's session in the destination, and what is decided
// about that session holds for the pin: a copy that was killed is aborted by a
// prune of the destination, and the next copy then removes its pin.
//
// # What is left out
//
// With Options.Newer a backup is left out that is older than the newest of its
// volume in the destination, so that what was deleted and pruned there does not
// come back. What failed for now must not fall behind others then: nothing else of
// its volume is tried in that run. What is damaged is told once, and others pass it.
//
// # Memory
//
// That of a backup run (package backup) and of one open image, and 24 bytes for
// each run of blocks that differ, or of holes.
package repocopy

import (
	"github.com/cairnbackup/cairn/internal/repository"
)

// leastWorkers is how many workers a copy has at least: its source is as far
// away as stores are.
const leastWorkers = 4

// Options say how to copy. The zero value copies.
type Options struct {
	// DryRun writes nothing to either repository and only says what would be
	// done. Manifests are read.
	DryRun bool
	// Newer leaves out what is older than the newest backup of its volume in the
	// destination, its trash included.
	Newer bool
	// By says in the source's pins who reads, such as a command's name.
	By string
	// Workers of one backup; 0 = one per core, at least four.
	Workers int
	// Progress, when not nil, is told how far the backup is that is being copied:
	// at most ten times a second, by one goroutine at a time.
	Progress func(Progress)
	// Done, when not nil, is told each result as it is known.
	Done func(Result)
}

// Progress is how far the copy of one backup is.
type Progress struct {
	Backup      repository.Backup
	Done, Total int64 // bytes to be read
}

// State is what became of a backup.
type State string

// The states.
const (
	Copied      State = "copied"      // or would be, in a dry run
	Present     State = "present"     // the destination has it: nothing was done
	InTrash     State = "trash"       // the destination has it in its trash: nothing was done
	Unconfirmed State = "unconfirmed" // the source does not know that it exists: nothing was done
	Older       State = "older"       // the destination has a newer one of the volume: nothing was done
	Gone        State = "gone"        // it was deleted in the source meanwhile: nothing of it is listed
	NotTried    State = "not_tried"   // what failed before it would fail it too, or had to be first
	Failed      State = "failed"      // nothing of it is listed; Err says why
)

// Result is what became of one backup, and what that cost. Bytes are of the
// volume unless they say otherwise; in a dry run they are what would be read and
// skipped.
type Result struct {
	Backup  repository.Backup // as the source has it
	State   State
	Base    string // ID of the backup whose blocks were taken over unread; empty = none
	Read    int64
	New     int64 // stored, as the destination did not have them
	Stored  int64 // sealed bytes of new blocks and of the manifest, before parity
	Shards  int64 // sealed bytes with parity
	Skipped int64 // holes, and blocks that the base has
	// Warning says what is not as it should be although the backup was copied.
	Warning string
	Err     error
}
