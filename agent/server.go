package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
)

const (
	idleTimeout   = time.Minute            // of an idle HTTP connection
	stopTimeout   = 10 * time.Second       // for answers to go out at the end
	reportEvery   = 200 * time.Millisecond // of a job's progress, to those who wait
	maxRequest    = 1 << 20                // bytes of a request's body
	keepJobs      = 1000                   // records of jobs
	defaultListed = 100                    // jobs in a list
)

// server serves one repository of a running agent.
type server struct {
	o       Options // with the repository's own limits
	hub     *hub
	name    string
	log     *slog.Logger
	hostID  string // of the state folder, where the catalog is shared
	cat     *catalog.Catalog
	repo    *repository.Repository // once it is open
	serve   control                // of the volumes
	jobs    *engine
	exports *exports
	started time.Time
	tidy    chan struct{} // something is to be cleaned up
	late    late[Backup]

	// Guarded by hub.mu.
	bound   string // ID of the repository that the catalog is of; empty = of none yet
	claimed bool   // by this agent

	tried chan struct{} // closed behind the first try to open the repository
	open  chan struct{} // closed when repo is there and what the last agent left is settled
	ours  bool          // repo is closed by this server
	end   context.CancelCauseFunc
	ended chan struct{} // closed when neither opening nor work goes on

	mu     sync.Mutex
	reason string // why it is not open
	lost   bool   // another name has the repository: it stays closed

	// deciding is held while the state of backups outside of jobs changes.
	deciding sync.Mutex
	claims   map[string]int // by backup: uses that are about to begin; guarded by deciding
	targets  keyed          // by backup and volume, held while a restore is about to be queued
	removing keyed          // by nothing, held while a backup goes from the repository or comes back
}

// newServer makes the server of one repository, whose catalog and overlays are in
// the folder dir.
func newServer(ctx context.Context, h *hub, name, dir string) (*server, error) {
	overlays := filepath.Join(dir, "overlays")
	if err := os.MkdirAll(overlays, 0o750); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	where := filepath.Join(dir, "catalog.db")
	if name == DefaultRepository && h.o.Catalog != "" {
		where = h.o.Catalog
	}
	cat, err := catalog.Open(ctx, where)
	if err != nil {
		return nil, err
	}
	log := h.o.Logger
	if name != DefaultRepository {
		log = log.With(slog.String("repository", name))
	}
	s := &server{
		o: h.o, hub: h, name: name, log: log, cat: cat, serve: h.volumes, started: time.Now().UTC(), tidy: make(chan struct{}, 1), claims: map[string]int{},
		reason: "it is being opened",
		tried:  make(chan struct{}), open: make(chan struct{}), ended: make(chan struct{}),
	}
	if s.bound, err = cat.Setting(ctx, bindingKey); err != nil {
		return nil, errors.Join(fmt.Errorf("read whose the catalog is: %w", err), cat.Close())
	}
	if cat.Shared() { // whose it is is the same for all of its hosts
		if err = s.join(ctx); err != nil {
			return nil, errors.Join(err, cat.Close())
		}
		cat = s.cat
	}
	s.exports = newExports(cat, nil, log, h.o.NBDDir, h.o.TCP, overlays)
	// Their names are taken, also while the repository is not open.
	exported, err := cat.Exports(ctx)
	if err != nil {
		return nil, errors.Join(err, cat.Close())
	}
	for _, e := range exported {
		s.exports.put(&served{rec: e, err: errNotOpen})
	}
	s.jobs = newEngine(cat, log, h.pool, h.wakeTidy)
	return s, nil
}

// close closes what the server opened.
func (s *server) close() error {
	var err error
	if s.ours {
		err = s.repo.Close()
	}
	return errors.Join(err, s.cat.Close())
}

// settle takes the repository, which is claimed, and what the last agent left.
func (s *server) settle(ctx context.Context, r *repository.Repository) error {
	if err := s.beat(ctx); err != nil { // the host's records might be another agent's now
		return err
	}
	s.repo, s.exports.repo = r, r
	err := s.recover(ctx)
	if err != nil {
		err = fmt.Errorf("settle what the last agent left: %w", err)
	} else if err = s.exports.restore(ctx); err != nil {
		err = fmt.Errorf("restore exports: %w", err)
	}
	if err != nil {
		s.repo, s.exports.repo = nil, nil
		return err
	}
	close(s.open)
	return nil
}

// work starts what goes on beside requests, until ctx ends.
func (s *server) work(ctx context.Context, group *sync.WaitGroup) {
	group.Go(func() { s.jobs.run(ctx) })
	group.Go(func() { s.reconcile(ctx) })
	group.Go(func() { s.scrub(ctx) })
	if s.name == DefaultRepository {
		group.Go(func() { s.keepTelling(ctx) })
	}
	if s.cat.Shared() {
		group.Go(func() { s.keepBeating(ctx) })
		group.Go(func() { s.keepListening(ctx) })
		group.Go(func() { s.answerCalls(ctx) })
	}
}
