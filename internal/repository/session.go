package repository

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// SessionOptions say what a session will back up.
type SessionOptions struct {
	Project          string
	VolumeID, Volume string
	ParentBackup     string        // ID of the backup to start from; empty = a full backup
	Retain           time.Duration // for so long the backup cannot be deleted; 0 = it can
	RetainUntil      time.Time     // or until then, as it is copied from a backup that says so; zero = it can
}

// Session is one writer's run: it makes at most one backup. Its methods may be
// called concurrently; it has to be ended by Commit or Abort, when all workers
// are closed.
//
// The steps W1 to W8 in the comments are those of the protocol.
type Session struct {
	r      *Repository
	o      SessionOptions
	id     ident
	began  time.Time
	keys   *membership // as at W1
	voters []ident
	opened []*member // W1: acknowledged "open", with the ID they had
	listed []*member // W2: of opened, those whose lists were read
	rooted []*member // W6: took the root record
	avoid  condemned
	damage *damage // nil: not known
	epoch  uint16  // placement of its packs

	domain        *chunk.Domain
	parent        *root
	parentID      string // what the root record names
	parentTree    *manifest.Tree
	parentProblem string

	ship  *shipper
	local *recent
	merge *journal // nil without an index

	mu      sync.Mutex
	workers int
	packNo  uint32
	lost    error // why chunks that a worker handed out never got into a queue
	ended   bool
	heeded  bool                      // Bad was asked for
	keep    retention                 // what was committed
	used    map[chunk.PackID]struct{} // new packs and those found by the index; nil without a retention
}

// SessionStats are the figures of a session so far.
type SessionStats struct {
	BytesStored int64          // sealed, before parity
	BytesShards int64          // with parity, acknowledged by stores
	Packs       int            // finished packs
	Owed        map[string]int // by store: shards that are not there; final behind Commit
}

// openRecord is the payload of "sessions/<s>/open".
type openRecord struct {
	Session ident     `json:"session"`
	Agent   string    `json:"agent"`
	Began   time.Time `json:"began"`
	Voters  []ident   `json:"voters"`
}

// Begin opens a session: W1 to W3, and what is known to be damaged. When the parent cannot be used, the session
// is one for a full backup, and ParentProblem says why.
func (r *Repository) Begin(ctx context.Context, o SessionOptions) (*Session, error) {
	if o.VolumeID == "" {
		return nil, fmt.Errorf("a session needs the ID of its volume: %w", ErrInvalid)
	}
	r.reunite(ctx)
	if err := r.upToDate(ctx); err != nil {
		return nil, err
	}
	m := r.membership()
	if m.MinWriter > formatVersion {
		return nil, versionError("write to", m.MinWriter)
	}
	id, err := newIdent()
	if err != nil {
		return nil, err
	}
	s := &Session{r: r, o: o, id: id, began: r.o.Now().UTC(), keys: m, voters: m.Stores, local: newRecent(recentEntries)}
	if s.domain, err = r.domain(o.Project); err != nil {
		return nil, err
	}
	if err := s.open(ctx); err != nil {
		s.removeOpen(ctx)
		return nil, err
	}
	if err := s.readLists(ctx); err != nil {
		s.removeOpen(ctx)
		return nil, err
	}
	s.heed(ctx)
	s.findParent(ctx)
	if r.index != nil {
		s.merge = r.index.begin(ctx, s)
		s.rebuild(ctx)
	}
	s.ship = newShipper(ctx, r, s.place(), m.packQuorum())
	return s, nil
}

// place chooses the placement of the session's packs and returns its stores.
func (s *Session) place() []*member {
	p := s.choosePlacement()
	s.epoch = p.Epoch
	slots := make([]*member, len(p.Slots))
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	for i, id := range p.Slots {
		slots[i] = s.r.memberLocked(id)
	}
	return slots
}

// choosePlacement takes one of the placements for new packs whose stores are
// there, any of them: over all sessions they even out.
func (s *Session) choosePlacement() placement {
	var best []placement
	most := -1
	for _, p := range s.keys.Placements[s.keys.Active:] {
		up := 0
		for _, m := range s.opened {
			if slices.Contains(p.Slots, m.id) {
				up++
			}
		}
		if up > most {
			best, most = nil, up
		}
		if up == most {
			best = append(best, p)
		}
	}
	return best[rand.IntN(len(best))] //nolint:gosec // no secret
}

// identify asks a store who it is, past everything that is remembered.
func (r *Repository) identify(ctx context.Context, m *member) error {
	payload, err := r.getControl(ctx, m.store, kindStore, storeName)
	if err != nil {
		return err
	}
	var rec storeRecord
	if err := decodeJSON(payload, &rec); err != nil {
		return err
	}
	if rec.Repository != r.id || rec.Store != m.id {
		return fmt.Errorf("%s is now store %s of repository %s: %w", m.url(), rec.Store, rec.Repository, ErrForeign)
	}
	return nil
}

// open is W1. Each store's identity is read before its "open" is written.
func (s *Session) open(ctx context.Context) error {
	payload, err := s.openPayload()
	if err != nil {
		return err
	}
	object, err := s.r.keys.sealEnvelope(kindOpen, openName(s.id), payload)
	if err != nil {
		return err
	}
	answers := ask(ctx, s.r.o.Timing, s.r.current(), s.keys.packQuorum(), s.r.puts(openName(s.id), object))
	s.opened = succeeded(answers)
	if len(s.opened) < s.keys.packQuorum() {
		// Control objects need fewer, but packs would fail later: fail now.
		return fmt.Errorf("a backup needs %d of the %d stores, %d can be written to: %w: %w", s.keys.packQuorum(), len(answers), len(s.opened), ErrTooFewStores, failures(answers))
	}
	return nil
}

func (s *Session) openPayload() ([]byte, error) {
	payload, err := json.Marshal(openRecord{Session: s.id, Agent: s.r.o.Agent, Began: s.began, Voters: s.voters})
	if err != nil {
		return nil, fmt.Errorf("open a session: %w", err)
	}
	return payload, nil
}

// ID returns the session's ID, as root records, votes and pack names have it.
func (s *Session) ID() string { return s.id.String() }

// Parent returns the manifest to start from, nil for a full backup.
func (s *Session) Parent() *manifest.Tree { return s.parentTree }

// ParentProblem says in a sentence why the parent that was asked for is not
// used; empty if it is, or none was asked for.
func (s *Session) ParentProblem() string { return s.parentProblem }

// RetainUntil returns until when the backup cannot be deleted, behind Commit; the
// zero time if it can be.
func (s *Session) RetainUntil() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keep.until
}

// Stored returns the figures so far.
func (s *Session) Stored() SessionStats {
	owed := make(map[string]int)
	sh := s.ship
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, p := range sh.sent {
		for i, ok := range p.acked {
			if !ok && (sh.ended || p.pending == 0) {
				owed[sh.slots[i].url()]++
			}
		}
	}
	return SessionStats{BytesStored: sh.stored, BytesShards: sh.shards, Packs: sh.packs, Owed: owed}
}

// newPackID returns the ID of the session's next pack: a number and 88 random
// bits behind the session's own 128.
func (s *Session) newPackID() (chunk.PackID, error) {
	random, err := newIdent()
	if err != nil {
		return chunk.PackID{}, err
	}
	s.mu.Lock()
	batch := s.packNo / packsPerFolder
	s.packNo++
	s.mu.Unlock()
	tail := [14]byte(random[:14])
	tail[0], tail[1], tail[2] = byte(batch>>16), byte(batch>>8), byte(batch) //nolint:gosec // its digits
	id := chunk.NewPackID(s.id, s.epoch, tail)
	s.use(id)
	return id, nil
}

// enter counts a worker in, leave out.
func (s *Session) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return ErrEnded
	}
	s.workers++
	return nil
}

func (s *Session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.workers--
}

// lose notes that references to chunks were handed out that no store will have.
func (s *Session) lose(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == nil {
		s.lost = err
	}
}

// whole says whether everything that a root record may name is on its way: W6.
func (s *Session) whole() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lost != nil:
		return fmt.Errorf("commit: a pack of this backup was not stored: %w", s.lost)
	case s.workers > 0:
		return fmt.Errorf("commit: %d workers are not closed", s.workers)
	}
	return nil
}

// finish makes the session an ended one; only the first caller may end it.
func (s *Session) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return ErrEnded
	}
	s.ended = true
	return nil
}
