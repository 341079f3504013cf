package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/cairnbackup/cairn/internal/repository"
)

// scrubShare is the percentage that is read at a time, in scrubParts times: an
// interruption costs one part at most.
const (
	scrubShare = 4
	scrubParts = 100 / scrubShare
)

// scrubKey is the catalog's setting with what comes next.
const scrubKey = "scrub"

// Scrub says how the agent reads the stores in the background, to find damage
// before somebody needs the data.
type Scrub struct {
	Every time.Duration // in which everything is read once; 0 = never
	Rate  int64         // bytes a second; 0 = unlimited
}

// ScrubStatus is what the scrub found last, and what comes next.
type ScrubStatus struct {
	After   string    `json:"after,omitempty"` // where the next part begins
	Share   int       `json:"share"`           // percentage that is one part
	Next    time.Time `json:"next_at"`
	Last    time.Time `json:"last_at,omitzero"` // end of the last one
	OK      bool      `json:"ok"`               // it found nothing
	Problem string    `json:"problem,omitempty"`
}

func (s *server) scrubStatus(ctx context.Context) (ScrubStatus, error) {
	fresh := ScrubStatus{Share: scrubShare, OK: true, Next: s.started.Add(s.o.Scrub.Every / scrubParts)}
	text, err := s.cat.Setting(ctx, scrubKey)
	if err != nil || text == "" {
		return fresh, err
	}
	var st ScrubStatus
	if err := json.Unmarshal([]byte(text), &st); err != nil {
		return fresh, fmt.Errorf("state of the scrub: %w", err)
	}
	if most := time.Now().UTC().Add(s.o.Scrub.Every / scrubParts); st.Next.After(most) {
		st.Next = most // it was to be rarer when that was written
	}
	return st, nil
}

// scrub reads part after part, each at its time, until ctx ends. What comes next is
// in memory, and in the catalog for the next agent: a catalog that cannot be written
// must not have the same part read over and over.
func (s *server) scrub(ctx context.Context) {
	if s.o.Scrub.Every <= 0 {
		return
	}
	st, err := s.scrubStatus(ctx)
	if err != nil {
		s.log.LogAttrs(ctx, slog.LevelError, "the scrub begins anew", slog.Any("error", err))
	}
	for pause(ctx, time.Until(st.Next)) {
		st = s.scrubPart(ctx, st)
		if ctx.Err() != nil {
			return // the part is read again
		}
		text, err := json.Marshal(st)
		if err == nil {
			err = s.cat.SetSetting(ctx, scrubKey, string(text))
		}
		if err != nil {
			s.log.LogAttrs(ctx, slog.LevelError, "end of a scrub not recorded", slog.Any("error", err))
		}
	}
}

// scrubPart reads one part.
func (s *server) scrubPart(ctx context.Context, st ScrubStatus) ScrubStatus {
	limit := newThrottle(s.o.Scrub.Rate)
	rep, err := s.repo.Check(ctx, repository.CheckOptions{
		ReadData: true, Share: scrubShare, After: st.After, Publish: true,
		Pace: func(ctx context.Context, n int64) error {
			for ; n > 0; n -= scrubStep {
				if err := limit.wait(ctx, int(min(n, scrubStep))); err != nil {
					return err
				}
			}
			return nil
		},
	})
	if ctx.Err() != nil {
		return st
	}
	if rep.Unpublished != "" {
		s.log.LogAttrs(ctx, slog.LevelWarn, "damaged packs not published: the next backups do not store their content again", slog.String("why", rep.Unpublished))
	}
	st.Last = time.Now().UTC()
	st.Next = st.Last.Add(s.o.Scrub.Every / scrubParts)
	switch {
	case err != nil: // the same part again
		st.OK, st.Problem = false, err.Error()
		s.log.LogAttrs(ctx, slog.LevelWarn, "scrub failed", slog.Any("error", err))
		return st
	case rep.OK():
		st.OK, st.Problem = true, ""
		s.log.LogAttrs(ctx, slog.LevelInfo, "scrub found nothing", slog.Int("packs", rep.Read), slog.Int("of", rep.Packs))
	default:
		st.OK, st.Problem = false, found(rep)
		s.log.LogAttrs(ctx, slog.LevelError, "scrub found damage", slog.String("what", st.Problem))
	}
	st.After = rep.Position
	return st
}

const scrubStep = 1 << 20

// found says in a sentence what a check found.
func found(rep repository.CheckReport) string {
	lost, missing, damaged, down := 0, int64(0), int64(0), 0
	for _, b := range rep.Backups {
		if !b.Restorable && !b.Unjudged {
			lost++
		}
	}
	for _, st := range rep.Stores {
		missing += st.Missing
		damaged += st.Damaged
		if st.Status.State != repository.StoreUp {
			down++
		}
	}
	text := ""
	if rep.Unjudged != "" {
		text = rep.Unjudged + ". Of the rest "
		if lost+down == 0 && missing+damaged == 0 && len(rep.Problems) == 0 {
			return text + "nothing was found"
		}
	}
	return text + fmt.Sprintf("%d backups cannot be restored in full, %d shards or records are missing and %d damaged, %d stores do not answer: \"cairn repo check\" says more, \"cairn repo repair --apply\" mends what can be mended",
		lost, missing, damaged, down)
}
