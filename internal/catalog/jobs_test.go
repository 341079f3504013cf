package catalog

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"
)

func TestJobs(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			where := place(t)
			c := openTest(t, where)
			states := []JobState{Queued, Running, Succeeded, JobFailed, Canceled}
			for i := range 20 {
				j := Job{
					ID: fmt.Sprintf("job%02d", i), Kind: BackupJob, State: states[i%5], Volume: "v", VolumeID: "id",
					Backup: "b", Target: "t", Owner: "o", Error: "e", Code: "c", Progress: Progress{Phase: "reading", Total: 7, Done: 3}, Result: json.RawMessage(`{"a":1}`),
					Created: time.Unix(int64(i), 5).UTC(), Started: time.Unix(int64(i), 6).UTC(),
				}
				if err := c.PutJob(t.Context(), j); err != nil {
					t.Fatal(err)
				}
				if got, err := c.Job(t.Context(), j.ID); err != nil || !reflect.DeepEqual(got, j) {
					t.Fatalf("got %+v, %v\nput %+v", got, err, j)
				}
			}
			c = reopen(t, c, where)
			l, err := c.Jobs(t.Context(), 3)
			if err != nil || len(l) != 3 || l[0].ID != "job17" || l[2].ID != "job19" {
				t.Errorf("newest three: %+v, %v", l, err)
			}
			if l, err = c.UnfinishedJobs(t.Context()); err != nil || len(l) != 8 {
				t.Errorf("%d unfinished, %v", len(l), err)
			}
			if ierr := c.TrimJobs(t.Context(), 5); ierr != nil {
				t.Fatal(ierr)
			}
			// 15 to 19, and the unfinished ones before them.
			if l, err = c.Jobs(t.Context(), 100); err != nil || len(l) != 5+6 {
				t.Errorf("%d after trim, %v", len(l), err)
			}
			if _, err := c.Job(t.Context(), "job02"); !errors.Is(err, ErrNotFound) {
				t.Errorf("trimmed job: %v", err)
			}
		})
	}
}

// What other hosts work on is told as long as they are up.
func TestJobsElsewhere(t *testing.T) {
	for name, place := range databases {
		t.Run(name, func(t *testing.T) {
			c := openTest(t, place(t))
			ctx := t.Context()
			a := c.For("a")
			must(
				t, c.BeatHost(ctx, Host{Name: "a", ID: "1"}), c.BeatHost(ctx, Host{Name: "b", ID: "2"}),
				a.PutJob(ctx, Job{ID: "runs", Backup: "x", State: Running}), a.PutJob(ctx, Job{ID: "ended", Backup: "x", State: Succeeded}),
				a.PutJob(ctx, Job{ID: "other", Backup: "y", State: Running}), c.For("gone").PutJob(ctx, Job{ID: "left", Backup: "x", State: Running}),
			)
			if l, err := c.For("b").JobsElsewhere(ctx, "x"); err != nil || len(l) != 1 || l[0].ID != "runs" || l[0].Host != "a" {
				t.Errorf("%+v, %v", l, err)
			}
			if l, err := a.JobsElsewhere(ctx, "x"); err != nil || len(l) != 0 {
				t.Errorf("its own: %+v, %v", l, err)
			}
			must(t, c.one(ctx, "age", `UPDATE hosts SET beat = beat - ? WHERE name = 'a'`, int64(DownAfter)))
			if l, err := c.For("b").JobsElsewhere(ctx, "x"); err != nil || len(l) != 0 {
				t.Errorf("of a host that is down: %+v, %v", l, err)
			}
			l, err := c.For("b").JobsLeft(ctx)
			if err != nil || len(l) != 3 {
				t.Fatalf("left: %+v, %v", l, err)
			}
			l[0].State = JobFailed
			must(t, c.For("b").EndJob(ctx, l[0]))
			if err = c.For("b").EndJob(ctx, l[0]); !errors.Is(err, ErrNotFound) {
				t.Errorf("it has an end already: %v", err)
			}
			if l, err = c.For("b").JobsLeft(ctx); err != nil || len(l) != 2 {
				t.Errorf("left: %+v, %v", l, err)
			}
		})
	}
}
