package agent

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cairnbackup/cairn/internal/source"
)

// sweepPause is how long after a sweep that failed the next one comes, at first.
const sweepPause = 500 * time.Millisecond

// keepSweeping thaws what stands still that should not, and removes from where foreign volumes are served what an earlier agent left
// there, or what could not be removed at its time, until ctx ends.
func (h *hub) keepSweeping(ctx context.Context) {
	set := h.foreign.foreign
	keepTrying(ctx, h.o.Logger, set.Due(), func(ctx context.Context) error {
		return errors.Join(tidyOne(ctx, h.icebox.thawAll), tidyOne(ctx, set.Sweep))
	})
}

// keepTrying calls sweep now, whenever due receives, and every tidyEvery. One that fails is
// tried again: soon at first, then less and less often, and as often as the others at least.
// Why it fails is said when that is another reason than the last time.
func keepTrying(ctx context.Context, log *slog.Logger, due <-chan struct{}, sweep func(context.Context) error) {
	said, again := "", sweepPause
	for {
		err := sweep(ctx)
		text, wait := "", tidyEvery
		switch {
		case err == nil:
			again = sweepPause
		case ctx.Err() == nil:
			text = err.Error()
			wait, again = again, min(2*again, tidyEvery)
		}
		if text != "" && text != said {
			level := slog.LevelWarn
			if errors.Is(err, source.ErrAway) {
				level = slog.LevelInfo // a guest that is off keeps nothing
			}
			log.LogAttrs(ctx, level, "not swept yet: it is tried again and again", slog.Any("error", err))
		}
		said = text
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-due:
			again = sweepPause
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}
