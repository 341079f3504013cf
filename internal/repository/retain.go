package repository

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/objstore"
)

// Retention: a backup can be made one that nobody deletes before its time.
//
// Its root record says until when; Delete refuses before that, and a prune takes
// no such backup whoever wrote a tombstone. Stores that lock objects (S3 Object
// Lock) enforce it themselves, against somebody who has all keys: before the root
// record is written, all packs that it reaches are retained there, and the root
// record before the first vote. What is retained is retained a little longer than
// asked for, to the end of a period of half the time: so packs that backups share
// are retained anew once in a period, not with every backup.

// retainedAtOnce is how many objects are retained at once on one store.
const retainedAtOnce = 8

// retention is what a root record says about its deletion; zero: nothing.
type retention struct {
	until time.Time // not deleted before
	to    time.Time // all that it reaches is retained to here, where stores do that
}

// newRetention is the retention of a backup that is made now.
func newRetention(now time.Time, keep time.Duration) retention {
	if keep <= 0 {
		return retention{}
	}
	return retentionUntil(now.Add(keep).UTC().Truncate(time.Second).Add(time.Second), keep)
}

// retentionUntil is the retention to a time that is keep from now.
func retentionUntil(until time.Time, keep time.Duration) retention {
	period := max(keep/2, time.Second)
	to := until.Truncate(period)
	if to.Before(until) {
		to = to.Add(period)
	}
	return retention{until, to}
}

// retention is that of the session's own backup, as of now: zero when there is
// none, or it has ended.
func (s *Session) retention() retention {
	now := s.r.o.Now()
	switch left := s.o.RetainUntil.Sub(now); {
	case s.o.Retain > 0:
		return newRetention(now, s.o.Retain)
	case left > 0:
		return retentionUntil(s.o.RetainUntil.UTC(), left)
	default:
		return retention{}
	}
}

// retentionError refuses to delete a backup.
func (r *root) retentionError(now time.Time) error {
	if !r.rec.RetainUntil.After(now) {
		return nil
	}
	return fmt.Errorf("backup %s was made with a retention and cannot be deleted before %s UTC: %w", r.rec.BackupID, r.rec.RetainUntil.UTC().Format(time.DateTime), ErrRetained)
}

// use notes that the session's backup reaches a pack.
func (s *Session) use(p chunk.PackID) {
	if s.o.Retain <= 0 && s.o.RetainUntil.IsZero() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.used == nil {
		s.used = make(map[chunk.PackID]struct{})
	}
	s.used[p] = struct{}{}
}

// retainPacks retains all packs that the root record will reach.
func (s *Session) retainPacks(ctx context.Context, rt Root, to time.Time) error {
	packs := s.used
	if s.parent != nil && s.parent.rec.Retained.Before(to) {
		tree, err := manifest.Open(rt.Geometry, rt.Top, s.r.loader(s.domain))
		if err == nil {
			packs, err = tree.Packs(ctx)
		}
		if err != nil {
			return fmt.Errorf("retain the packs of the backup: %w", err)
		}
	}
	missing, err := s.r.retainShards(ctx, packs, to)
	if err != nil || len(missing) == 0 {
		return err
	}
	// Compacted packs: what has their chunks now.
	names, targets := []string{}, make(map[chunk.PackID]struct{})
	for p := range missing {
		fs, ferr := s.r.forwardings(ctx, p)
		if ferr != nil {
			return ferr
		}
		for _, f := range fs {
			for _, t := range f.targets() {
				targets[t] = struct{}{}
			}
		}
		all, ferr := s.r.union(ctx, forwardFolder(p))
		if ferr != nil {
			return ferr
		}
		names = slices.AppendSeq(names, maps.Keys(all))
	}
	if err = s.r.retainControls(ctx, names, to); err != nil {
		return err
	}
	_, err = s.r.retainShards(ctx, targets, to)
	return err
}

// retainShards retains packs on the stores that do that, and returns those of
// which no such store has a shard.
func (r *Repository) retainShards(ctx context.Context, packs map[chunk.PackID]struct{}, to time.Time) (missing map[chunk.PackID]struct{}, err error) {
	names := make(map[*member][]string)
	for p := range packs {
		for _, m := range r.holders(p) {
			names[m] = append(names[m], packName(p))
		}
	}
	var mu sync.Mutex
	has := make(map[string]bool)
	locking, err := r.retain(ctx, to, func(m *member) []string { return names[m] }, func(name string) {
		mu.Lock()
		defer mu.Unlock()
		has[name] = true
	})
	if err != nil || locking == 0 {
		return nil, err
	}
	missing = make(map[chunk.PackID]struct{})
	for p := range packs {
		if !has[packName(p)] {
			missing[p] = struct{}{}
		}
	}
	return missing, nil
}

// retainControls retains objects of which every member has one.
func (r *Repository) retainControls(ctx context.Context, names []string, to time.Time) error {
	_, err := r.retain(ctx, to, func(*member) []string { return names }, func(string) {})
	return err
}

// retain retains objects on all members that do that, of which it returns the
// number, and tells each that is there. Members that are down or refuse are as
// many as the write rule allows, or it fails.
func (r *Repository) retain(ctx context.Context, to time.Time, names func(*member) []string, done func(name string)) (locking int, err error) {
	ms := r.current()
	failed := make([]error, len(ms))
	group := errgroup.Group{}
	for i, m := range ms {
		group.Go(func() error {
			failed[i] = r.retainOn(ctx, m, names(m), to, done)
			return nil
		})
	}
	_ = group.Wait() // each has its own error
	var errs []error
	for _, ferr := range failed {
		switch {
		case ferr == nil:
			locking++
		case !errors.Is(ferr, errors.ErrUnsupported):
			errs = append(errs, ferr)
		}
	}
	if cerr := ctx.Err(); cerr != nil {
		return locking, fmt.Errorf("retain the backup: %w", cerr)
	}
	keys := r.membership()
	if len(errs) > len(ms)-keys.packQuorum() {
		return locking, fmt.Errorf("%d stores did not retain the backup, at most %d may fail: %w: %w", len(errs), len(ms)-keys.packQuorum(), ErrTooFewStores, errors.Join(errs...))
	}
	return locking, nil
}

func (r *Repository) retainOn(ctx context.Context, m *member, names []string, to time.Time, done func(name string)) error {
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(retainedAtOnce)
	for i, name := range names {
		if gctx.Err() != nil {
			break
		}
		each := func() error {
			_, err := one(gctx, r, m, func(ctx context.Context, m *member) (struct{}, error) {
				return struct{}{}, objstore.Retain(ctx, m.store, name, to)
			})
			switch {
			case err == nil:
				done(name)
			case errors.Is(err, objstore.ErrNotExist):
				return nil // owed, or moved
			}
			return err
		}
		if i > 0 {
			group.Go(each)
			continue
		}
		// The first says whether the store does it at all.
		if err := each(); err != nil {
			return err
		}
	}
	return group.Wait() //nolint:wrapcheck // stores name themselves and the object
}

// retainDecision retains, behind the decision, what a reader needs besides packs
// and root record: the votes, and the records and keys of the repository. That it
// fails takes nothing from the backup: without votes it can be restored on
// request, and Cairn itself deletes none of these.
func (s *Session) retainDecision(ctx context.Context, to time.Time) {
	names := []string{storeName, verdictName(s.id)}
	for _, prefix := range []string{membersPrefix, keyPrefix, removedKeyPrefix} {
		all, err := s.r.union(ctx, prefix)
		if err != nil {
			s.r.warn(ctx, "records of the repository not retained", slog.Any("error", err))
			return
		}
		names = slices.AppendSeq(names, maps.Keys(all))
	}
	if err := s.r.retainControls(ctx, names, to); err != nil {
		s.r.warn(ctx, "votes of a backup not retained", slog.String("session", s.id.String()), slog.Any("error", err))
	}
}
