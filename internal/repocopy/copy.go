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
// all the same: what a prune takes then fails that copy, and nothing is listed.
//
// # Memory
//
// That of a backup run (package backup) and of one open image, and 24 bytes for
// each run of blocks that differ, or of holes.
package repocopy

import (
	"context"
	"errors"
	"fmt"
	"runtime"

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

// Run copies backups of src to dst, in the order in which they were made, a
// parent before its children, and returns what became of each in that order. Of
// each backup the ID, names, project, volume, times and parent stay; session and
// figures are the copy's. A backup that fails does not stop the others; the error
// is about the whole: ctx has ended, a repository cannot be listed, or the
// destination cannot be written to. Both repositories stay the caller's.
func Run(ctx context.Context, src, dst *repository.Repository, backups []repository.Backup, o Options) ([]Result, error) {
	if src.Info().ID == dst.Info().ID {
		return nil, fmt.Errorf("source and destination are the same repository %s: name the stores of another one: %w", src.Info().ID, repository.ErrInvalid)
	}
	if o.Workers <= 0 {
		o.Workers = max(leastWorkers, runtime.GOMAXPROCS(0))
	}
	c := &copier{o: o, src: src, dst: dst}
	if err := c.look(ctx); err != nil {
		return nil, err
	}
	var results []Result
	for _, b := range ordered(backups) {
		res, err := c.backup(ctx, b)
		results = append(results, res)
		if o.Done != nil {
			o.Done(res)
		}
		if err != nil {
			return results, err
		}
	}
	return results, nil
}

// copier is the state of one Run.
type copier struct {
	o        Options
	src, dst *repository.Repository

	originals map[string]repository.Backup // available in the source, by ID
	have      map[string]repository.Backup // available in the destination
	trash     map[string]repository.Backup // in the destination's trash
	unpinned  string                       // why the source does not take pins
}

// look lists both repositories.
func (c *copier) look(ctx context.Context) error {
	available := func(l []repository.Backup, err error) (map[string]repository.Backup, error) {
		out := make(map[string]repository.Backup, len(l))
		for _, b := range l {
			if b.State == repository.Available {
				out[b.ID] = b
			}
		}
		return out, err
	}
	var err error
	if c.originals, err = available(c.src.Backups(ctx)); err != nil {
		return fmt.Errorf("list the source: %w", err)
	}
	if c.have, err = available(c.dst.Backups(ctx)); err != nil {
		return fmt.Errorf("list the destination: %w", err)
	}
	trash, err := c.dst.Trash(ctx)
	if err != nil {
		return fmt.Errorf("list the destination's trash: %w", err)
	}
	c.trash = make(map[string]repository.Backup, len(trash))
	for _, b := range trash {
		c.trash[b.ID] = b
	}
	return nil
}

// backup settles one backup. The error ends the run.
func (c *copier) backup(ctx context.Context, b repository.Backup) (Result, error) {
	res := Result{Backup: b}
	if _, ok := c.have[b.ID]; ok {
		res.State = Present
		return res, nil
	}
	if _, ok := c.trash[b.ID]; ok {
		res.State = InTrash
		return res, nil
	}
	if b.State != repository.Available {
		res.State = Unconfirmed
		return res, nil
	}
	// Another copy may have been faster since the listing.
	if there, err := c.dst.Backup(ctx, b.ID); err == nil && there.State == repository.Available {
		c.have[b.ID] = b
		res.State = Present
		return res, nil
	}
	run := &one{copier: c, b: b, res: &res}
	err := run.copy(ctx)
	if err == nil {
		res.State = Copied
		c.have[b.ID] = b
		return res, nil
	}
	res = Result{Backup: b, State: Failed, Warning: res.Warning, Err: err}
	if cerr := ctx.Err(); cerr != nil {
		res.Err = fmt.Errorf("the copy was stopped: %w", cerr)
		return res, res.Err
	}
	if d, ok := errors.AsType[*destinationError](err); ok {
		return res, d
	}
	return res, nil
}

// destinationError is a destination that takes no session: no other backup can be
// copied either.
type destinationError struct{ err error }

// Error returns the sentence.
func (e *destinationError) Error() string {
	return "the destination cannot be written to: " + e.err.Error()
}

// Unwrap returns the cause.
func (e *destinationError) Unwrap() error { return e.err }
