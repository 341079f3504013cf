package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// copiesAtOnce is how many control objects are copied at once.
const copiesAtOnce = 8

// copyControls gives the new store what it lacks of the control objects that any
// member has. The lists of prunes come first: a prune whose list is not there yet
// meets the mark before it deletes anything, and of one whose list is gone again
// the purged marks are there by now.
func (j *joiner) copyControls(ctx context.Context) error {
	if err := j.copyLists(ctx); err != nil {
		return err
	}
	for _, k := range controlKinds {
		j.progress(CheckProgress{"copy " + k.prefix, 0, 0})
		names, err := j.r.union(ctx, k.prefix)
		if err != nil {
			return err
		}
		if k.kind == kindKey {
			if err := j.r.dropRemovedKeys(ctx, names); err != nil {
				return err
			}
		}
		if err := j.copyAll(ctx, names, func(string) kind { return k.kind }); err != nil {
			return err
		}
	}
	return j.copyDecisions(ctx)
}

// copyLists copies what prunes left. A list that vanishes between being listed and
// being read has a trace in its place, which has to be seen: listed again.
func (j *joiner) copyLists(ctx context.Context) error {
	var err error
	for range listAttempts {
		names, lerr := j.r.union(ctx, prunePrefix)
		if lerr != nil {
			return lerr
		}
		for name := range names {
			if _, ok := listKind(name); !ok {
				return fmt.Errorf("%s: %w", name, ErrVersion)
			}
		}
		err = j.copyAll(ctx, names, func(name string) kind { k, _ := listKind(name); return k })
		if !errors.Is(err, objstore.ErrNotExist) {
			return err
		}
	}
	return err
}

// copyAll copies objects that the new store lacks. One that was removed meanwhile
// is an error for lists only: everything else may go.
func (j *joiner) copyAll(ctx context.Context, names map[string][]*member, kindOf func(name string) kind) error {
	have, err := j.has(ctx, names)
	if err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(copiesAtOnce)
	for name, ms := range names {
		if have[name] {
			continue
		}
		if gctx.Err() != nil {
			break
		}
		j.done.Copied++
		group.Go(func() error {
			err := j.copyOne(gctx, kindOf(name), name, ms)
			if errors.Is(err, objstore.ErrNotExist) && kindOf(name) != kindCondemned {
				return nil
			}
			return err
		})
	}
	return finished(ctx, group.Wait())
}

// finished is the end of a group whose work may have been cut short without an
// error of its own.
func finished(ctx context.Context, err error) error {
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("canceled: %w", context.Cause(ctx))
	}
	return err
}

// has returns which of the names the new store has already.
func (j *joiner) has(ctx context.Context, names map[string][]*member) (map[string]bool, error) {
	prefixes := make(map[string]bool)
	for name := range names {
		prefix, _, _ := strings.Cut(name, "/")
		prefixes[prefix+"/"] = true
	}
	have := make(map[string]bool)
	for prefix := range prefixes {
		err := j.m.store.List(ctx, prefix, func(i objstore.Info) error {
			have[i.Name] = true
			return nil
		})
		if err != nil {
			return nil, err //nolint:wrapcheck // stores name themselves
		}
	}
	return have, nil
}

// copyOne copies one object that authenticates.
func (j *joiner) copyOne(ctx context.Context, kd kind, name string, ms []*member) error {
	object, err := firstOf(ctx, j.r, ms, func(ctx context.Context, m *member) ([]byte, error) {
		object, err := getObject(ctx, m.store, name)
		if err == nil {
			err = j.r.keys.genuine(kd, name, object)
		}
		return object, err
	})
	switch {
	case err == nil:
		return j.put(ctx, name, object)
	case errors.Is(err, errEnvelope) && !errors.Is(err, objstore.ErrDown):
		j.r.warn(ctx, "a control object that no store has whole was not copied to the new store: check says what it belongs to")
		return nil
	}
	return fmt.Errorf("copy %s: %w", name, err)
}

func (j *joiner) put(ctx context.Context, name string, object []byte) error {
	_, err := one(ctx, j.r, j.m, func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, putSame(ctx, m.store, name, object)
	})
	return err
}

// copyDecisions tells the new store what was decided of each session: it is no
// voter of theirs, so that a committed one gets a certificate. Of one that is not
// decided it gets "open". An abort is copied as a vote: it counts only where
// nobody knows any more who the voters were.
func (j *joiner) copyDecisions(ctx context.Context) error {
	names, err := j.r.union(ctx, sessionPrefix)
	if err != nil {
		return err
	}
	roots, err := j.r.union(ctx, rootPrefix)
	if err != nil {
		return err
	}
	sessions := make(map[ident]string) // name of the root record; empty: none
	open := make(map[ident][]*member)
	for name, ms := range names {
		if s, leaf, ok := sessionObject(name); ok {
			sessions[s] = ""
			if leaf == openLeaf {
				open[s] = ms
			}
		}
	}
	for name := range roots {
		if s, ok := rootSession(name); ok {
			sessions[s] = name
		}
	}
	have, err := j.has(ctx, map[string][]*member{sessionPrefix + "x": nil})
	if err != nil {
		return err
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(copiesAtOnce)
	n := 0
	for s, root := range sessions {
		if n++; n%100 == 0 {
			j.progress(CheckProgress{"copy decisions", int64(n), int64(len(sessions))})
		}
		if have[certificateName(s)] || have[verdictName(s)] || gctx.Err() != nil {
			continue
		}
		group.Go(func() error { return j.copyDecision(gctx, s, root, roots[root], open[s]) })
	}
	return finished(ctx, group.Wait())
}

func (j *joiner) copyDecision(ctx context.Context, s ident, root string, holders, open []*member) error {
	var voters []ident
	var want *digest
	if root != "" {
		rt, err := j.r.readRoot(ctx, holders, root)
		switch {
		case err == nil:
			voters, want = rt.rec.Voters, &rt.digest
		case !errors.Is(err, ErrDamaged):
			return err
		}
	}
	d, err := j.r.decide(ctx, s, voters, want)
	if err != nil {
		return err
	}
	switch {
	case d == Committed:
		digest, err := j.r.committedRoot(ctx, s, want)
		if err != nil || digest == "" {
			return err
		}
		object, err := j.r.keys.sealCertificate(s, digest)
		if err != nil {
			return err
		}
		return j.put(ctx, certificateName(s), object)
	case d == Aborted:
		_, err := one(ctx, j.r, j.m, func(ctx context.Context, m *member) (ballot, error) {
			return j.r.putVote(ctx, m, voteRecord{Session: s, Vote: voteAbort, By: j.change.Change})
		})
		return err
	case open != nil:
		if err := j.copyOne(ctx, kindOpen, openName(s), open); !errors.Is(err, objstore.ErrNotExist) {
			return err
		}
	}
	return nil
}
