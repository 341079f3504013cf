package repocopy

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// Run copies backups of src to dst, in the order in which they were made, a
// parent before its children, and returns what became of each in that order. Of
// each backup the ID, names, project, volume, times and parent stay; session and
// figures are the copy's. A backup that fails does not stop those of other volumes,
// and without Newer no other at all. The error is about the whole: ctx has ended, a
// repository cannot be listed, or too few stores of one answer or have room, which
// would fail all that were not tried. Both repositories stay the caller's.
func Run(ctx context.Context, src, dst *repository.Repository, backups []repository.Backup, o Options) ([]Result, error) {
	if src.Info().ID == dst.Info().ID {
		return nil, fmt.Errorf("source and destination are the same repository %s: name the stores of another one: %w", src.Info().ID, repository.ErrInvalid)
	}
	if o.Workers <= 0 {
		o.Workers = max(leastWorkers, runtime.GOMAXPROCS(0))
	}
	c := &copier{o: o, src: src, dst: dst, held: make(map[volumeKey]string)}
	if err := c.look(ctx); err != nil {
		return nil, err
	}
	var results []Result
	var stop error
	for _, b := range ordered(backups, c.ages) {
		res := Result{Backup: b, State: c.settled(b)}
		switch why := c.held[volumeOf(b)]; {
		case res.State != "":
		case stop != nil:
			res.State, res.Warning = NotTried, "it would fail as well"
		case why != "":
			res.State, res.Warning = NotTried, "backup "+why+" of the same volume failed and has to be copied before it"
		default:
			if res, stop = c.backup(ctx, b); stop == nil && o.Newer && res.State == Failed && !errors.Is(res.Err, repository.ErrDamaged) {
				c.held[volumeOf(b)] = b.ID
			}
		}
		results = append(results, res)
		if o.Done != nil {
			o.Done(res)
		}
		if stop != nil && ctx.Err() != nil {
			return results, stop
		}
	}
	return results, stop
}

// copier is the state of one Run.
type copier struct {
	o        Options
	src, dst *repository.Repository

	originals map[string]repository.Backup // available in the source, by ID
	have      map[string]repository.Backup // available in the destination
	trash     map[string]repository.Backup // in the destination's trash
	ages      *ages
	newest    map[volumeKey]time.Time // when the newest was made that the destination had at first
	held      map[volumeKey]string    // volumes of which a backup failed for now
	unpinned  string                  // why the source does not take pins
	stale     string                  // why pins of dead copies are still there
}

// look lists both repositories, each once, and removes the pins of copies that are
// over.
func (c *copier) look(ctx context.Context) error {
	here, err := c.src.Contents(ctx)
	if err != nil {
		return fmt.Errorf("list the source: %w", err)
	}
	there, err := c.dst.Contents(ctx)
	if err != nil {
		return fmt.Errorf("list the destination: %w", err)
	}
	available := func(l []repository.Backup) map[string]repository.Backup {
		out := make(map[string]repository.Backup, len(l))
		for _, b := range l {
			if b.State == repository.Available {
				out[b.ID] = b
			}
		}
		return out
	}
	c.originals, c.have = available(here.Backups), available(there.Backups)
	c.trash = make(map[string]repository.Backup, len(there.Trash))
	for _, b := range there.Trash {
		c.trash[b.ID] = b
	}
	c.noteNewest()
	if !c.o.DryRun {
		c.endStale(ctx, here.Pins)
	}
	return nil
}

// settled says what became of a backup of which nothing has to be tried; empty if
// something has.
func (c *copier) settled(b repository.Backup) State {
	_, present := c.have[b.ID]
	_, trashed := c.trash[b.ID]
	switch {
	case present:
		return Present
	case trashed:
		return InTrash
	case b.State != repository.Available:
		return Unconfirmed
	case c.o.Newer && c.older(b):
		return Older
	}
	return ""
}

// backup copies one backup. The error ends the run. Two copies at once may both
// copy it: it is then the same backup twice, which is listed once and stored once.
func (c *copier) backup(ctx context.Context, b repository.Backup) (Result, error) {
	res := Result{Backup: b, Warning: c.stale}
	c.stale = ""
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
	if errors.Is(err, errGone) {
		res.State, res.Err = Gone, nil
		return res, nil
	}
	if w, ok := errors.AsType[*wholeError](err); ok {
		return res, w
	}
	return res, nil
}

// errGone says that a backup was deleted in the source behind the listing.
var errGone = errors.New("it was deleted in the source meanwhile")

// wholeError is a repository that cannot be written to or read as a whole: no other
// backup can be copied either.
type wholeError struct {
	what string
	err  error
}

// Error returns the sentence.
func (e *wholeError) Error() string { return e.what + ": " + e.err.Error() }

// Unwrap returns the cause.
func (e *wholeError) Unwrap() error { return e.err }

func unwritable(err error) error { return &wholeError{"the destination cannot be written to", err} }

// written returns an error of the destination: as one that ends the run if it would
// hit every other backup too.
func written(err error) error {
	if errors.Is(err, repository.ErrTooFewStores) || errors.Is(err, objstore.ErrNoSpace) {
		return unwritable(err)
	}
	return err
}

// unread returns why a backup cannot be read in the source. errGone: the source is
// certain to have it no longer, as nothing protected it.
func (r *one) unread(ctx context.Context, err error) error {
	if gone := r.open(ctx, func(*repository.Image) error { return nil }); errors.Is(gone, errGone) {
		return errGone
	}
	return r.tooFew(ctx, err)
}

// tooFew returns an error of the source: as one that ends the run if fewer stores
// answer than any pack needs. With more, only some packs may be out of reach.
func (r *one) tooFew(ctx context.Context, err error) error {
	if !errors.Is(err, repository.ErrTooFewStores) || ctx.Err() != nil {
		return err
	}
	up := 0
	for _, s := range r.src.Status(ctx) {
		if s.State == repository.StoreUp {
			up++
		}
	}
	if up < r.src.Info().Data {
		return &wholeError{"the source cannot be read", err}
	}
	return err
}
