package agent

import (
	"context"
	"fmt"
	"log/slog"
)

// Two names in the settings can mean the same stores. Two catalogs of one
// repository would each take the other's deletions for losses, so that one name has
// it and the other is refused. Which of them is a matter of the catalogs and the
// settings, never of who was faster to open it:
//
//  1. the default repository, once its catalog is bound to it;
//  2. the name whose catalog is bound to it, the first in order if several are;
//  3. the first in order.
//
// A catalog is bound when its repository is opened for the first time, for good:
// from then on its claim holds while its stores are away. So only catalogs that were
// never bound have to be waited for: a name is opened behind the first try of those
// before it whose catalog is new, or when [firstOpen] has passed. Who has a new
// catalog and is opened later than that finds the repository with another name, and
// is refused, unless it is the default one: that takes it over, and the other's
// jobs are canceled. Either way it is as at the next start.

// bindingKey is the catalog's setting with the ID of the repository that it is of.
const bindingKey = "repository"

// turn waits until those that go before s have been tried, or patience has ended.
func (h *hub) turn(patience context.Context, s *server) {
	for _, o := range h.servers {
		if o == s {
			return
		}
		if !h.waitsFor(s, o) {
			continue
		}
		select {
		case <-o.tried:
		case <-patience.Done():
			return
		}
	}
}

// waitsFor says whether o, which is before s in order, may turn out to have what s
// would claim.
func (h *hub) waitsFor(s, o *server) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return o.bound == "" && (s.bound == "" || o == h.servers[0])
}

// claim binds the catalog of s to the repository with this ID, or refuses what
// belongs to another name or is not what the catalog is of: with other stores its
// backups would be looked for in vain, and those that are not there would count for
// retention. It returns the servers that have lost the repository to s.
func (h *hub) claim(ctx context.Context, s *server, id string) (lost []*server, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.bound != "" && s.bound != id {
		return nil, s.foreign(id)
	}
	mine := false // s is passed in order
	for i, o := range h.servers {
		switch {
		case o == s:
			mine = true
		case o.bound != id:
		case s == h.servers[0]:
			if o.claimed {
				lost = append(lost, o)
			}
		case !mine || s.bound == "":
			return nil, s.refusal(o, i == 0)
		}
	}
	if s.bound == "" {
		// Agents that share the catalog may come at once: the first binds it for all.
		was, err := s.cat.SharedSetting(ctx, bindingKey, id)
		if err != nil {
			return nil, fmt.Errorf("record in the catalog whose it is: %w", err)
		}
		if s.bound = was; was != id {
			return nil, s.foreign(id)
		}
	}
	s.claimed = true
	for _, o := range lost {
		o.claimed = false
	}
	return lost, nil
}

// foreign refuses the repository with this ID, as the catalog is of another.
func (s *server) foreign(id string) *Error {
	way := "move the file away"
	if s.cat.Shared() {
		way = "give an empty database"
	}
	return refuse(CodeConflict, "%s is of repository %s, and the stores that are given now are of repository %s: give the stores that belong to it, or %s, so that a new one is made from what the repository has", s.cat.Name(), s.bound, id, way)
}

// refusal says that what s would open is o's.
func (s *server) refusal(o *server, agents bool) *Error {
	why := "which has had them before"
	if agents {
		why = "the agent's own, which goes before all others"
	}
	return refuse(CodeConflict, "its stores are those of the repository %s, %s: name other stores for %s or take it out of the settings, and start the agent again", o.name, why, s.name)
}

// giveUp ends what the server does, for good, as o has its repository, and returns
// when its jobs have ended. What it exports is served on until the agent ends: guests
// may hang on it.
func (s *server) giveUp(ctx context.Context, o *server) {
	why := s.refusal(o, true)
	s.mu.Lock()
	s.lost, s.reason = true, why.Text
	s.mu.Unlock()
	s.log.LogAttrs(ctx, slog.LevelError, "repository not open any more", slog.String("name", s.name), slog.Any("error", why))
	s.end(why)
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
}
