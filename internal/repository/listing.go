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
		if _, err := r.firstControl(ctx, ms, kd, name); err == nil {
			out[s] = true
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

// firstOf asks members one after the other, those that failed lately last, for the
// first good answer. The error is that of all of them.
func firstOf[T any](ctx context.Context, r *Repository, ms []*member, fn func(context.Context, *member) (T, error)) (T, error) {
	var none T
	var errs []error
	for _, m := range r.byHealth(ms) {
		v, err := one(ctx, r, m, fn)
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return none, fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		errs = append(errs, err)
	}
	if errs == nil {
		return none, fmt.Errorf("no store can be asked: %w", ErrTooFewStores)
	}
	return none, errors.Join(errs...)
}

// firstControl reads a control object from the first of the members that has a
// genuine one.
func (r *Repository) firstControl(ctx context.Context, ms []*member, kd kind, name string) ([]byte, error) {
	return firstOf(ctx, r, ms, func(ctx context.Context, m *member) ([]byte, error) {
		return r.getControl(ctx, m.store, kd, name)
	})
}

// puts is what to ask of members that are to take an object: each says first that
// it is who it was.
func (r *Repository) puts(name string, object []byte) func(context.Context, *member) (struct{}, error) {
	return func(ctx context.Context, m *member) (struct{}, error) {
		if err := r.identify(ctx, m); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, putSame(ctx, m.store, name, object)
	}
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
