package repository

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cairnbackup/cairn/internal/attributes"
	"github.com/cairnbackup/cairn/internal/chunk"
)

// voteRounds is how often stores that did not answer are asked for their vote
// again.
const voteRounds = 3

// cleanupTime bounds what an ended session may take to tidy up.
const cleanupTime = 20 * time.Second

// Commit ends the session: W5 to W8. All workers must be closed.
//
// OutcomeCommitted comes with a nil error: the backup is stored and survives
// the loss of d further stores. OutcomeFailed: it does not exist and never will.
// OutcomeUnknown: too few stores answered; Verdict and FenceSession tell later,
// and nobody may rely on the backup, nor on its absence, before.
func (s *Session) Commit(ctx context.Context, rt Root) (Outcome, error) {
	if err := s.checkRoot(&rt); err != nil {
		return OutcomeFailed, err
	}
	if err := s.finish(); err != nil {
		return OutcomeUnknown, err
	}
	defer s.release()
	var stored *root
	err := s.whole()
	if err == nil {
		stored, err = s.store(ctx, rt)
	}
	if err != nil {
		// No vote was cast, so that an abort is certain to win.
		s.abandon(ctx)
		return OutcomeFailed, err
	}
	outcome, err := s.vote(ctx, stored.digest)
	switch outcome {
	case OutcomeCommitted:
		s.r.remember(stored)
		s.merge.commit(ctx)
		s.noteSound(rt.BackupID)
		if to := stored.rec.Retained; !to.IsZero() {
			s.retainDecision(ctx, to)
		}
		s.removeOpen(ctx)
	case OutcomeFailed:
		s.removeOpen(ctx)
	default:
	}
	return outcome, err
}

// checkRoot refuses what cannot be committed, and brings the attributes into
// their normal form.
func (s *Session) checkRoot(rt *Root) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return ErrEnded
	case s.workers > 0:
		return fmt.Errorf("commit with %d workers that are not closed: %w", s.workers, ErrInvalid)
	case rt.BackupID == "":
		return fmt.Errorf("commit without a backup ID: %w", ErrInvalid)
	case len(rt.Top) == 0:
		return fmt.Errorf("commit without a manifest: %w", ErrInvalid)
	}
	if err := rt.Geometry.Validate(); err != nil {
		return fmt.Errorf("commit: %w: %w", err, ErrInvalid)
	}
	normal, err := attributes.Normal(rt.Attributes)
	if err != nil {
		return fmt.Errorf("commit backup %s: %w: %w", rt.BackupID, err, ErrInvalid)
	}
	rt.Attributes = normal
	return nil
}

// store is W5 and W6: all packs, what is owed of them, the root record.
func (s *Session) store(ctx context.Context, rt Root) (*root, error) {
	if err := s.ship.flush(ctx); err != nil {
		return nil, err
	}
	s.ship.end()
	same, err := s.unchanged(ctx, s.opened)
	if err != nil {
		return nil, err
	}
	owed, err := s.ship.owed(func(m *member) bool { return slices.Contains(same, m) })
	if err != nil {
		return nil, err
	}
	if err = s.recordOwed(ctx, owed); err != nil {
		return nil, err
	}
	keep := rt.keep
	if own := s.retention(); own != (retention{}) {
		keep = own
		if err = s.retainPacks(ctx, rt, keep.to); err != nil {
			return nil, err
		}
	}
	parent := s.parentID
	if rt.Parent != nil {
		parent = *rt.Parent
	}
	stats := rt.Stats
	stats.Shards += s.Stored().BytesShards
	rec := &rootRecord{
		BackupID: rt.BackupID, Name: rt.Name, Description: rt.Description,
		Project: s.o.Project, VolumeID: s.o.VolumeID, Volume: s.o.Volume,
		Size: rt.Geometry.Size, BlockSize: rt.Geometry.BlockSize, Created: rt.Created.UTC(), Parent: parent,
		Session: s.id, Voters: s.voters, URLs: s.urls(), Stats: stats, Pin: rt.pin,
		RetainUntil: keep.until, Retained: keep.to, Attributes: rt.Attributes,
	}
	name, err := s.r.keys.rootName(rec.Project, rec.VolumeID, s.id)
	if err != nil {
		return nil, err
	}
	object, err := s.r.keys.sealRoot(s.keys.epochs(), name, rec, rt.Top)
	if err != nil {
		return nil, err
	}
	// What cannot be read back must not be committed.
	s.mu.Lock()
	s.keep = keep
	s.mu.Unlock()
	back, err := s.r.keys.openRoot(name, object)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(back.rec.Attributes, rec.Attributes) {
		return nil, fmt.Errorf("commit backup %s: its attributes cannot be read back: %w", rt.BackupID, ErrInvalid)
	}
	if s.rooted, err = s.putEverywhere(ctx, name, object); err != nil {
		return nil, err
	}
	if !keep.to.IsZero() {
		if err = s.r.retainControls(ctx, []string{name}, keep.to); err != nil {
			return nil, err
		}
	}
	if err = s.upToDate(ctx); err != nil {
		return nil, err
	}
	return back, s.counted(same)
}

// urls is where the voters are, for people who have lost one.
func (s *Session) urls() []string {
	out := make([]string, len(s.voters))
	for _, m := range s.r.current() {
		if i := slices.Index(s.voters, m.id); i >= 0 && m.store != nil {
			out[i] = m.store.URL()
		}
	}
	return out
}

// counted says whether enough of the stores that are still the same took part
// in each step so far.
func (s *Session) counted(same []*member) error {
	for _, step := range []struct {
		what string
		ms   []*member
	}{
		{"opened the session", s.opened},
		{"gave their lists", s.listed},
		{"took the root record", s.rooted},
	} {
		if n := count(step.ms, same); n < s.keys.quorum() {
			return fmt.Errorf("%d of the stores that %s are still there, %d are needed: %w", n, step.what, s.keys.quorum(), ErrTooFewStores)
		}
	}
	return nil
}

func count(ms, among []*member) int {
	n := 0
	for _, m := range ms {
		if slices.Contains(among, m) {
			n++
		}
	}
	return n
}

// putEverywhere writes a control object to all members and returns those that
// acknowledged it.
func (s *Session) putEverywhere(ctx context.Context, name string, object []byte) ([]*member, error) {
	answers := ask(ctx, s.r.o.Timing, s.r.current(), s.keys.packQuorum(), func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, putSame(ctx, m.store, name, object)
	})
	took := succeeded(answers)
	if len(took) < s.keys.quorum() {
		return took, fmt.Errorf("%s is on %d stores, %d are needed: %w: %w", name, len(took), s.keys.quorum(), ErrTooFewStores, failures(answers))
	}
	return took, nil
}

// unchanged returns those of the members that are still the stores they were, and
// members.
func (s *Session) unchanged(ctx context.Context, ms []*member) ([]*member, error) {
	answers := ask(ctx, s.r.o.Timing, ms, s.keys.packQuorum(), func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, s.r.identify(ctx, m)
	})
	now := s.r.membership()
	same := slices.DeleteFunc(succeeded(answers), func(m *member) bool { return !now.has(m.id) })
	if len(same) < s.keys.quorum() {
		return same, fmt.Errorf("%d stores can be reached that took part from the beginning, %d are needed: %w: %w", len(same), s.keys.quorum(), ErrTooFewStores, failures(answers))
	}
	return same, nil
}

// vote is W7. It does not give up with the caller's context half-way through:
// the votes that were cast decide, whoever waits for them or not.
func (s *Session) vote(ctx context.Context, want digest) (Outcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*s.r.o.Timing.Call)
	defer cancel()
	rec := voteRecord{Session: s.id, Vote: voteCommit, Root: hex.EncodeToString(want[:])}
	ballots := make(map[*member]ballot)
	var errs error
	for round := 0; ; round++ {
		var missing []*member
		for _, m := range s.r.current() {
			if _, ok := ballots[m]; !ok && slices.Contains(s.voters, m.id) {
				missing = append(missing, m)
			}
		}
		mine := s.commits(ballots, rec.Root)
		if len(missing) == 0 || round == voteRounds || round > 0 && len(mine) >= s.keys.quorum() {
			break
		}
		answers := ask(ctx, s.r.o.Timing, missing, s.keys.packQuorum()-len(mine), func(ctx context.Context, m *member) (ballot, error) {
			if err := s.r.identify(ctx, m); err != nil {
				return ballot{}, err
			}
			return s.r.putVote(ctx, m, rec)
		})
		for _, a := range answers {
			if a.err == nil {
				ballots[a.m] = a.value
			}
		}
		errs = failures(answers)
	}
	mine := s.commits(ballots, rec.Root)
	if len(mine) >= s.keys.quorum() {
		// A store that was replaced since "open" counts in nothing.
		same, err := s.unchanged(ctx, s.opened)
		if err == nil {
			err = s.counted(same)
		}
		if err == nil && count(mine, same) >= s.keys.quorum() {
			return OutcomeCommitted, nil
		}
		errs = errors.Join(errs, err)
	}
	return s.verdictShort(ballots, rec.Root, errs)
}

// commits returns the members that hold the commit vote and took part from the
// beginning.
func (s *Session) commits(ballots map[*member]ballot, root string) []*member {
	var ms []*member
	for m, b := range ballots {
		if b.vote == voteCommit && b.root == root && slices.Contains(s.opened, m) {
			ms = append(ms, m)
		}
	}
	return ms
}

// verdictShort is what a writer is told that did not get its votes. Failed only
// when every voter answered and none holds a commit vote: one is enough for a
// reader to take the backup for committed.
func (s *Session) verdictShort(ballots map[*member]ballot, root string, errs error) (Outcome, error) {
	answered, commits := 0, 0
	for _, b := range ballots {
		answered++
		if b.vote == voteCommit && b.root == root {
			commits++
		}
	}
	if answered == len(s.voters) && commits == 0 {
		return OutcomeFailed, fmt.Errorf("session %s was aborted on every store by another process: %w", s.id, ErrEnded)
	}
	return OutcomeUnknown, fmt.Errorf("the outcome of session %s is unknown: %d of %d stores answered and %d took the commit, %d are needed: %w: %w", s.id, answered, len(s.voters), commits, s.keys.quorum(), ErrTooFewStores, errs)
}

// Abort ends the session without a backup: it votes abort wherever it can, so
// that nobody has to wait for the session. What it wrote is garbage for a prune.
// It does nothing to a session that has ended.
func (s *Session) Abort(ctx context.Context) error {
	if s.finish() != nil {
		return nil
	}
	defer s.release()
	s.abandon(ctx)
	return nil
}

// abandon stops writing and gets the session decided if it can.
func (s *Session) abandon(ctx context.Context) {
	s.ship.end()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if s.r.voteAbort(ctx, s.id, s.voters, s.id) != nil {
		return
	}
	if d, err := s.r.decide(ctx, s.id, s.voters, nil); err == nil && d == Aborted {
		s.removeOpen(ctx)
	}
}

// release frees what the session held.
func (s *Session) release() {
	s.ship.end()
	s.merge.close()
	// Buffers that cannot be given back are lost memory, nothing worse.
	_ = errors.Join(s.r.packs.trim(), s.r.parts.trim())
}

// removeOpen removes "open" where it can: a prune removes the rest.
func (s *Session) removeOpen(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	ask(ctx, s.r.o.Timing, s.r.current(), 0, func(ctx context.Context, m *member) (struct{}, error) {
		return struct{}{}, m.store.Delete(ctx, openName(s.id))
	})
}

// owedEntry is one shard in an "owed" object: pack, shard, store.
const owedEntry = 32 + 2 + 16

// owedPerObject bounds the size of one "owed" object.
const owedPerObject = 64 << 10

// recordOwed tells the living stores which shards are missing, so that a repair
// finds them without looking at every pack.
func (s *Session) recordOwed(ctx context.Context, owed []owedShard) error {
	for n := 0; len(owed) > 0; n++ {
		part := owed[:min(len(owed), owedPerObject)]
		owed = owed[len(part):]
		name := owedName(s.id, n)
		object, err := s.r.keys.sealEnvelope(kindOwed, name, encodeOwed(part))
		if err != nil {
			return err
		}
		if _, err := s.putEverywhere(ctx, name, object); err != nil {
			return fmt.Errorf("record the owed shards: %w", err)
		}
	}
	return nil
}

func encodeOwed(owed []owedShard) []byte {
	out := make([]byte, 0, len(owed)*owedEntry)
	for _, o := range owed {
		out = append(out, o.pack[:]...)
		out = binary.BigEndian.AppendUint16(out, uint16(o.shard)) //nolint:gosec // at most 31
		out = append(out, o.store[:]...)
	}
	return out
}

func decodeOwed(payload []byte) ([]owedShard, error) {
	if len(payload)%owedEntry != 0 {
		return nil, fmt.Errorf("owed shards of %d bytes: %w", len(payload), errEnvelope)
	}
	out := make([]owedShard, 0, len(payload)/owedEntry)
	for ; len(payload) > 0; payload = payload[owedEntry:] {
		o := owedShard{
			pack:  chunk.PackID(payload[:32]),
			shard: int(binary.BigEndian.Uint16(payload[32:])),
			store: ident(payload[34:50]),
		}
		if o.shard >= 32 {
			return nil, fmt.Errorf("owed shard %d: %w", o.shard, errEnvelope)
		}
		out = append(out, o)
	}
	return out, nil
}
