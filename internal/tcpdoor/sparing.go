package tcpdoor

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// sparing is a log that anybody on the network can make write: for each handshake that
// fails. In a minute it passes mostLines on, and says how many it left out.
type sparing struct {
	slog.Handler
	lines *lines
}

// mostLines is enough to see who is there and what is wrong.
const mostLines = 60

// lines counts those of the present minute.
type lines struct {
	mu      sync.Mutex
	since   time.Time
	n       int
	leftOut int
}

func newSparing(log *slog.Logger) *slog.Logger {
	return slog.New(&sparing{log.Handler(), &lines{}})
}

// take says whether a line of this time is written, and how many were not before it.
func (l *lines) take(now time.Time) (ok bool, leftOut int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= time.Minute {
		l.since, l.n = now, 0
	}
	if l.n >= mostLines {
		l.leftOut++
		return false, 0
	}
	l.n++
	leftOut, l.leftOut = l.leftOut, 0
	return true, leftOut
}

// Handle writes a line, or does not.
func (s *sparing) Handle(ctx context.Context, r slog.Record) error {
	ok, leftOut := s.lines.take(r.Time)
	if !ok {
		return nil
	}
	if leftOut > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("lines_left_out", leftOut))
	}
	return s.Handler.Handle(ctx, r)
}

// WithAttrs returns a log that counts with this one.
func (s *sparing) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &sparing{s.Handler.WithAttrs(attrs), s.lines}
}

// WithGroup returns a log that counts with this one.
func (s *sparing) WithGroup(name string) slog.Handler {
	return &sparing{s.Handler.WithGroup(name), s.lines}
}
