package repository

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// union lists a prefix on all members and returns who has each object. It
// fails only when no member answers.
func (r *Repository) union(ctx context.Context, prefix string) (map[string][]*member, error) {
	out, _, err := r.unionOf(ctx, prefix)
	return out, err
}

// unionOf is union that also says how many members did not answer.
func (r *Repository) unionOf(ctx context.Context, prefix string) (map[string][]*member, int, error) {
	ms := r.current()
	answers := ask(ctx, r.o.Timing, ms, max(r.membership().Data, len(ms)-1), func(ctx context.Context, m *member) ([]string, error) {
		var names []string
		err := m.store.List(ctx, prefix, func(i objstore.Info) error {
			names = append(names, i.Name)
			return nil
		})
		return names, err //nolint:wrapcheck // stores name themselves
	})
	out := make(map[string][]*member)
	answered := 0
	for _, a := range answers {
		if a.err != nil {
			continue
		}
		answered++
		for _, name := range a.value {
			out[name] = append(out[name], a.m)
		}
	}
	if answered == 0 {
		return nil, 0, fmt.Errorf("list %s: no store answers: %w: %w", prefix, ErrTooFewStores, failures(answers))
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("list %s: %w", prefix, err)
	}
	return out, len(ms) - answered, nil
}

// marks returns the sessions among those wanted that some member has a mark
// PREFIX<session> of. A mark that does not authenticate is none.
func (r *Repository) marks(ctx context.Context, prefix string, kd kind, wanted map[ident]bool) (map[ident]bool, error) {
	names, err := r.union(ctx, prefix)
	if err != nil {
		return nil, err
	}
	out := make(map[ident]bool)
	for name, ms := range names {
		s, ok := markSession(name, prefix)
		if !ok || !wanted[s] {
			continue
		}
		for _, m := range r.byHealth(ms) {
			_, err := one(ctx, r, m, func(ctx context.Context, m *member) ([]byte, error) {
				return r.getControl(ctx, m.store, kd, name)
			})
			if err == nil {
				out[s] = true
				break
			}
		}
	}
	return out, nil
}

// one asks a single member, and remembers when it does not answer.
func one[T any](ctx context.Context, r *Repository, m *member, fn func(context.Context, *member) (T, error)) (T, error) {
	t := r.o.Timing
	t.Call = t.Read
	a := ask(ctx, t, []*member{m}, 1, fn)[0]
	if errors.Is(a.err, objstore.ErrDown) && ctx.Err() == nil {
		m.health.failed(r.o.Now(), t.Aside)
	}
	return a.value, a.err
}

// putSame creates an object, and is content when it is there with these very
// bytes: an earlier attempt whose answer was lost.
func putSame(ctx context.Context, s objstore.Store, name string, object []byte) error {
	var err error
	for range putAttempts {
		if err = s.Put(ctx, name, object); err == nil {
			return nil
		}
		if errors.Is(err, objstore.ErrExist) {
			got, getErr := getObject(ctx, s, name)
			if getErr == nil && string(got) == string(object) {
				return nil
			}
			return errors.Join(err, getErr)
		}
		if ctx.Err() != nil || errors.Is(err, objstore.ErrDown) || errors.Is(err, objstore.ErrNoSpace) {
			break
		}
	}
	return err //nolint:wrapcheck // stores name themselves and the object
}
