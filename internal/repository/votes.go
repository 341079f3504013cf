package repository

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// voteRecord is the payload of "sessions/<s>/verdict", which exists at most
// once per store: what that store says about the session, for ever.
type voteRecord struct {
	Session ident  `json:"session"`
	Store   ident  `json:"store"`
	Vote    string `json:"vote"`           // "commit" or "abort"
	Root    string `json:"root,omitempty"` // commit: digest of the root record, hex
	By      ident  `json:"by"`             // abort: the prune or the run that fenced it
}

const (
	voteCommit = "commit"
	voteAbort  = "abort"
)

// certificateRecord is the payload of "sessions/<s>/certificate": a counted
// commit vote was seen. Only a resync writes it.
type certificateRecord struct {
	Session ident  `json:"session"`
	Root    string `json:"root"`
}

// ballot is what one store has on a session.
type ballot struct {
	vote        string // "", voteCommit, voteAbort
	root        string
	certificate string // digest
}

// putVote writes a vote to the member, if it has none, and returns the vote
// that it has then. An error leaves open whether it has one.
func (r *Repository) putVote(ctx context.Context, m *member, rec voteRecord) (ballot, error) {
	rec.Store = m.id
	payload, err := json.Marshal(rec)
	if err != nil {
		return ballot{}, fmt.Errorf("vote: %w", err)
	}
	name := verdictName(rec.Session)
	object, err := r.keys.sealEnvelope(kindVerdict, name, payload)
	if err != nil {
		return ballot{}, err
	}
	putErr := m.store.Put(ctx, name, object)
	if putErr == nil {
		return ballot{vote: rec.Vote, root: rec.Root}, nil
	}
	// Refused or unanswered: it may be there all the same, ours or another's.
	b, err := r.readVote(ctx, m, rec.Session)
	if err == nil && !errors.Is(putErr, objstore.ErrExist) && b.vote != "" {
		// Seen, but was it acknowledged as durable? The store says so by
		// refusing to write it again.
		if again := m.store.Put(ctx, name, object); again != nil && !errors.Is(again, objstore.ErrExist) {
			return ballot{}, again //nolint:wrapcheck // stores name themselves and the object
		}
	}
	switch {
	case err == nil:
		return b, nil
	case errors.Is(err, objstore.ErrNotExist):
		return ballot{}, fmt.Errorf("no vote yet: %w", putErr)
	default:
		return ballot{}, errors.Join(putErr, err)
	}
}

// readVote returns the vote that a member has on a session.
func (r *Repository) readVote(ctx context.Context, m *member, s ident) (ballot, error) {
	payload, err := r.getControl(ctx, m.store, kindVerdict, verdictName(s))
	if err != nil {
		return ballot{}, err
	}
	var rec voteRecord
	if err := decodeJSON(payload, &rec); err != nil {
		return ballot{}, err
	}
	if rec.Session != s || rec.Store != m.id || rec.Vote != voteCommit && rec.Vote != voteAbort {
		return ballot{}, fmt.Errorf("%s: vote of store %s: %w", m.url(), rec.Store, errEnvelope)
	}
	return ballot{vote: rec.Vote, root: rec.Root}, nil
}

// readBallot returns all that a member has on a session; nothing is no error.
func (r *Repository) readBallot(ctx context.Context, m *member, s ident) (ballot, error) {
	b, err := r.readVote(ctx, m, s)
	if err != nil && !errors.Is(err, objstore.ErrNotExist) {
		return ballot{}, err
	}
	if b.vote == voteCommit {
		return b, nil
	}
	payload, err := r.getControl(ctx, m.store, kindCertificate, certificateName(s))
	if errors.Is(err, objstore.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return b, err
	}
	var rec certificateRecord
	if err := decodeJSON(payload, &rec); err != nil {
		return b, err
	}
	if rec.Session == s {
		b.certificate = rec.Root
	}
	return b, nil
}

// decide applies the rule of the protocol: committed by a certificate, or by a
// commit vote of the right digest on a current member that is a voter; aborted
// when every current member that is a voter holds an abort vote. want is the
// digest of the root record; nil accepts any, for a session whose root is lost.
func (r *Repository) decide(ctx context.Context, s ident, voters []ident, want *digest) (Decision, error) {
	current := r.current()
	right := func(hexDigest string) bool {
		return want == nil && hexDigest != "" || want != nil && hexDigest == hex.EncodeToString(want[:])
	}
	counts := func(m *member) bool { return voters == nil || slices.Contains(voters, m.id) }
	// One visible vote is proof: usually the first store asked has it.
	for _, m := range r.byHealth(current) {
		if !counts(m) {
			continue
		}
		b, err := one(ctx, r, m, func(ctx context.Context, m *member) (ballot, error) { return r.readVote(ctx, m, s) })
		if err == nil && b.vote == voteCommit && right(b.root) {
			return Committed, nil
		}
		if errors.Is(err, objstore.ErrNotExist) || err == nil {
			break // an honest answer that is no proof: ask all
		}
	}
	enough := max(1, len(current)-r.membership().Parity)
	answers := ask(ctx, r.o.Timing, current, enough, func(ctx context.Context, m *member) (ballot, error) { return r.readBallot(ctx, m, s) })
	aborts, voting := 0, 0
	for _, a := range answers {
		if a.err == nil && a.value.certificate != "" && right(a.value.certificate) {
			return Committed, nil
		}
		if !counts(a.m) {
			continue
		}
		voting++
		if a.err != nil {
			continue
		}
		switch {
		case a.value.vote == voteCommit && right(a.value.root):
			return Committed, nil
		case a.value.vote == voteAbort:
			aborts++
		}
	}
	if err := ctx.Err(); err != nil {
		return Undecided, fmt.Errorf("read the votes of session %s: %w", s, err)
	}
	if aborts > 0 && aborts == voting {
		return Aborted, nil
	}
	if voters != nil && voting == 0 && failures(answers) == nil {
		return Aborted, nil // all who might have voted were replaced, and no certificate says that they did
	}
	return Undecided, nil
}

// Verdict returns what the votes of a session add up to, as far as the stores
// can be reached.
func (r *Repository) Verdict(ctx context.Context, sessionID string) (Decision, error) {
	s, err := parseIdent(sessionID)
	if err != nil {
		return Undecided, err
	}
	r.reunite(ctx)
	voters, want, err := r.findSession(ctx, s)
	if err != nil {
		return Undecided, err
	}
	return r.decide(ctx, s, voters, want)
}

// SessionOver says whether nobody can go on with a session: it is decided, or its
// backup was purged. The session of a process that died is over when a prune has
// aborted it. What cannot be told counts as no.
func (r *Repository) SessionOver(ctx context.Context, sessionID string) (bool, error) {
	d, err := r.Verdict(ctx, sessionID)
	if err != nil || d != Undecided {
		return err == nil, err
	}
	s, err := parseIdent(sessionID)
	if err != nil {
		return false, err
	}
	purged, err := r.marks(ctx, purgedPrefix, kindPurged, map[ident]bool{s: true})
	return purged[s], err
}

// FenceSession decides a session whose writer is dead: it votes abort on every
// voter that has no vote and returns what the votes then add up to. It may find
// the session committed; while a voter cannot be reached it may stay undecided.
func (r *Repository) FenceSession(ctx context.Context, sessionID string) (Decision, error) {
	s, err := parseIdent(sessionID)
	if err != nil {
		return Undecided, err
	}
	r.reunite(ctx)
	voters, want, err := r.findSession(ctx, s)
	if err != nil {
		return Undecided, err
	}
	d, err := r.decide(ctx, s, voters, want)
	if err != nil || d != Undecided {
		return d, err
	}
	by, err := newIdent()
	if err != nil {
		return Undecided, err
	}
	if err := r.voteAbort(ctx, s, voters, by); err != nil {
		return Undecided, err
	}
	return r.decide(ctx, s, voters, want)
}

// voteAbort puts an abort vote on every current member that is a voter and has
// no vote. That some cannot be reached is no error.
func (r *Repository) voteAbort(ctx context.Context, s ident, voters []ident, by ident) error {
	var ms []*member
	for _, m := range r.current() {
		if voters == nil || slices.Contains(voters, m.id) {
			ms = append(ms, m)
		}
	}
	ask(ctx, r.o.Timing, ms, r.membership().quorum(), func(ctx context.Context, m *member) (ballot, error) {
		if err := r.identify(ctx, m); err != nil {
			return ballot{}, err
		}
		return r.putVote(ctx, m, voteRecord{Session: s, Vote: voteAbort, By: by})
	})
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("fence session %s: %w", s, err)
	}
	return nil
}

// findSession returns a session's voters and the digest of its root record, as
// far as either is left; nil voters stand for all members.
func (r *Repository) findSession(ctx context.Context, s ident) ([]ident, *digest, error) {
	names, err := r.union(ctx, rootPrefix)
	if err != nil {
		return nil, nil, err
	}
	for name, ms := range names {
		if found, ok := rootSession(name); ok && found == s {
			rt, err := r.readRoot(ctx, ms, name)
			if err == nil {
				return rt.rec.Voters, &rt.digest, nil
			}
			if !errors.Is(err, ErrDamaged) {
				return nil, nil, err
			}
		}
	}
	for _, m := range r.byHealth(r.current()) {
		payload, err := one(ctx, r, m, func(ctx context.Context, m *member) ([]byte, error) {
			return r.getControl(ctx, m.store, kindOpen, openName(s))
		})
		var rec openRecord
		if err == nil && decodeJSON(payload, &rec) == nil && rec.Session == s {
			return rec.Voters, nil, nil
		}
	}
	return nil, nil, nil
}

// committedRoot returns what a committed session is committed for: want if it is
// known, else what a vote or a certificate says. A compaction has no root record.
func (r *Repository) committedRoot(ctx context.Context, s ident, want *digest) (string, error) {
	if want != nil {
		return want.String(), nil
	}
	var errs []error
	for _, m := range r.current() {
		b, err := one(ctx, r, m, func(ctx context.Context, m *member) (ballot, error) { return r.readBallot(ctx, m, s) })
		switch root := cmp.Or(b.root, b.certificate); {
		case err != nil && !errors.Is(err, errEnvelope):
			errs = append(errs, err)
		case root != "":
			return root, nil
		}
	}
	return "", errors.Join(errs...)
}

// sealCertificate returns the object that says that a counted commit vote was seen.
func (k *keyring) sealCertificate(s ident, root string) ([]byte, error) {
	payload, err := json.Marshal(certificateRecord{Session: s, Root: root})
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	return k.sealEnvelope(kindCertificate, certificateName(s), payload)
}
