package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// Status returns what is known of every member, in the order of the
// membership, and behind them of the stores that were given and are none. The
// stores are asked now.
func (r *Repository) Status(ctx context.Context) []StoreStatus {
	r.reunite(ctx)
	ms := r.current()
	answers := ask(ctx, r.o.Timing, ms, r.membership().Data, func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, r.identify(ctx, m)
	})
	owed, owedErr := r.owed(ctx)
	var out []StoreStatus
	for _, a := range answers {
		s := StoreStatus{ID: a.m.id.String(), State: StoreUp, Owed: owed[a.m.id]}
		if a.m.store != nil {
			s.URL = a.m.store.URL()
		}
		switch {
		case a.err == nil && owedErr != nil:
			s.Error = owedErr.Error()
		case a.err == nil:
		case errors.Is(a.err, ErrForeign), errors.Is(a.err, errEnvelope):
			s.State, s.Error = StoreForeign, a.err.Error()
		case a.m.store == nil:
			s.State, s.Error = StoreDown, "none of the stores given is this member: "+r.unreachable()
		default:
			s.State, s.Error = StoreDown, a.err.Error()
		}
		out = append(out, s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.unknown {
		out = append(out, StoreStatus{URL: u.store.URL(), State: u.state, Error: u.err.Error()})
	}
	return out
}

// LastSeen returns where stores were, by their ID, when the newest backup was made
// whose writer knew.
func (r *Repository) LastSeen(ctx context.Context) (map[string]string, error) {
	all, err := r.standings(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, st := range all { // oldest first
		for i, id := range st.root.rec.Voters {
			if i < len(st.root.rec.URLs) && st.root.rec.URLs[i] != "" {
				out[id.String()] = st.root.rec.URLs[i]
			}
		}
	}
	return out, nil
}

// URLs returns where the stores that were given are, in no particular order
// and without asking them.
func (r *Repository) URLs() []string {
	var out []string
	for _, m := range r.current() {
		if m.store != nil {
			out = append(out, m.store.URL())
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.unknown {
		out = append(out, u.store.URL())
	}
	return out
}

func (r *Repository) unreachable() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var parts []string
	for _, u := range r.unknown {
		if u.state == StoreDown {
			parts = append(parts, u.err.Error())
		}
	}
	if parts == nil {
		return "it was not given"
	}
	return strings.Join(parts, "; ")
}

// owed counts, by store, the shards that are recorded as owed and have not
// arrived since. Of a store that is down all that is recorded counts.
func (r *Repository) owed(ctx context.Context) (map[ident]int, error) {
	records, err := r.union(ctx, owedPrefix)
	if err != nil {
		return nil, err
	}
	byStore := make(map[ident][]owedShard)
	for name, ms := range records {
		shards, err := r.readOwed(ctx, ms, name)
		if err != nil {
			return nil, err
		}
		for _, o := range shards {
			byStore[o.store] = append(byStore[o.store], o)
		}
	}
	out := make(map[ident]int)
	current := r.current()
	for id, shards := range byStore {
		i := slices.IndexFunc(current, func(m *member) bool { return m.id == id })
		if i < 0 {
			continue // a store that was replaced owes nothing
		}
		out[id] = r.missing(ctx, current[i], shards)
	}
	return out, nil
}

func (r *Repository) readOwed(ctx context.Context, ms []*member, name string) ([]owedShard, error) {
	payload, err := r.firstControl(ctx, ms, kindOwed, name)
	if err != nil {
		return nil, fmt.Errorf("the record %s of owed shards cannot be read: %w", name, err)
	}
	return decodeOwed(payload)
}

// missing counts the shards that are still not there.
func (r *Repository) missing(ctx context.Context, m *member, shards []owedShard) int {
	n, err := one(ctx, r, m, func(ctx context.Context, m *member) (int, error) {
		n := 0
		for _, o := range shards {
			_, err := m.store.Stat(ctx, packName(o.pack))
			switch {
			case errors.Is(err, objstore.ErrNotExist):
				n++
			case err != nil:
				return 0, err //nolint:wrapcheck // only counted
			}
		}
		return n, nil
	})
	if err != nil {
		return len(shards)
	}
	return n
}
