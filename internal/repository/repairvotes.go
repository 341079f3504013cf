package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// lists mends what is wrong of the traces of prunes. What a store lacks of them is
// not filled in: a prune removes its list, and it would be back behind its back.
func (p *repairer) lists(ctx context.Context) error {
	names, err := p.r.union(ctx, prunePrefix)
	if err != nil {
		return err
	}
	for name, holders := range names {
		kd, ok := listKind(name)
		if !ok {
			continue
		}
		if err := p.object(ctx, kd, name, holders, false); err != nil {
			if ctx.Err() != nil {
				return fmt.Errorf("canceled: %w", context.Cause(ctx))
			}
			p.lose(err)
		}
	}
	return nil
}

// sessions mends what is wrong of sessions: "open" from another store, votes and
// certificates where what they have to say is certain.
func (p *repairer) sessions(ctx context.Context) error {
	names, err := p.r.union(ctx, sessionPrefix)
	if err != nil {
		return err
	}
	// Listed behind the votes: a root record is there before the first of them.
	roots, silent, err := p.r.unionOf(ctx, rootPrefix)
	if err != nil {
		return err
	}
	known := &rootsSeen{holders: roots, of: make(map[ident]string), all: silent == 0}
	for name := range roots {
		if s, ok := rootSession(name); ok {
			known.of[s] = name
		}
	}
	for name, holders := range names {
		s, leaf, ok := sessionObject(name)
		if !ok {
			continue
		}
		switch leaf {
		case openLeaf:
			err = p.object(ctx, kindOpen, name, holders, false)
		case verdictLeaf, certificateLeaf:
			err = p.decisions(ctx, s, leaf, holders, known)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		if err != nil {
			p.lose(err)
		}
	}
	return nil
}

// rootsSeen are the root records that the stores list.
type rootsSeen struct {
	holders map[string][]*member
	of      map[ident]string // by session
	all     bool             // every member listed its own
}

// decisions mends the wrong votes, or certificates, of a session.
func (p *repairer) decisions(ctx context.Context, s ident, leaf string, holders []*member, roots *rootsSeen) error {
	kd, name := kindVerdict, verdictName(s)
	if leaf == certificateLeaf {
		kd, name = kindCertificate, certificateName(s)
	}
	var errs []error
	for _, m := range holders {
		if _, err := p.genuine(ctx, kd, name, m); !errors.Is(err, errEnvelope) && !errors.Is(err, ErrVersion) {
			continue // right, or nobody can say
		}
		p.store(m).Damaged++
		p.store(m).example = name
		payload, err := p.decision(ctx, s, leaf, m, roots)
		if err == nil && p.apply {
			var object []byte
			if object, err = p.r.keys.sealEnvelope(kd, name, payload); err == nil {
				err = p.replace(ctx, m, name, object, true)
			}
			if err == nil {
				p.store(m).Mended++
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// decision returns what a store's vote or certificate has to say. A session that
// is committed without it stays so: every store may vote commit. One without a
// root record on any store can never be a backup: every store may vote abort.
func (p *repairer) decision(ctx context.Context, s ident, leaf string, m *member, roots *rootsSeen) ([]byte, error) {
	unsure := fmt.Errorf("%s: what was decided of session %s cannot be told without the damaged %s: bring back all stores: %w", m.url(), s, leaf, ErrDamaged)
	root, ok := roots.of[s]
	if !ok {
		if digest, err := p.r.committedRoot(ctx, s, nil); err == nil && digest != "" { // a compaction
			if leaf == certificateLeaf {
				return json.Marshal(certificateRecord{Session: s, Root: digest}) //nolint:wrapcheck // cannot fail
			}
			return json.Marshal(voteRecord{Session: s, Store: m.id, Vote: voteCommit, Root: digest}) //nolint:wrapcheck // as above
		}
		if leaf == certificateLeaf || !roots.all {
			return nil, unsure
		}
		return json.Marshal(voteRecord{Session: s, Store: m.id, Vote: voteAbort, By: s}) //nolint:wrapcheck // cannot fail
	}
	rt, err := p.r.readRoot(ctx, roots.holders[root], root)
	if err != nil {
		return nil, err
	}
	d, err := p.r.decide(ctx, s, rt.rec.Voters, &rt.digest)
	if err != nil {
		return nil, err
	}
	switch {
	case d != Committed:
		return nil, unsure
	case leaf == certificateLeaf:
		return json.Marshal(certificateRecord{Session: s, Root: rt.digest.String()}) //nolint:wrapcheck // as above
	default:
		return json.Marshal(voteRecord{Session: s, Store: m.id, Vote: voteCommit, Root: rt.digest.String()}) //nolint:wrapcheck // as above
	}
}

// identities gives stores their identity back whose "store" object is wrong. Who
// they are, their votes prove; or a membership that they have proves that they are
// of this repository, of which only one member is missing.
func (p *repairer) identities(ctx context.Context) error {
	p.r.reunite(ctx)
	p.r.mu.Lock()
	waiting := slices.Clone(p.r.unknown)
	p.r.mu.Unlock()
	for _, u := range waiting {
		there := meetOne(ctx, u.store)
		if errors.Is(there.err, objstore.ErrNotExist) || errors.Is(there.err, objstore.ErrDown) {
			continue
		}
		if there.object != nil {
			if _, err := p.r.keys.openEnvelope(kindStore, storeName, there.object); err == nil {
				continue // it is who it says
			}
		}
		id, ok := p.whoIs(ctx, u.store)
		if !ok || !p.apply {
			continue // the status says that it is wrong
		}
		payload, err := json.Marshal(storeRecord{Repository: p.r.id, Store: id, State: stateMember, MinReader: p.r.membership().MinReader})
		if err != nil {
			return fmt.Errorf("identity of a store: %w", err)
		}
		object, err := p.r.keys.sealEnvelope(kindStore, storeName, payload)
		if err == nil {
			err = u.store.Delete(ctx, storeName)
		}
		if err == nil {
			err = putSame(ctx, u.store, storeName, object)
		}
		if err != nil {
			p.lose(fmt.Errorf("the identity of %s: %w", u.store.URL(), err))
			continue
		}
		p.r.attach(&member{id: id, store: u.store})
	}
	return nil
}

// whoIs finds out which member a store is: one that has no store.
func (p *repairer) whoIs(ctx context.Context, s objstore.Store) (ident, bool) {
	var missing []ident
	for _, m := range p.r.current() {
		if m.store == nil {
			missing = append(missing, m.id)
		}
	}
	var found ident
	errFound := errors.New("found")
	err := s.List(ctx, sessionPrefix, func(i objstore.Info) error {
		if _, leaf, ok := sessionObject(i.Name); !ok || leaf != verdictLeaf {
			return nil
		}
		payload, err := p.r.getControl(ctx, s, kindVerdict, i.Name)
		var rec voteRecord
		if err != nil || decodeJSON(payload, &rec) != nil || !slices.Contains(missing, rec.Store) {
			return nil //nolint:nilerr // the next vote may tell
		}
		found = rec.Store
		return errFound
	})
	if errors.Is(err, errFound) {
		return found, true
	}
	if m, _ := p.r.keys.latestMembership(ctx, s, p.r.id); m != nil && len(missing) == 1 {
		return missing[0], true
	}
	return ident{}, false
}
