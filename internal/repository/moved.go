package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/pack"
)

const (
	// movesBudget is the memory for forwardings that were read.
	movesBudget = 8 << 20
	// maxForwardings is how many objects are looked at for one pack. Each
	// compaction tidies what the one before left, so that one or two is usual.
	maxForwardings = 16
)

// isMissing reports whether a pack cannot be read and stores say that they do
// not have their shards of it: not that they are down, or return wrong bytes.
func isMissing(err error) bool {
	lost, ok := errors.AsType[*pack.LostError](err)
	return ok && slices.ContainsFunc(lost.Bad, func(b pack.BadShard) bool { return errors.Is(b.Err, objstore.ErrNotExist) })
}

// follow reads chunks of a pack with here, which reads the pack itself, or, if
// the pack is gone and was compacted, with there, which is given a forwarding
// of the pack and reads what it names. A healthy read costs here and nothing
// else. One hop: there does not follow.
func (r *Repository) follow(ctx context.Context, id chunk.PackID, here func() error, there func(*forwarding) error) error {
	if r.moving.Load() {
		if fs, ok := r.moves.get(id); ok {
			if err := followAny(fs, there); err == nil || ctx.Err() != nil {
				return err
			}
			r.moves.remove(id) // what it leads to may have been compacted since
		}
	}
	err := here()
	if err == nil || !isMissing(err) {
		return err
	}
	for range 2 { // between listing and reading, a prune may move it once more
		fs, failed := r.forwardings(ctx, id)
		if failed != nil {
			return fmt.Errorf("%w; whether the pack was moved cannot be told: %w", err, failed)
		}
		if len(fs) == 0 {
			return err
		}
		if failed = followAny(fs, there); failed == nil {
			var size int64
			for _, f := range fs {
				size += f.size()
			}
			r.moves.put(id, fs, size)
			r.moving.Store(true)
			return nil
		}
		if err = failed; ctx.Err() != nil || !isMissing(err) {
			break
		}
	}
	return err
}

// followAny reads by the first forwarding that leads to something. While a pack
// is compacted for the second time there are two, of which one is good.
func followAny(fs []*forwarding, there func(*forwarding) error) error {
	var errs []error
	for _, f := range fs {
		err := there(f)
		if err == nil {
			return nil
		}
		if isMissing(err) {
			err = fmt.Errorf("pack %s was compacted, and the pack that has its chunks is gone as well; a second move is not followed: %w", f.old, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// forwardings returns the forwardings of a pack that any store has. Without an
// error and without a forwarding the pack was not moved, as far as the stores
// that answer know.
func (r *Repository) forwardings(ctx context.Context, id chunk.PackID) ([]*forwarding, error) {
	names, err := r.union(ctx, forwardFolder(id))
	if err != nil {
		return nil, err
	}
	// What more stores have comes first: a store that invents names hides nothing.
	order := slices.SortedFunc(maps.Keys(names), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(names[b]), len(names[a])), cmp.Compare(a, b))
	})
	var fs []*forwarding
	var errs []error
	for _, name := range order[:min(len(order), maxForwardings)] {
		f, err := r.readForwarding(ctx, names[name], name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		fs = append(fs, f)
	}
	if len(fs) == 0 {
		return nil, errors.Join(errs...)
	}
	return fs, nil
}

// readForwarding reads a forwarding from the first of the stores that has a
// genuine one.
func (r *Repository) readForwarding(ctx context.Context, ms []*member, name string) (*forwarding, error) {
	f, err := r.readForwardingOnce(ctx, ms, name)
	if errors.Is(err, errEpoch) {
		if cerr := r.catchUp(ctx); cerr != nil {
			return nil, cerr
		}
		f, err = r.readForwardingOnce(ctx, ms, name)
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("read a forwarding: %w", err)
	case errors.Is(err, errEpoch):
		return nil, laterEpoch(err)
	case err != nil:
		return nil, fmt.Errorf("forwarding %s: %w: %w", name, ErrDamaged, err)
	}
	return f, nil
}

func (r *Repository) readForwardingOnce(ctx context.Context, ms []*member, name string) (*forwarding, error) {
	return firstOf(ctx, r, ms, func(ctx context.Context, m *member) (*forwarding, error) {
		object, err := getBounded(ctx, m.store, name, maxForwarding)
		if err != nil {
			return nil, err
		}
		f, err := r.keys.openForwarding(r.id, name, object)
		if errors.Is(err, errEpoch) {
			return nil, err
		}
		if err != nil {
			m.health.lied(r.o.Now(), r.o.Timing.Aside)
			return nil, fmt.Errorf("%s: %w", m.url(), err)
		}
		return f, nil
	})
}
