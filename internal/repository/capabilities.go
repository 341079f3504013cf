package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// What a store proved when it became a member is recorded on all stores. Prune tries it again
// each time and believes only that; the record tells a store that never could from
// one that can no more, whose server, settings or gateway have changed.

// capableRecord is the payload of "capabilities/<store>". Stores of repositories that
// are older have none. The bytes are the same on all of them.
type capableRecord struct {
	Repository   ident        `json:"repository"`
	Store        ident        `json:"store"`
	Probed       time.Time    `json:"probed"`
	Capabilities []Capability `json:"capabilities"` // that were proved
}

// StoreCapabilities is what a store proved when it became a member.
type StoreCapabilities struct {
	Probed       time.Time // zero: nothing is recorded
	Capabilities []Capability
}

// sealCapabilities returns the object that says that a store proved everything.
func (k *keyring) sealCapabilities(repository, store ident, now time.Time) ([]byte, error) {
	payload, err := json.Marshal(capableRecord{repository, store, now.UTC().Truncate(time.Second), capabilities()})
	if err != nil {
		return nil, fmt.Errorf("capabilities of a store: %w", err)
	}
	return k.sealEnvelope(kindCapabilities, capableName(store), payload)
}

// probeAll tries all stores of a repository that is being made.
func probeAll(ctx context.Context, stores []objstore.Store) error {
	group, gctx := errgroup.WithContext(ctx)
	for _, s := range stores {
		group.Go(func() error {
			err := probeOnce(gctx, s)
			if lacks, ok := errors.AsType[*incapable](err); ok {
				return fmt.Errorf("store %s cannot keep a repository, which needs %q of each: %w: %w", s.URL(), lacks.what, err, ErrInvalid)
			}
			if err != nil {
				return fmt.Errorf("try store %s: %w", s.URL(), err)
			}
			return nil
		})
	}
	return group.Wait() //nolint:wrapcheck // wrapped above
}

// recordCapabilities notes that the new store proved everything. An earlier attempt may
// have noted it, at another time.
func (j *joiner) recordCapabilities(ctx context.Context, id ident, to objstore.Store) error {
	name := capableName(id)
	if _, err := j.r.getControl(ctx, to, kindCapabilities, name); !errors.Is(err, objstore.ErrNotExist) {
		return err
	}
	object, err := j.r.keys.sealCapabilities(j.r.id, id, j.r.o.Now())
	if err != nil {
		return err
	}
	return j.put(ctx, name, object)
}

// probe tries a member, and says of what it lacks whether it had it once.
func (r *Repository) probe(ctx context.Context, m *member) error {
	err := probeOnce(ctx, m.store)
	lacks, ok := errors.AsType[*incapable](err)
	if !ok {
		return err
	}
	before, rerr := r.capabilitiesOf(ctx, m.id, r.current())
	if rerr == nil && slices.Contains(before.Capabilities, lacks.what) {
		return fmt.Errorf("%w; it could (%s) on %s, so that its server, its settings or what is between have changed", err, lacks.what, before.Probed.Format(time.DateOnly))
	}
	return err
}

// capabilitiesOf reads what is recorded of a store from any member that has it.
func (r *Repository) capabilitiesOf(ctx context.Context, id ident, holders []*member) (StoreCapabilities, error) {
	payload, err := r.firstControl(ctx, holders, kindCapabilities, capableName(id))
	if err != nil {
		return StoreCapabilities{}, err
	}
	var rec capableRecord
	if err := decodeJSON(payload, &rec); err != nil {
		return StoreCapabilities{}, err
	}
	if rec.Repository != r.id || rec.Store != id {
		return StoreCapabilities{}, fmt.Errorf("capabilities of store %s: %w", rec.Store, ErrForeign)
	}
	return StoreCapabilities{rec.Probed, rec.Capabilities}, nil
}

// Capabilities returns what the members proved when they became members, by their ID,
// as far as it is recorded.
func (r *Repository) Capabilities(ctx context.Context) (map[string]StoreCapabilities, error) {
	names, err := r.union(ctx, capablePrefix)
	if err != nil {
		return nil, err
	}
	out := make(map[string]StoreCapabilities)
	for _, m := range r.current() {
		holders := names[capableName(m.id)]
		if len(holders) == 0 {
			continue
		}
		c, err := r.capabilitiesOf(ctx, m.id, holders)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		if err == nil { // else it is as if nothing were recorded; a check says what is wrong
			out[m.id.String()] = c
		}
	}
	return out, nil
}
