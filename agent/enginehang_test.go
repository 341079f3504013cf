package agent

import (
	"context"
	"log/slog"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
)

// throughProxy is the address of a database behind a proxy.
func throughProxy(t *testing.T, where string) (string, *s3test.Proxy) {
	t.Helper()
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	p := s3test.NewProxy(t, u.Host)
	u.Host = p.Addr
	return u.String(), p
}

// TestEndOfJobHangs: who asks for jobs does not wait for the database that records the
// end of one, and hears of that only when it is recorded.
func TestEndOfJobHangs(t *testing.T) {
	where, proxy := throughProxy(t, pgtest.Database(t))
	cat := openCatalog(t, where, "a")
	e := newEngine(cat, slog.New(slog.DiscardHandler), newPool(1), func() {})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { e.run(ctx) })
	defer run.Wait()
	defer cancel()
	began, release := make(chan struct{}), make(chan struct{})
	j, err := e.submit(t.Context(), Job{Kind: catalog.BackupJob}, func(context.Context, *task) (any, error) {
		close(began)
		<-release
		return nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	proxy.Set(s3test.Trouble{Hang: true})
	defer proxy.Set(s3test.Trouble{})
	close(release)
	for range 20 {
		asked := make(chan Job, 1)
		go func() {
			_, x, _ := e.live(j.ID)
			asked <- x
		}()
		select {
		case x := <-asked:
			if x.State != JobRunning {
				t.Fatalf("it is told as %s", x.State)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("jobs cannot be asked for")
		}
		pause(t.Context(), 10*time.Millisecond)
	}
	proxy.Set(s3test.Trouble{})
	if got := e.wait(t, j.ID); got.State != JobSucceeded {
		t.Errorf("%+v", got)
	}
	if got, err := cat.Job(t.Context(), j.ID); err != nil || got.State != JobSucceeded {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestTellRunning: how far jobs are, told at any time, never replaces how they ended.
func TestTellRunning(t *testing.T) {
	e, cat, _ := startEngine(t, 8)
	ctx, cancel := context.WithCancel(t.Context())
	var telling sync.WaitGroup
	for range 2 {
		telling.Go(func() {
			for ctx.Err() == nil {
				if err := e.tellRunning(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	var ids []string
	for range 100 {
		j, err := e.submit(t.Context(), Job{Kind: catalog.BackupJob}, func(context.Context, *task) (any, error) { return nil, nil })
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, j.ID)
	}
	for _, id := range ids {
		e.wait(t, id)
	}
	cancel()
	telling.Wait()
	for _, id := range ids {
		if j, err := cat.Job(t.Context(), id); err != nil || j.State != JobSucceeded {
			t.Errorf("%+v, %v", j, err)
		}
	}
}
