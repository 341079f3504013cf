package repository

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Compacting. What is alive of a pack of which much is dead moves into a new pack:
//
//	P5    the pack is on the list, and with it those that manifests name for its chunks
//	P7    what is alive is certain: a session without a backup opens on all members,
//	      new packs on all their stores, forwardings on all members,
//	      commit votes on all members, the session's certificate on all members
//	P9    the old packs go, then the forwardings that are superseded
//
// While the session is not decided, no other prune takes its packs for garbage.
// One that aborts it does so before anything went: the forwardings lead nowhere
// then, and the next prune removes them and the packs. The certificate is there
// before anything goes, so that no loss of stores undoes what the votes decided.

// mover compacts packs of one project.
type mover struct {
	p       *pruner
	c       *compaction
	s       *Session
	d       *chunk.Domain
	sources map[chunk.PackID]*forwarding    // what is alive of each, and where it is: at first, where it was
	before  map[chunk.PackID][]chunk.PackID // packs that the chunks of a source were in
	moved   map[chunk.PackID]bool           // packs of which all moved
	placed  map[chunkKey]chunk.Location     // what is in the new packs
	objects []movedObject
}

// movedObject is a forwarding as it is stored.
type movedObject struct {
	name   string
	object []byte
}

// compact is the end of P7.
func (p *pruner) compact(ctx context.Context) error {
	p.report.Compacted, p.report.Healed, p.report.Moved, p.report.Freed = 0, 0, 0, 0 // from here on what was done
	if err := p.renewRemedies(ctx); err != nil {
		return err
	}
	for _, c := range p.plans {
		err := p.compactProject(ctx, c)
		if cerr := ctx.Err(); cerr != nil {
			return fmt.Errorf("canceled: %w", context.Cause(ctx))
		}
		if err != nil { // nothing goes for it, and everything else can
			addProblem(&p.report.Problems, fmt.Sprintf("packs are not compacted: %v", err))
		}
	}
	for id := range p.moves.remains {
		if p.moves.rescued[id] {
			continue
		}
		f, err := p.r.readForwarding(ctx, p.ms, p.moves.newest[id].name)
		if err != nil {
			return err
		}
		if p.chunks.packs[id].within(f) { // also what P7 found
			p.gone[id] = p.packs[id]
		}
	}
	return p.certifyMoves(ctx)
}

func (p *pruner) compactProject(ctx context.Context, c *compaction) error {
	m := &mover{
		p: p, c: c, sources: make(map[chunk.PackID]*forwarding),
		before: make(map[chunk.PackID][]chunk.PackID), moved: make(map[chunk.PackID]bool), placed: make(map[chunkKey]chunk.Location),
	}
	var err error
	if m.d, err = p.r.domain(c.project); err != nil {
		return err
	}
	if err = m.findChunks(ctx); err != nil {
		return err
	}
	if err = m.begin(ctx); err != nil {
		return err
	}
	defer m.s.release()
	err = m.open(ctx)
	if err == nil {
		err = m.move(ctx)
	}
	if err == nil && len(m.moved) > 0 {
		err = m.store(ctx)
	}
	if err != nil || len(m.moved) == 0 {
		m.discard(ctx)
		return err
	}
	won, err := m.vote(ctx)
	if err != nil || !won {
		return err
	}
	m.finish()
	return nil
}

// discard aborts a compaction that cast no vote, and removes its packs. What that
// does not get done the next prune does.
func (m *mover) discard(ctx context.Context) {
	m.s.abandon(ctx)
	r := m.p.r
	if d, err := r.decide(ctx, m.s.id, m.s.voters, nil); err != nil || d != Aborted {
		return
	}
	names, err := r.union(ctx, packPrefix+m.s.id.String()+"/")
	if err == nil {
		err = m.p.remove(ctx, "compact", slices.Collect(maps.Keys(names)))
	}
	if err != nil {
		r.warn(ctx, "packs of a compaction that failed are left", slog.Any("error", err))
	}
}

func (m *mover) problem(id chunk.PackID, err error) {
	addProblem(&m.p.report.Problems, fmt.Sprintf("pack %s is not compacted: %v", id, err))
}

// begin makes the session. Its ID is greater than those of the compactions whose
// forwardings it supersedes.
func (m *mover) begin(ctx context.Context) error {
	p := m.p
	id, err := newIdent()
	if err != nil {
		return err
	}
	first := uint64(max(p.r.o.Now().UnixNano(), 0))
	for old := range m.c.sources {
		if newest, ok := p.moves.newest[old]; ok {
			seen := binary.BigEndian.Uint64(newest.session[:])
			if seen == math.MaxUint64 {
				return fmt.Errorf("a compaction has the ID %s, and none is greater: %w", newest.session, ErrDamaged)
			}
			first = max(first, seen+1)
		}
	}
	binary.BigEndian.PutUint64(id[:], first)
	m.s = &Session{
		r: p.r, o: SessionOptions{Project: m.c.project}, id: id, began: p.r.o.Now().UTC(), keys: p.keys,
		voters: p.keys.Stores, opened: p.ms, domain: m.d, local: newRecent(1),
	}
	if p.chunks.until[m.c.project].After(p.r.o.Now()) { // since P4
		m.s.o.Retain = 1 // the session then notes its packs
	}
	slots := m.s.place()
	m.s.ship = newShipper(ctx, p.r, slots, len(slots)) // ended by release
	return nil
}

// open is W1, on all members.
func (m *mover) open(ctx context.Context) error {
	payload, err := m.s.openPayload()
	if err != nil {
		return err
	}
	return m.p.put(ctx, kindOpen, openName(m.s.id), payload)
}

// store makes sure that the new packs are on all their stores, and then puts the
// forwardings on all members.
func (m *mover) store(ctx context.Context) error {
	m.s.ship.end()
	owed, err := m.s.ship.owed(func(*member) bool { return true })
	if err == nil {
		err = m.s.lost
	}
	if err != nil {
		return err
	}
	if len(owed) > 0 {
		return fmt.Errorf("every store is needed, and %d shards of the new packs did not reach theirs: %w", len(owed), ErrTooFewStores)
	}
	for _, old := range slices.SortedFunc(maps.Keys(m.sources), comparePacks) {
		if !m.changed(old) {
			continue
		}
		name := forwardName(old, m.s.id)
		object, err := m.p.r.keys.sealForwarding(m.p.keys.epochs(), m.p.r.id, name, m.sources[old])
		if err != nil {
			return err
		}
		m.objects = append(m.objects, movedObject{name, object})
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	for _, o := range m.objects {
		group.Go(func() error {
			_, err := everywhere(gctx, m.p, "take "+o.name, m.p.r.puts(o.name, o.object))
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err //nolint:wrapcheck // each names its object
	}
	return m.retain(ctx)
}

// changed says whether any pack goes that the chunks of a source were in, alive
// or not.
func (m *mover) changed(old chunk.PackID) bool {
	return slices.ContainsFunc(m.before[old], func(id chunk.PackID) bool { return m.moved[id] })
}

// retain retains what is new as long as anything that backups reach.
func (m *mover) retain(ctx context.Context) error {
	if m.s.o.Retain == 0 {
		return nil
	}
	if _, err := m.p.r.retainShards(ctx, m.s.used, m.p.chunks.until[m.c.project]); err != nil {
		return err
	}
	var names []string
	for _, o := range m.objects {
		names = append(names, o.name)
	}
	return m.p.r.retainControls(ctx, names, m.p.chunks.until[m.c.project])
}

// vote commits the compaction, and reports whether all members hold the vote: if
// another prune was faster with one of them, nothing goes this time.
func (m *mover) vote(ctx context.Context) (bool, error) {
	p, root := m.p, m.digest()
	if err := m.s.finish(); err != nil {
		return false, err
	}
	rec := voteRecord{Session: m.s.id, Vote: voteCommit, Root: root}
	ballots, err := everywhere(ctx, p, "vote for what was compacted", func(ctx context.Context, mb *member) (ballot, error) {
		if err := p.r.identify(ctx, mb); err != nil {
			return ballot{}, err
		}
		return p.r.putVote(ctx, mb, rec)
	})
	if err != nil {
		return false, err
	}
	for _, b := range ballots {
		if b.vote != voteCommit || b.root != root {
			addProblem(&p.report.Problems, fmt.Sprintf("what moved of %d packs is for the next prune to decide: another one, which runs now, took this for dead", len(m.moved)))
			return false, nil
		}
	}
	return true, p.certify(ctx, m.s.id, root)
}

// digest is what the votes are for: all forwardings.
func (m *mover) digest() string {
	h := blake3.New()
	for _, o := range m.objects {
		sum := blake3.Sum256(o.object)
		_, _ = h.Write(append([]byte(o.name), sum[:]...)) // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil))
}

// finish lets the old packs go, and the forwardings that are superseded.
func (m *mover) finish() {
	p := m.p
	p.report.Freed -= m.s.Stored().BytesShards
	for _, at := range m.placed {
		p.report.Moved += int64(at.Length)
	}
	for id := range m.moved {
		p.gone[id] = p.packs[id]
		p.report.Compacted++
		if p.heals.packs[id] != nil {
			p.report.Healed++
		}
		p.report.Freed += p.packs[id]
	}
	for old := range m.sources {
		if newest, ok := p.moves.newest[old]; ok && m.changed(old) {
			p.moves.strays = append(p.moves.strays, newest.name)
		}
	}
}

// certify puts the certificate of a committed compaction on all members.
func (p *pruner) certify(ctx context.Context, s ident, root string) error {
	object, err := p.r.keys.sealCertificate(s, root)
	if err != nil {
		return err
	}
	_, err = everywhere(ctx, p, "take a certificate", p.r.puts(certificateName(s), object))
	return err
}

// certifyMoves does that for compactions of other prunes, because of which
// something goes now.
func (p *pruner) certifyMoves(ctx context.Context) error {
	for _, s := range slices.SortedFunc(maps.Keys(p.moves.certain), func(a, b ident) int { return bytes.Compare(a[:], b[:]) }) {
		root, err := p.r.committedRoot(ctx, s, nil)
		if err == nil && root == "" {
			err = fmt.Errorf("compaction %s was committed, and its votes are gone: %w", s, ErrDamaged)
		}
		if err == nil {
			err = p.certify(ctx, s, root)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
