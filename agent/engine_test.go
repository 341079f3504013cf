package agent

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// startEngine runs an engine until the test ends.
func startEngine(t *testing.T, limit int) (*engine, *catalog.Catalog, context.CancelFunc) {
	t.Helper()
	cat, err := catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(cat, slog.New(slog.DiscardHandler), newPool(limit), func() {})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		e.run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := cat.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, cat, cancel
}

func (e *engine) wait(t *testing.T, id string) Job {
	t.Helper()
	if x, _, ok := e.live(id); ok {
		<-x.done
	}
	j, err := e.current(context.Background(), id)
	if err != nil || !j.State.Final() {
		t.Fatalf("job %+v, %v", j, err)
	}
	return j
}

func TestEngineOrder(t *testing.T) {
	e, _, _ := startEngine(t, 3)
	var mu sync.Mutex
	running, most := map[string]int{}, 0
	var order []string
	release := make(chan struct{})
	var ids []string
	for _, v := range []string{"a", "a", "b", "c", "a", "d"} {
		j, err := e.submit(t.Context(), Job{VolumeID: v, Volume: v}, func(context.Context, *task) (any, error) {
			mu.Lock()
			running[v]++
			order = append(order, v)
			if running[v] > 1 {
				t.Errorf("two jobs of volume %s at once", v)
			}
			sum := 0
			for _, n := range running {
				sum += n
			}
			most = max(most, sum)
			mu.Unlock()
			<-release
			mu.Lock()
			running[v]--
			mu.Unlock()
			return map[string]string{"volume": v}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, j.ID)
	}
	close(release)
	for i, id := range ids {
		j := e.wait(t, id)
		if j.State != JobSucceeded || j.Started.IsZero() || j.Finished.IsZero() || string(j.Result) == "" {
			t.Errorf("job %d: %+v", i, j)
		}
	}
	if most > 3 || len(order) != 6 {
		t.Errorf("%d at once, order %v", most, order)
	}
}

func TestEngineCancel(t *testing.T) {
	e, cat, _ := startEngine(t, 1)
	started := make(chan struct{})
	work := func(ctx context.Context, _ *task) (any, error) {
		if ctx.Err() == nil {
			started <- struct{}{}
		}
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	first, err := e.submit(t.Context(), Job{VolumeID: "v"}, work)
	if err != nil {
		t.Fatal(err)
	}
	<-started
	second, err := e.submit(t.Context(), Job{VolumeID: "v"}, work)
	if err != nil {
		t.Fatal(err)
	}
	// One that waits is canceled without its turn coming.
	if _, err := e.cancelJob(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	if j := e.wait(t, second.ID); j.State != JobCanceled {
		t.Errorf("second: %+v", j)
	}
	if j, err := e.find(t.Context(), first.ID[:8]); err != nil || j.State != JobRunning {
		t.Errorf("first: %+v, %v", j, err)
	}
	if _, err := e.cancelJob(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	if j := e.wait(t, first.ID); j.State != JobCanceled || j.Error == "" {
		t.Errorf("first: %+v", j)
	}
	if _, err := e.cancelJob(t.Context(), first.ID); !errors.Is(err, ErrConflict) {
		t.Errorf("cancel twice: %v", err)
	}
	if _, err := e.find(t.Context(), "nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown job: %v", err)
	}
	if l, err := cat.UnfinishedJobs(t.Context()); err != nil || len(l) != 0 {
		t.Errorf("unfinished: %+v, %v", l, err)
	}
}

// Work that has reached its commit is not canceled any more.
func TestEngineCommit(t *testing.T) {
	e, _, stop := startEngine(t, 1)
	committing, goOn := make(chan struct{}), make(chan struct{})
	j, err := e.submit(t.Context(), Job{}, func(ctx context.Context, x *task) (any, error) {
		if err := x.commit(); err != nil {
			return nil, err
		}
		close(committing)
		<-goOn
		return nil, ctx.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	<-committing
	if _, err := e.cancelJob(t.Context(), j.ID); err != nil {
		t.Fatal(err)
	}
	stop()
	close(goOn)
	if j = e.wait(t, j.ID); j.State != JobSucceeded {
		t.Errorf("%+v", j)
	}
}

func TestEngineStop(t *testing.T) {
	e, _, stop := startEngine(t, 1)
	var ids []string
	for range 3 {
		j, err := e.submit(t.Context(), Job{VolumeID: "v"}, func(ctx context.Context, _ *task) (any, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, j.ID)
	}
	stop()
	for _, id := range ids {
		if j := e.wait(t, id); j.State != JobFailed || j.Error != errStopping.Error() || Code(j.Code) != CodeUnavailable {
			t.Errorf("%+v", j)
		}
	}
	for ; ; e.poke() { // the loop may not have seen the end yet
		_, err := e.submit(t.Context(), Job{}, func(context.Context, *task) (any, error) { return nil, nil })
		if errors.Is(err, ErrUnavailable) {
			break
		}
	}
	if q, r := e.counts(); q != 0 || r != 0 {
		t.Errorf("left: %d, %d", q, r)
	}
}

// A job whose start cannot be recorded does not run, but cleans up behind itself.
func TestEngineUnrecorded(t *testing.T) {
	cat, err := catalog.Open(t.Context(), filepath.Join(t.TempDir(), "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	e := newEngine(cat, slog.New(slog.DiscardHandler), newPool(1), func() {})
	called := 0
	if _, err = e.submit(t.Context(), Job{}, func(ctx context.Context, _ *task) (any, error) {
		called++
		return nil, context.Cause(ctx)
	}); err != nil {
		t.Fatal(err)
	}
	if err = cat.Close(); err != nil {
		t.Fatal(err)
	}
	x := e.next()
	e.perform(context.Background(), x)
	if called != 1 || x.job.State != catalog.JobFailed || x.job.Error == "" {
		t.Errorf("work was called %d times, job %+v", called, x.job)
	}
}
