package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
)

const (
	idleTimeout   = time.Minute            // of an idle HTTP connection
	stopTimeout   = 10 * time.Second       // for answers to go out at the end
	reportEvery   = 200 * time.Millisecond // of a job's progress, to those who wait
	maxRequest    = 1 << 20                // bytes of a request's body
	keepJobs      = 1000                   // records of jobs
	defaultListed = 100                    // jobs in a list
)

// server is a running agent.
type server struct {
	o       Options
	log     *slog.Logger
	cat     *catalog.Catalog
	repo    *repository.Repository
	serve   *serve.Client
	jobs    *engine
	exports *exports
	started time.Time
	tidy    chan struct{} // something is to be cleaned up
	late    lateRecords

	// deciding is held while the state of backups outside of jobs changes.
	deciding sync.Mutex
}

func run(ctx context.Context, o Options, ready func()) (err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if !o.KeepPriority {
		lowerPriority(ctx, o.Logger)
	}
	var closers []func() error
	defer func() { err = errors.Join(err, closeAll(closers)) }()
	lock, err := lockState(o.State)
	if err != nil {
		return err
	}
	closers = append(closers, lock.Close)
	overlays := filepath.Join(o.State, "overlays")
	for _, dir := range []string{overlays, o.NBDDir} {
		if ierr := os.MkdirAll(dir, 0o750); ierr != nil {
			return fmt.Errorf("make folder: %w", ierr)
		}
	}
	cat, err := catalog.Open(ctx, filepath.Join(o.State, "catalog.db"))
	if err != nil {
		return err
	}
	closers = append(closers, cat.Close)
	s := &server{
		o: o, log: o.Logger, cat: cat, repo: o.Repository, serve: o.Serve, started: time.Now().UTC(), tidy: make(chan struct{}, 1),
		exports: newExports(cat, o.Repository, o.Logger, o.NBDDir, overlays),
	}
	// A job keeps the tidying off its volume: it is woken when the job is gone.
	s.jobs = newEngine(cat, o.Logger, o.Limits.ConcurrentJobs, s.wakeTidy)
	l, err := listen(ctx, o.Socket, 0o600)
	if err != nil {
		return err
	}
	return s.run(ctx, l, ready)
}

// run starts the parts in order and stops them in reverse.
func (s *server) run(ctx context.Context, l net.Listener, ready func()) error {
	// Exports outlive the jobs, and the interface outlives both, so that
	// whoever waits for a job hears its end.
	base := context.WithoutCancel(ctx)
	exporting, stopExports := context.WithCancel(base)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stopExports()
	wg.Go(func() { s.exports.run(exporting) })
	if err := s.recover(ctx); err != nil {
		return errors.Join(fmt.Errorf("settle what the last agent left: %w", err), l.Close())
	}
	if err := s.exports.restore(ctx); err != nil {
		return errors.Join(fmt.Errorf("restore exports: %w", err), l.Close())
	}
	web := &http.Server{Handler: s.routes(), ReadHeaderTimeout: stopTimeout, IdleTimeout: idleTimeout, BaseContext: func(net.Listener) context.Context { return base }}
	failed := make(chan error, 1)
	wg.Go(func() { failed <- web.Serve(l) })
	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	var work sync.WaitGroup
	work.Go(func() { s.jobs.run(working) })
	work.Go(func() { s.reconcile(working) })
	work.Go(func() { s.scrub(working) })
	if ready != nil {
		ready()
	}
	s.log.LogAttrs(ctx, slog.LevelInfo, "agent ready", slog.String("socket", s.o.Socket))
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("serve %s: %w", s.o.Socket, err)
	}
	stopWork()
	work.Wait()
	closing, cancel := context.WithTimeout(base, stopTimeout)
	defer cancel()
	if serr := web.Shutdown(closing); serr != nil {
		err = errors.Join(err, web.Close())
	}
	return err
}

func (s *server) status(ctx context.Context, _ request) (any, error) {
	info := s.repo.Info()
	st := Status{
		Version: s.o.Version, PID: os.Getpid(), Started: s.started, State: s.o.State, Exports: len(s.exports.list()),
		Repository: RepositoryStatus{ID: info.ID, Data: info.Data, Parity: info.Parity, Losses: info.Losses, BlockSize: info.BlockSize, Format: info.Format},
	}
	if s.o.Scrub.Every > 0 {
		scrub, err := s.scrubStatus(ctx)
		if err != nil {
			scrub.OK, scrub.Problem = false, err.Error()
		}
		st.Scrub = &scrub
	}
	if d, err := s.serve.Status(ctx); err != nil {
		st.ServeError = err.Error()
	} else {
		st.Serve = &d
	}
	for _, x := range s.repo.Status(ctx) {
		st.Repository.Stores = append(st.Repository.Stores, StoreStatus{URL: x.URL, ID: x.ID, State: string(x.State), Error: x.Error, Owed: x.Owed})
	}
	backups, err := s.cat.Backups(ctx)
	if err != nil {
		return nil, err
	}
	for _, b := range backups {
		if b.Status == catalog.Available || b.Status == catalog.Restoring {
			st.Backups++
		}
		if b.Undecided {
			st.Undecided++
		}
	}
	st.Queued, st.Running = s.jobs.counts()
	return st, nil
}
