package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/pack"
)

// Open opens the repository that the stores belong to. Any k of its stores are
// enough for reading; those that are down now are used when they are back.
//
// The error is ErrPassword, ErrForeign (a store of another repository is among
// them, or none of any), ErrVersion, ErrTooFewStores or ErrInvalid, wrapped with
// the stores it is about. Open closes nothing when it fails.
func Open(ctx context.Context, o Options) (*Repository, error) {
	o.Timing = o.Timing.withDefaults()
	o.Cache = o.Cache.withDefaults()
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(o.Stores) == 0 {
		return nil, fmt.Errorf("no store is given: %w", ErrInvalid)
	}
	given := meet(ctx, o)
	repo, foreign, err := oneRepository(given)
	if err != nil {
		return nil, err
	}
	r := &Repository{
		o: o, id: repo,
		byID: make(map[ident]*member), domains: make(map[string]*chunk.Domain), rootSeen: make(map[string]*root),
		nodes: newLRU[nodeKey, []byte](o.Cache.Nodes), cells: newLRU[chunk.Location, []byte](o.Cache.Blocks),
		moves: newLRU[chunk.PackID, []*forwarding](movesBudget),
	}
	u := newUnlocker(o, repo, given)
	if o.Master != nil {
		r.keys, err = u.byMaster(ctx, masterKey(*o.Master), given)
	} else if r.keys, r.keyName, err = u.findKey(ctx); err != nil && foreign != nil {
		err = foreign
	}
	if err != nil {
		return nil, err
	}
	if foreign != nil && !r.disown(ctx, given) {
		return nil, foreign
	}
	if err = r.join(given, u.latest); err != nil {
		return nil, err
	}
	m := r.members
	g := pack.Geometry{Data: m.Data, Parity: m.Parity}
	if r.coder, err = pack.NewCoder(g, repo, r.keys.repair); err != nil {
		return nil, fmt.Errorf("open the repository: %w", err)
	}
	r.packs = newBufferPool(pack.TargetSize)
	r.parts = newBufferPool(int(g.ShardSize(pack.TargetSize, 0)))
	if o.CacheDir != "" {
		r.index = openIndex(ctx, r)
	}
	return r, nil
}

// met is what a store answered when it was asked who it is.
type met struct {
	store  objstore.Store
	record storeRecord
	object []byte // nil: no record
	err    error
}

// meet asks every store who it is. Nothing is authenticated yet. It waits for
// all of them, but when most have answered no longer than the grace.
func meet(ctx context.Context, o Options) []met {
	ctx, cancel := context.WithTimeout(ctx, o.Timing.Call)
	defer cancel()
	type result struct {
		i int
		m met
	}
	results := make(chan result, len(o.Stores))
	out := make([]met, len(o.Stores))
	for i, s := range o.Stores {
		out[i] = met{store: s, err: fmt.Errorf("%s: %w: no answer", s.URL(), objstore.ErrDown)}
		go func() { results <- result{i, meetOne(ctx, s)} }()
	}
	var grace, last <-chan time.Time
	done := ctx.Done()
	for n := 0; n < len(out); {
		select {
		case r := <-results:
			out[r.i] = r.m
			if n++; n > len(out)/2 && grace == nil {
				grace = time.After(o.Timing.Grace)
			}
		case <-grace:
			cancel()
		case <-done:
			done = nil
			last = time.After(settle)
		case <-last:
			return out
		}
	}
	return out
}

func meetOne(ctx context.Context, s objstore.Store) met {
	m := met{store: s}
	if m.object, m.err = getObject(ctx, s, storeName); m.err != nil {
		m.object = nil
		return m
	}
	if m.record, m.err = parseStoreRecord(m.object); m.err != nil {
		m.object, m.err = nil, fmt.Errorf("%s: %w", s.URL(), m.err)
	}
	return m
}

func parseStoreRecord(object []byte) (storeRecord, error) {
	var rec storeRecord
	e, err := parseEnvelope(object)
	if err != nil {
		return rec, err
	}
	if e.kind != kindStore {
		return rec, fmt.Errorf("the store's identity is of kind %d: %w", e.kind, errEnvelope)
	}
	// Unknown fields are a newer version's; what it demands is in this one.
	if err := json.Unmarshal(e.payload, &rec); err != nil {
		return rec, fmt.Errorf("the store's identity: %w: %w", errEnvelope, err)
	}
	if rec.MinReader > formatVersion {
		return rec, versionError("read", rec.MinReader)
	}
	return rec, nil
}

// oneRepository returns the repository that the stores belong to; of a mixture
// the one with the most stores, and what to say of the others.
func oneRepository(given []met) (repo ident, foreign, err error) {
	count := make(map[ident]int)
	var reasons []string
	var newer error
	for _, g := range given {
		switch {
		case g.object != nil:
			count[g.record.Repository]++
		case errors.Is(g.err, ErrVersion):
			newer = g.err
		case errors.Is(g.err, objstore.ErrNotExist):
			reasons = append(reasons, g.store.URL()+" holds no repository")
		default:
			reasons = append(reasons, g.err.Error())
		}
	}
	switch len(count) {
	case 0:
		if newer != nil {
			return ident{}, nil, newer
		}
		return ident{}, nil, fmt.Errorf("no repository was found (%s): check the names of the stores, or make one with 'cairn repo init': %w", strings.Join(reasons, "; "), ErrForeign)
	case 1:
		for id := range count {
			return id, nil, nil
		}
	}
	// The one with fewer stores is likely the mistake.
	var most ident
	for id, n := range count {
		if n > count[most] || n == count[most] && bytes.Compare(id[:], most[:]) < 0 {
			most = id
		}
	}
	var odd []string
	for _, g := range given {
		if g.object != nil && g.record.Repository != most {
			odd = append(odd, fmt.Sprintf("%s belongs to repository %s", g.store.URL(), g.record.Repository))
		}
	}
	return most, fmt.Errorf("%s, the other stores to %s: leave out those of the other repository: %w", strings.Join(odd, ", "), most, ErrForeign), nil
}

// disown sets stores aside that name another repository only because their
// identity is damaged: they hold a list of members of this one. It returns false
// when one really is of another.
func (r *Repository) disown(ctx context.Context, given []met) bool {
	for i := range given {
		g := &given[i]
		if g.object == nil || g.record.Repository == r.id {
			continue
		}
		if m, _ := r.keys.latestMembership(ctx, g.store, r.id); m == nil {
			return false
		}
		g.object, g.err = nil, fmt.Errorf("%s: the store's identity names another repository, its other objects this one: %w", g.store.URL(), errEnvelope)
	}
	return true
}

// join makes members of the stores that prove to be some, and demands enough
// of them for reading. latest is the newest membership that each has.
func (r *Repository) join(given []met, latest map[ident]answer[*membership]) error {
	var errs, claims []error
	proved := make(map[ident][]objstore.Store)
	for _, g := range given {
		if errors.Is(g.err, ErrVersion) {
			claims = append(claims, g.err)
		}
		if g.object == nil {
			r.unknown = append(r.unknown, unknown(g))
			continue
		}
		if _, err := r.keys.openEnvelope(kindStore, storeName, g.object); err != nil {
			g.err = fmt.Errorf("%s: %w", g.store.URL(), err)
			r.unknown = append(r.unknown, unknown(g))
			continue
		}
		id := g.record.Store
		if others := proved[id]; len(others) > 0 {
			return fmt.Errorf("%s and %s are the same store %s: a copy of a store is no other store: leave one out: %w", others[0].URL(), g.store.URL(), id, ErrInvalid)
		}
		proved[id] = append(proved[id], g.store)
		r.byID[id] = &member{id: id, store: g.store}
		a := latest[id]
		if a.err != nil {
			errs = append(errs, a.err)
		}
		if m := a.value; m != nil && m.newer(r.members) {
			r.members = m
		}
	}
	for _, err := range errs {
		switch {
		case unproved(err):
			claims = append(claims, err)
		case errors.Is(err, ErrVersion):
			return err
		}
	}
	// As many stores as may be wrong are not believed.
	if len(claims) > 0 && (r.members == nil || len(claims) > r.members.Parity) {
		return claims[0]
	}
	if r.members == nil {
		return because(fmt.Errorf("no list of the repository's stores can be read: %w", ErrTooFewStores), errs)
	}
	up := 0
	for id, m := range r.byID {
		if r.members.has(id) {
			up++
			continue
		}
		r.unknown = append(r.unknown, &unknownStore{m.store, StoreForeign, fmt.Errorf("%s was removed from the repository or never joined it: %w", m.url(), ErrForeign)})
		delete(r.byID, id)
	}
	if up < r.members.Data {
		return fmt.Errorf("%d of the repository's %d stores can be used, reading needs any %d: bring back or name more of them (%s): %w", up, len(r.members.Stores), r.members.Data, r.reasons(), ErrTooFewStores)
	}
	return nil
}

func unknown(g met) *unknownStore {
	u := &unknownStore{store: g.store, state: StoreDown, err: g.err}
	if errors.Is(g.err, objstore.ErrNotExist) {
		u.state = StoreForeign
		u.err = fmt.Errorf("%s holds no repository: %w", g.store.URL(), ErrForeign)
	}
	return u
}

func (r *Repository) reasons() string {
	var parts []string
	for _, u := range r.unknown {
		parts = append(parts, u.err.Error())
	}
	if len(parts) == 0 {
		return "none other was given"
	}
	return strings.Join(parts, "; ")
}

// maxMemberships is how many membership records of a store are looked at.
const maxMemberships = 1 << 10

// latestMembership reads the newest genuine membership record that a store has. One
// of an older sealing epoch than is known is taken only when there is no better:
// somebody with an older key may have written it.
func (k *keyring) latestMembership(ctx context.Context, s objstore.Store, repo ident) (*membership, error) {
	return latestRecord(ctx, s, k.sealing.known(), func(name string, object []byte) (*membership, error) {
		m, err := k.openMembership(name, object)
		if err == nil && m.Repository != repo {
			err = fmt.Errorf("%s is of repository %s: %w", name, m.Repository, errEnvelope)
		}
		return m, err
	})
}

// latestClaim is latestMembership that also takes one of the newest sealing epoch that
// is known written with another master key: one that has to be learnt. A store answers
// without an error when what it has is all read, and what does not count there was made
// by somebody with an older key.
func (k *keyring) latestClaim(ctx context.Context, s objstore.Store, repo ident) (*membership, error) {
	latest, err := latestRecord(ctx, s, k.sealing.known(), func(name string, object []byte) (*membership, error) {
		m, err := k.openClaim(name, object)
		if err == nil && k.knows(m) {
			err = k.proved(m)
		}
		if err == nil && m.Repository != repo {
			err = fmt.Errorf("%s is of repository %s: %w", name, m.Repository, errEnvelope)
		}
		return m, err
	})
	several, ok := err.(interface{ Unwrap() []error })
	if latest != nil && ok && !slices.ContainsFunc(several.Unwrap(), func(err error) bool { return !errors.Is(err, errForged) }) {
		err = nil
	}
	return latest, err
}

// latestRecord returns the newest membership record of a store that parse takes, if
// possible one of the sealing epoch or a later one.
func latestRecord(ctx context.Context, s objstore.Store, epoch int, parse func(name string, object []byte) (*membership, error)) (*membership, error) {
	var versions []uint64
	err := s.List(ctx, membersPrefix, func(i objstore.Info) error {
		if v, ok := tailNumber(i.Name, membersPrefix); ok {
			versions = append(versions, v)
		}
		return nil
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // stores name themselves
	}
	slices.Sort(versions)
	slices.Reverse(versions)
	var best *membership
	var errs []error
	for _, v := range versions[:min(len(versions), maxMemberships)] {
		object, err := getObject(ctx, s, membersName(v))
		var m *membership
		if err == nil {
			m, err = parse(membersName(v), object)
		}
		switch {
		case err == nil && m.newer(best):
			best = m
		case err != nil && best == nil:
			errs = append(errs, fmt.Errorf("%s: %w", s.URL(), err))
		}
		if best != nil && best.epochs() >= epoch || errors.Is(err, ErrVersion) {
			break // an older record is no excuse
		}
	}
	return best, errors.Join(errs...)
}

// reunite looks at the stores that were not reached so far: one that is back
// is used from now on.
func (r *Repository) reunite(ctx context.Context) {
	r.mu.Lock()
	waiting := slices.Clone(r.unknown)
	r.mu.Unlock()
	var stores []objstore.Store
	for _, u := range waiting {
		if u.state == StoreDown {
			stores = append(stores, u.store)
		}
	}
	if stores == nil {
		return
	}
	o := r.o
	o.Stores = stores
	o.Timing.Call = min(o.Timing.Call, max(o.Timing.Grace, time.Second))
	for _, g := range meet(ctx, o) {
		if g.object == nil || g.record.Repository != r.id {
			continue
		}
		if _, err := r.keys.openEnvelope(kindStore, storeName, g.object); err != nil {
			continue
		}
		r.mu.Lock()
		if m := r.byID[g.record.Store]; r.members.has(g.record.Store) && (m == nil || m.store == nil) {
			r.byID[g.record.Store] = &member{id: g.record.Store, store: g.store}
			r.unknown = slices.DeleteFunc(r.unknown, func(u *unknownStore) bool { return u.store == g.store })
		}
		r.mu.Unlock()
	}
}
