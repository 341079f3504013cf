package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"

	"github.com/cairnbackup/cairn/internal/repository"
)

// errNotOpen is why an export is not served yet.
var errNotOpen = errors.New("its repository is not open: \"cairn status\" says why")

// openAll opens the repositories that are not open, each beside the others and
// again until it succeeds. It waits for the first try of each, but not for ever.
func (h *hub) openAll(ctx context.Context, work *sync.WaitGroup, openers []Opener) {
	patience, cancel := context.WithTimeout(ctx, firstOpen)
	defer cancel()
	var opening []func()
	for i, s := range h.servers {
		if s.closed() == nil {
			continue
		}
		var life context.Context
		life, s.end = context.WithCancelCause(ctx)
		opening = append(opening, func() {
			defer s.end(nil)
			s.openAndWork(life, patience, openers[i])
		})
	}
	for _, f := range opening { // each may end another
		work.Go(f)
	}
	for _, s := range h.servers {
		select {
		case <-s.tried:
		case <-patience.Done():
			return
		}
	}
}

// openAndWork opens the repository and does its work until ctx ends.
func (s *server) openAndWork(ctx, patience context.Context, open Opener) {
	defer close(s.ended)
	var work sync.WaitGroup
	defer work.Wait()
	s.hub.turn(patience, s)
	if s.keepOpening(ctx, open) {
		s.work(ctx, &work)
	}
}

// keepOpening opens the repository and returns true, or false when ctx has ended.
func (s *server) keepOpening(ctx context.Context, open Opener) bool {
	tried := sync.OnceFunc(func() { close(s.tried) })
	defer tried()
	for {
		err := s.openOnce(ctx, open)
		switch {
		case err == nil:
			s.log.LogAttrs(ctx, slog.LevelInfo, "repository open", slog.String("name", s.name))
			return true
		case ctx.Err() != nil:
			return false
		}
		if s.setWhy(err.Error()) {
			s.log.LogAttrs(ctx, slog.LevelError, "repository not open: it is tried again and again", slog.String("name", s.name), slog.Any("error", err))
		}
		tried()
		if !pause(ctx, reopenEvery) {
			return false
		}
	}
}

func (s *server) openOnce(ctx context.Context, open Opener) error {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	if err = s.take(ctx, r); err != nil {
		return errors.Join(err, r.Close())
	}
	s.ours = true
	return nil
}

// take makes an open repository this server's.
func (s *server) take(ctx context.Context, r *repository.Repository) error {
	lost, err := s.hub.claim(ctx, s, r.Info().ID)
	if err != nil {
		return err
	}
	for _, o := range lost {
		s.setWhy("it waits for the jobs of repository " + o.name + " to end, whose stores are its own")
		o.giveUp(ctx, s)
	}
	return s.settle(ctx, r)
}

// closed is the refusal while the repository is not open, nil when it is.
func (s *server) closed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost {
		return refuse(CodeConflict, "repository %s is not open any more: %s", s.name, s.reason)
	}
	select {
	case <-s.open:
		return nil
	default:
		return refuse(CodeUnavailable, "repository %s is not open, which is tried again every %s: %s", s.name, reopenEvery, s.reason)
	}
}

func (s *server) why() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

// setWhy notes why the repository is not open, and reports whether that is news.
func (s *server) setWhy(reason string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost || s.reason == reason {
		return false
	}
	s.reason = reason
	return true
}

// whenOpen refuses a call while the repository is not open.
func (s *server) whenOpen(f func(context.Context, request) (any, error)) func(context.Context, request) (any, error) {
	return func(ctx context.Context, r request) (any, error) {
		if err := s.closed(); err != nil {
			return nil, err
		}
		return f(ctx, r)
	}
}
