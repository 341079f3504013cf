package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/serve"
)

// bareServer is an agent with nothing but records and jobs, of the default repository
// and others.
func bareServer(t *testing.T, others ...string) *server {
	t.Helper()
	client := serve.NewClient(filepath.Join(t.TempDir(), "nobody"))
	h := newHub(Options{NBDDir: t.TempDir(), Serve: client, Limits: Limits{ConcurrentJobs: 4}})
	s, err := h.add(t.Context(), DefaultRepository, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range others {
		if _, err = h.add(t.Context(), name, t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.jobs.run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := h.close(); err != nil {
			t.Error(err)
		}
		client.Close()
	})
	return s
}

// A warning of earlier backups brings none back that is deleted meanwhile, and
// is added to what there is to say of the others.
func TestFlagEarlier(t *testing.T) {
	s := bareServer(t)
	ctx := t.Context()
	const n = 100
	for i := range n {
		b := Backup{ID: fmt.Sprintf("b%03d", i), VolumeID: "v", Incremental: true, Status: catalog.Available}
		if i == n-1 {
			b.Warning = "shards are owed"
		}
		if err := s.cat.PutBackup(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	r := &backupRun{server: s, rec: Backup{ID: "new"}, vol: Volume{ID: "v"}}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.flagEarlier(ctx); err != nil {
			t.Error(err)
		}
	})
	for i := n - 2; i > 0; i-- {
		if err := s.cat.RemoveBackup(ctx, fmt.Sprintf("b%03d", i)); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	l, err := s.cat.Backups(ctx)
	if err != nil || len(l) != 2 {
		t.Fatalf("%d backups are left of 2, %v", len(l), err)
	}
	for _, b := range l {
		if !strings.Contains(b.Warning, missedChanges) {
			t.Errorf("not flagged: %+v", b)
		}
	}
	if w := l[1].Warning; !strings.HasPrefix(w, "shards are owed; ") {
		t.Errorf("warning %q", w)
	}
}

// brokenSnapshots is a control whose snapshots have broken.
type brokenSnapshots struct{ control }

var errBroken = errors.New("the snapshot broke")

func (brokenSnapshots) VerifySnapshot(context.Context, string) error { return errBroken }

// What an audit finds in a snapshot that broke says nothing about earlier backups.
func TestFlagNothingForBroken(t *testing.T) {
	s := bareServer(t)
	if err := s.cat.PutBackup(t.Context(), Backup{ID: "old", VolumeID: "v", Incremental: true, Status: catalog.Available}); err != nil {
		t.Fatal(err)
	}
	s.serve = brokenSnapshots{}
	r := &backupRun{server: s, rec: Backup{ID: "new"}, vol: Volume{ID: "v"}, log: s.log}
	if _, _, err := r.readAgain(t.Context(), 7); !errors.Is(err, errBroken) {
		t.Errorf("read again: %v", err)
	}
	if b, err := s.cat.Backup(t.Context(), "old"); err != nil || b.Warning != "" {
		t.Errorf("%+v, %v", b, err)
	}
}

// While the state of another repository cannot be opened no checkpoint is given up.
func TestTidyBesideBroken(t *testing.T) {
	s := bareServer(t)
	if err := s.cat.PutCheckpoint(t.Context(), catalog.Checkpoint{Name: "b", VolumeID: "v", Backup: "b"}); err != nil {
		t.Fatal(err)
	}
	s.hub.broken = []broken{{"far", refuse(CodeUnavailable, "far is broken")}}
	if err := s.tidyCheckpoints(t.Context()); err == nil || !strings.Contains(err.Error(), "checkpoints are kept: far is broken") {
		t.Error(err)
	}
	if l, err := s.cat.Checkpoints(t.Context()); err != nil || len(l) != 1 {
		t.Errorf("%+v, %v", l, err)
	}
}

// The catalog of another repository that takes no warning fails no backup, which
// says so instead.
func TestFlagEarlierElsewhere(t *testing.T) {
	s := bareServer(t, "far")
	other := s.hub.servers[1]
	err := s.cat.PutBackup(t.Context(), Backup{ID: "old", VolumeID: "v", Incremental: true, Status: catalog.Available})
	if err = errors.Join(err, other.cat.Close()); err != nil {
		t.Fatal(err)
	}
	r := &backupRun{server: s, rec: Backup{ID: "new"}, vol: Volume{ID: "v"}, log: s.log}
	if err = r.flagEarlier(t.Context()); err != nil || !strings.Contains(r.rec.Warning, "that repository far has, which could not be recorded there") {
		t.Errorf("%q, %v", r.rec.Warning, err)
	}
	if b, berr := s.cat.Backup(t.Context(), "old"); berr != nil || !strings.Contains(b.Warning, missedChanges) {
		t.Errorf("%+v, %v", b, berr)
	}
	r = &backupRun{server: other, rec: Backup{ID: "new"}, vol: Volume{ID: "v"}, log: s.log}
	if err = r.flagEarlier(t.Context()); err == nil {
		t.Error("its own catalog takes no warning, and nothing is said")
	}
}

// Of two restores of one backup that end at the same time, one makes it available again:
// whoever has waited for both finds it so.
func TestRestoresEndTogether(t *testing.T) {
	s := bareServer(t)
	ctx := t.Context()
	for range 50 {
		if err := s.cat.PutBackup(ctx, Backup{ID: "b", Status: catalog.Restoring}); err != nil {
			t.Fatal(err)
		}
		var ending sync.WaitGroup
		ending.Add(2)
		var ids []string
		for range 2 {
			j, err := s.jobs.submit(ctx, Job{Kind: catalog.RestoreJob, Backup: "b"}, func(ctx context.Context, x *task) (any, error) {
				ending.Done()
				ending.Wait()
				return nil, s.leaveRestored(ctx, x, "b")
			})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, j.ID)
		}
		for _, id := range ids {
			s.jobs.wait(t, id)
		}
		if b, err := s.cat.Backup(ctx, "b"); err != nil || b.Status != catalog.Available {
			t.Fatalf("%+v, %v", b, err)
		}
	}
}
