package repository

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// readersAtOnce is how many root records are read at once.
const readersAtOnce = 16

// standing is a root record and what readers make of it.
type standing struct {
	root  *root
	state State
	trash *root // of an unconfirmed one: a record of the same backup that is in the trash
}

// Backup returns the backup with that ID or, if there is none, the one with
// that name. ErrNotFound, ErrAmbiguous.
func (r *Repository) Backup(ctx context.Context, ref string) (Backup, error) {
	all, err := r.Backups(ctx)
	if err != nil {
		return Backup{}, err
	}
	var named []Backup
	for _, b := range all {
		if b.ID == ref {
			return b, nil
		}
		if b.Name == ref && ref != "" {
			named = append(named, b)
		}
	}
	switch len(named) {
	case 0:
		return Backup{}, fmt.Errorf("backup %q: %w", ref, ErrNotFound)
	case 1:
		return named[0], nil
	}
	ids := make([]string, len(named))
	for i, b := range named {
		ids[i] = b.ID
	}
	return Backup{}, fmt.Errorf("%d backups are called %q: name one by its ID (%s): %w", len(named), ref, strings.Join(ids, ", "), ErrAmbiguous)
}

// standings reads all root records and decides each. Of several with one
// backup ID the newest counts that is live; of those that are not, the newest.
func (r *Repository) standings(ctx context.Context) ([]standing, error) {
	all, _, err := r.survey(ctx)
	return all, err
}

// survey is standings that also says whether it saw every committed root
// record: so many stores answered that none can be on the others only, and all
// that were listed were read.
func (r *Repository) survey(ctx context.Context) (all []standing, complete bool, err error) {
	return r.surveyBut(ctx, func(_ string, _ bool, err error) error { return err })
}

// surveyBut is survey that asks what to make of a root record that was not read for
// want of its key, and goes on without it if that is no error. Not concurrently.
func (r *Repository) surveyBut(ctx context.Context, sealed func(name string, deleted bool, err error) error) (all []standing, complete bool, err error) {
	r.reunite(ctx)
	names, silent, err := r.unionOf(ctx, rootPrefix)
	if err != nil {
		return nil, false, err
	}
	complete = silent < r.membership().quorum()
	sessions := make(map[ident]bool, len(names))
	for name := range names {
		if s, ok := rootSession(name); ok {
			sessions[s] = true
		}
	}
	if len(sessions) == 0 {
		return nil, complete, nil
	}
	deleted, err := r.marks(ctx, deletedPrefix, kindTombstone, sessions)
	if err != nil {
		return nil, false, err
	}
	purged, err := r.marks(ctx, purgedPrefix, kindPurged, sessions)
	if err != nil {
		return nil, false, err
	}
	var mu sync.Mutex
	byID := make(map[string]standing)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(readersAtOnce)
	for name, ms := range names {
		s, ok := rootSession(name)
		if !ok || purged[s] {
			continue
		}
		group.Go(func() error {
			st, err := r.stand(groupCtx, name, ms, deleted[s])
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, ErrDamaged) {
				// Check reports those that are; a store that is away says nothing.
				complete = complete && !errors.Is(err, objstore.ErrDown)
				return nil
			}
			if unjudged(err) {
				complete = false
				return sealed(name, deleted[s], err)
			}
			if err != nil || st.root == nil {
				return err
			}
			if old, ok := byID[st.root.rec.BackupID]; ok {
				st = st.over(old)
			}
			byID[st.root.rec.BackupID] = st
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, false, err //nolint:wrapcheck // named where it comes from
	}
	out := make([]standing, 0, len(byID))
	for _, st := range byID {
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b standing) int {
		return cmp.Or(a.root.rec.Created.Compare(b.root.rec.Created), strings.Compare(a.root.rec.BackupID, b.root.rec.BackupID))
	})
	return out, complete, nil
}

// over returns the one to show of two with the same backup ID. An undeletion that
// failed half-way must not hide that the backup is in the trash.
func (s standing) over(o standing) standing {
	if !s.before(o) {
		s, o = o, s
	}
	switch {
	case s.state != Unconfirmed:
		s.trash = nil
	case o.state == Deleted:
		s.trash = o.root
	case s.trash == nil:
		s.trash = o.trash
	}
	return s
}

// before reports whether s is the one to show of two with the same backup ID.
func (s standing) before(o standing) bool {
	if s.state != o.state {
		rank := map[State]int{Available: 0, Unconfirmed: 1, Deleted: 2}
		return rank[s.state] < rank[o.state]
	}
	if a, b := s.root.rec.Created, o.root.rec.Created; !a.Equal(b) {
		return a.After(b)
	}
	return bytes.Compare(s.root.rec.Session[:], o.root.rec.Session[:]) > 0 // always the same one
}

// stand reads one root record and decides it; the root is nil when there is
// nothing to show. ErrDamaged: no store returned it.
func (r *Repository) stand(ctx context.Context, name string, ms []*member, deleted bool) (standing, error) {
	r.mu.Lock()
	rt := r.rootSeen[name]
	r.mu.Unlock()
	if rt == nil {
		var err error
		if rt, err = r.readRoot(ctx, ms, name); err != nil {
			return standing{}, err
		}
	}
	d, err := r.decide(ctx, rt.rec.Session, rt.rec.Voters, &rt.digest)
	switch {
	case err != nil:
		return standing{}, err
	case d == Aborted:
		return standing{}, nil
	case d == Undecided && deleted:
		return standing{}, nil
	case deleted:
		return standing{root: rt, state: Deleted}, nil
	case d == Undecided:
		return standing{root: rt, state: Unconfirmed}, nil
	default:
		return standing{root: rt, state: Available}, nil
	}
}

// find returns the standing of a backup that is available or unconfirmed.
// ErrNotFound is certain: too few stores to tell are ErrTooFewStores.
func (r *Repository) find(ctx context.Context, id string) (standing, error) {
	all, complete, err := r.survey(ctx)
	if err != nil {
		return standing{}, err
	}
	for _, s := range all {
		if s.root.rec.BackupID != id {
			continue
		}
		if s.state == Deleted {
			return s, fmt.Errorf("backup %s was deleted: %w", id, ErrNotFound)
		}
		return s, nil
	}
	if !complete {
		return standing{}, fmt.Errorf("backup %q is not on the stores that answer, and may be on the others: %w", id, ErrTooFewStores)
	}
	return standing{}, fmt.Errorf("backup %q: %w", id, ErrNotFound)
}

// Delete moves a backup to the trash: a tombstone on at least 1+d stores. A
// prune removes it later; until then its data is whole. ErrRetained: its retention
// has not ended.
func (r *Repository) Delete(ctx context.Context, id string) error {
	const copies = 100 // root records of one backup, as undeleting makes them
	for n := range copies {
		st, err := r.find(ctx, id)
		if n > 0 && errors.Is(err, ErrNotFound) {
			return nil
		}
		if err == nil {
			err = st.root.retentionError(r.o.Now())
		}
		if err == nil {
			err = r.entomb(ctx, id, st.root.rec.Session)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("delete backup %s: it has more than %d root records: %w", id, copies, ErrDamaged)
}

// entomb puts the tombstone of one root record.
func (r *Repository) entomb(ctx context.Context, id string, s ident) error {
	name := deletedName(s)
	object, err := r.keys.sealEnvelope(kindTombstone, name, nil)
	if err != nil {
		return err
	}
	need := r.membership().quorum()
	answers := ask(ctx, r.o.Timing, r.current(), need, r.puts(name, object))
	if n := len(succeeded(answers)); n < need {
		return fmt.Errorf("delete backup %s: %d stores took the tombstone, %d are needed; it may show up as deleted all the same: try again when they are back: %w: %w", id, n, need, ErrTooFewStores, failures(answers))
	}
	return nil
}

// isMarked reports whether any reachable member has an object of that name,
// genuine or not: for decisions where a doubt counts as yes.
func (r *Repository) isMarked(ctx context.Context, name string) (bool, error) {
	ms := r.current()
	answers := ask(ctx, r.o.Timing, ms, max(r.membership().Data, len(ms)-1), func(ctx context.Context, m *member) (bool, error) {
		_, err := m.store.Stat(ctx, name)
		if errors.Is(err, objstore.ErrNotExist) {
			return false, nil
		}
		return err == nil, err //nolint:wrapcheck // stores name themselves
	})
	for _, a := range answers {
		if a.value {
			return true, nil
		}
	}
	if len(succeeded(answers)) == 0 {
		return false, fmt.Errorf("%s: %w: %w", name, ErrTooFewStores, failures(answers))
	}
	return false, nil
}
