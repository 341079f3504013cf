package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// errNotOpen is why an export is not served yet.
var errNotOpen = errors.New("its repository is not open: \"cairn status\" says why")

// openAll opens the repositories that are not open, each beside the others and
// again until it succeeds. It waits for the first try of each, but not for ever.
func (h *hub) openAll(ctx context.Context, work *sync.WaitGroup, openers []Opener) {
	patience := time.NewTimer(firstOpen)
	defer patience.Stop()
	var tried []chan struct{}
	for i, s := range h.servers {
		if s.closed() == nil {
			continue
		}
		done := make(chan struct{})
		tried = append(tried, done)
		work.Go(func() {
			if s.keepOpening(ctx, openers[i], sync.OnceFunc(func() { close(done) })) {
				s.work(ctx, work)
			}
		})
	}
	for _, done := range tried {
		select {
		case <-done:
		case <-patience.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// keepOpening opens the repository and returns true, or false when ctx has ended.
// tried is called behind the first try.
func (s *server) keepOpening(ctx context.Context, open Opener, tried func()) bool {
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
	id := r.Info().ID
	if err = s.hub.claim(id, s.name); err != nil {
		return errors.Join(err, r.Close())
	}
	if err = s.settle(ctx, r); err != nil {
		s.hub.release(id)
		return errors.Join(err, r.Close())
	}
	s.ours = true
	return nil
}

// claim refuses a repository that is open by another name: two catalogs of one
// would each take the other's deletions for losses.
func (h *hub) claim(id, name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if other, ok := h.ids[id]; ok {
		return refuse(CodeConflict, "its stores are those of the repository %s: name the stores of another, or take one of the two out of the settings", other)
	}
	h.ids[id] = name
	return nil
}

func (h *hub) release(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ids, id)
}

// closed is the refusal while the repository is not open, nil when it is.
func (s *server) closed() error {
	select {
	case <-s.open:
		return nil
	default:
		return refuse(CodeUnavailable, "repository %s is not open, which is tried again every %s: %s", s.name, reopenEvery, s.why())
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
	news := s.reason != reason
	s.reason = reason
	return news
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
