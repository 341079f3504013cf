package tcpdoor

import (
	"log/slog"
	"testing"
	"time"
)

func TestSparing(t *testing.T) {
	var log logged
	s := newSparing(slog.New(slog.NewTextHandler(&log, nil)))
	at := time.Unix(1000, 0)
	say := func(n int, from *slog.Logger) {
		for range n {
			r := slog.NewRecord(at, slog.LevelInfo, "failed", 0)
			if err := from.Handler().Handle(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
	}
	wants := func(what string, lines int) {
		t.Helper()
		if got := log.count("failed"); got != lines {
			t.Errorf("%s: %d lines, want %d", what, got, lines)
		}
	}
	say(40, s)
	say(1000, s.With(slog.String("client", "x")).WithGroup("g"))
	wants("a minute's", mostLines)
	at = at.Add(59 * time.Second)
	say(1, s)
	wants("still the same minute", mostLines)
	at = at.Add(time.Second)
	say(2, s)
	wants("the next", mostLines+2)
	if log.count("lines_left_out=981") != 1 || log.count("lines_left_out") != 1 {
		t.Errorf("what was left out is not said once:\n%s", log.b.String())
	}
}
