package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
)

// refusals is a control that gives these answers to a release, one after the other, and the
// last again and again.
type refusals struct {
	control
	all   []error
	asked chan int64
}

func (a *refusals) ReleaseSnapshot(_ context.Context, _ string, before int64) error {
	err := a.all[0]
	if len(a.all) > 1 {
		a.all = a.all[1:]
	}
	a.asked <- before
	return err
}

// A data plane that does not have the request is not asked again, and neither is that of a
// volume whose snapshots are kept whole: what was read can be read again. Any other failure
// ends nothing, and the log tells of it once.
func TestReleaseRefused(t *testing.T) {
	failed := errors.New("failed")
	for name, c := range map[string]struct {
		answers  []error
		asked    int
		released bool
		warned   int
	}{
		"granted":  {answers: []error{nil}, asked: 4, released: true},
		"too old":  {answers: []error{serve.ErrNotFound}, asked: 1},
		"foreign":  {answers: []error{serve.ErrInvalid}, asked: 1},
		"failures": {answers: []error{failed, failed, nil}, asked: 4, released: true, warned: 1},
		"gone":     {answers: []error{nil, serve.ErrNotFound}, asked: 2, released: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := bareServer(t)
			var log bytes.Buffer
			a := &refusals{all: c.answers, asked: make(chan int64, 8)}
			s.serve = a
			r := &backupRun{server: s, snap: Snapshot{ID: "x"}, log: slog.New(slog.NewTextHandler(&log, nil))}
			tell, stop := r.releasing(t.Context())
			asked := 0
			for i := range int64(4) {
				tell(i + 1)
				if asked == c.asked {
					continue
				}
				if got := <-a.asked; got != i+1 {
					t.Errorf("asked for %d, told %d", got, i+1)
				}
				asked++
			}
			stop()
			if len(a.asked) > 0 || asked != c.asked || r.released != c.released || strings.Count(log.String(), "level=WARN") != c.warned {
				t.Errorf("%d asked and %d more, released %v, log: %s", asked, len(a.asked), r.released, &log)
			}
		})
	}
}
