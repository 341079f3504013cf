package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/serve"
)

// An agent that stops in the middle gives its jobs up, and the next one goes on.
func TestRestart(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 48<<20)
	shadow := make([]byte, 48<<20)
	r.put(v, shadow, noise(1<<20), 0)
	full := r.backup(CreateBackup{Volume: "disk"})
	r.put(v, shadow, noise(40<<20), 2<<20)
	began, release := r.hang()
	j, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	guest := r.dial(v.URI)
	r.stopAgent()
	release()
	// Guests notice nothing.
	if err := errors.Join(guest.WriteAt(ctx, shadow[:4096], 0, false), guest.Flush(ctx), guest.Close()); err != nil {
		t.Error(err)
	}
	r.idle("disk")
	r.startAgent()
	if x, err := r.agent.Job(ctx, j.ID); err != nil || x.State != JobFailed || !strings.Contains(x.Error, "agent was stopped") {
		t.Errorf("%+v, %v", x, err)
	}
	if b, err := r.agent.Backup(ctx, j.Backup); err != nil || b.Status != BackupError || b.Undecided {
		t.Errorf("%+v, %v", b, err)
	}
	r.settled("disk", full)
	r.same(r.backup(CreateBackup{Volume: "disk", Incremental: true}), shadow)
}

// What an export serves stays, also when somebody else deletes its backup and
// prunes it away, and through a restart; its end is the end of that.
func TestPinnedExport(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 4<<20)
	shadow := make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	x, err := r.agent.Export(ctx, Export{Ref: b.ID, Name: "guest"})
	if err != nil {
		t.Fatal(err)
	}
	r.until("the pin", func() bool {
		l, lerr := r.agent.Exports(ctx)
		return lerr == nil && len(l) == 1 && l[0].Pinned
	})
	pins, err := r.agent.Pins(ctx)
	if err != nil || len(pins) != 1 || pins[0].Backup != b.ID || pins[0].By != "exported as guest" || pins[0].Agent != "test" {
		t.Fatalf("pins: %+v, %v", pins, err)
	}
	prune := func() {
		t.Helper()
		for range 3 {
			if rep, perr := r.repo.Prune(ctx, repository.PruneOptions{MaxShare: 1}); perr != nil {
				t.Fatalf("prune: %+v, %v", rep, perr)
			}
		}
	}
	if err := r.repo.Delete(ctx, b.ID); err != nil { // as another agent would
		t.Fatal(err)
	}
	prune()
	r.equal("the export of a backup that is gone", r.read(x.URI), shadow)
	r.stopAgent()
	r.startAgent()
	r.equal("the export behind a restart", r.read(x.URI), shadow)
	if err := r.agent.Unexport(ctx, "guest"); err != nil {
		t.Fatal(err)
	}
	r.until("the end of the pin", func() bool {
		l, lerr := r.agent.Pins(ctx)
		return lerr == nil && len(l) == 0
	})
	prune()
	if rep, err := r.repo.Prune(ctx, repository.PruneOptions{DryRun: true}); err != nil || rep.Kept != 0 {
		t.Errorf("kept: %+v, %v", rep, err)
	}
}

// A mount's exports are pinned when they last, and pins whose export ended while
// no agent ran go at its start.
func TestPinsOfMounts(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	shadow := make([]byte, 1<<20)
	r.put(v, shadow, noise(1<<16), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	if _, err := r.agent.Export(ctx, Export{Ref: b.ID, Name: "brief", Purpose: "mounted"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.agent.Export(ctx, Export{Ref: b.ID, Name: "guest"}); err != nil {
		t.Fatal(err)
	}
	r.until("the pin", func() bool { l, err := r.agent.Pins(ctx); return err == nil && len(l) == 1 })
	r.stopAgent()
	cat, err := catalog.Open(ctx, filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	x, err := cat.Exports(ctx)
	if err != nil || len(x) != 2 {
		t.Fatalf("%+v, %v", x, err)
	}
	x[0].Created = x[0].Created.Add(-2 * briefly)
	if err := errors.Join(cat.PutExport(ctx, x[0]), cat.RemoveExport(ctx, "guest"), cat.Close()); err != nil {
		t.Fatal(err)
	}
	r.startAgent()
	r.until("the other pin", func() bool {
		l, err := r.agent.Pins(ctx)
		return err == nil && len(l) == 1 && l[0].By == "exported as brief, mounted"
	})
}

// A killed agent leaves records of what it was doing; what became of it is
// what the stores say.
func TestKilled(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 4<<20)
	shadow := make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<20), 0)
	done := r.backup(CreateBackup{Volume: "disk"})
	r.scatter(v, shadow, 3)
	second := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.settled("disk", done, second)
	r.stopAgent()

	cat, err := catalog.Open(ctx, filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	// One was committed before its record said so; one had a session that
	// committed nothing; one had not even that; one was being restored.
	committed := second
	committed.Status, committed.Undecided, committed.BytesRead = catalog.Creating, true, 0
	lost := Backup{ID: "aaaaaaaa-0000-0000-0000-000000000001", Status: catalog.Creating, Volume: "disk", VolumeID: v.ID, Created: time.Now(), Undecided: true, Checkpoint: "aaaaaaaa-0000-0000-0000-000000000001"}
	early := Backup{ID: "aaaaaaaa-0000-0000-0000-000000000002", Status: catalog.Creating, Volume: "disk", VolumeID: v.ID, Created: time.Now()}
	restoring := done
	restoring.Status = catalog.Restoring
	sess, err := r.repo.Begin(ctx, sessionOptions(lost))
	if err != nil {
		t.Fatal(err)
	}
	lost.Session = sess.ID()
	snaps, err := r.serve.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{v.ID}, Name: tempSnapshot(lost.ID), Temporary: true, Checkpoints: []string{lost.ID}})
	if err != nil {
		t.Fatal(err)
	}
	half, err := r.serve.CreateVolume(ctx, serve.CreateVolume{Name: "half", Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		cat.PutBackup(ctx, committed), cat.PutBackup(ctx, lost), cat.PutBackup(ctx, early), cat.PutBackup(ctx, restoring),
		cat.PutCheckpoint(ctx, catalog.Checkpoint{Name: lost.ID, VolumeID: v.ID, Backup: lost.ID}),
		cat.PutJob(ctx, Job{ID: "job1", Kind: catalog.BackupJob, State: catalog.Running, Backup: committed.ID}),
		cat.PutJob(ctx, Job{ID: "job2", Kind: catalog.BackupJob, State: catalog.Running, Backup: lost.ID}),
		cat.PutJob(ctx, Job{ID: "job3", Kind: catalog.BackupJob, State: catalog.Queued, Backup: early.ID}),
		cat.PutJob(ctx, Job{ID: "job4", Kind: catalog.RestoreJob, State: catalog.Running, Backup: done.ID, Target: "half"}),
		cat.PutUnfinished(ctx, half.ID, "job4"), cat.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r.startAgent()
	for id, want := range map[string]JobState{"job1": JobSucceeded, "job2": JobFailed, "job3": JobFailed, "job4": JobFailed} {
		if j, ierr := r.agent.Job(ctx, id); ierr != nil || j.State != want || (want == JobFailed) != strings.Contains(j.Error, "stopped or killed") || (want == JobFailed) != (Code(j.Code) == CodeUnavailable) {
			t.Errorf("%s: %+v, %v", id, j, ierr)
		}
	}
	for id, want := range map[string]BackupStatus{committed.ID: BackupAvailable, lost.ID: BackupError, early.ID: BackupError, done.ID: BackupAvailable} {
		if b, ierr := r.agent.Backup(ctx, id); ierr != nil || b.Status != want || b.Undecided {
			t.Errorf("%+v, %v", b, ierr)
		}
	}
	if b, ierr := r.agent.Backup(ctx, committed.ID); ierr != nil || b.BytesRead != second.BytesRead {
		t.Errorf("figures lost: %+v, %v; want %+v", b, ierr, second)
	}
	r.settled("disk", done, second)
	if _, ierr := r.serve.Snapshot(ctx, snaps[0].ID); ierr == nil {
		t.Error("the snapshot is still there")
	}
	for range 1000 {
		if _, err = r.serve.Volume(ctx, half.ID); err != nil {
			break
		}
		pause(ctx, 10*time.Millisecond)
	}
	if err == nil {
		t.Error("the half-made volume is still there")
	}
	r.scatter(v, shadow, 3)
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(next, shadow)
	if next.Parent != second.ID {
		t.Errorf("%+v", next)
	}
}

// A lost catalog is filled again from the stores, checkpoints included.
func TestCatalogLost(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 4<<20)
	shadow := make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<20), 0)
	full := r.backup(CreateBackup{Volume: "disk", Name: "kept", Description: "d"})
	gone := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	if err := r.agent.DeleteBackup(ctx, gone.ID); err != nil {
		t.Fatal(err)
	}
	r.settled("disk", full)
	r.stopAgent()
	if err := os.RemoveAll(filepath.Join(r.dir, "agent")); err != nil {
		t.Fatal(err)
	}
	dirty := r.scatter(v, shadow, 4)
	r.startAgent()
	l, err := r.agent.Backups(ctx)
	if err != nil || len(l) != 1 || l[0].ID != full.ID || l[0].Name != "kept" || l[0].Description != "d" || l[0].BytesStored != full.BytesStored {
		t.Fatalf("%+v, %v\nwant %+v", l, err, full)
	}
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(next, shadow)
	if next.Parent != full.ID || next.FullCompareReason != "" || next.BytesRead > dirty<<16 {
		t.Errorf("%+v", next)
	}
}

// The agent goes on while the data plane is away.
func TestServeAway(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 4<<20)
	shadow := make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	r.stopServe()
	if _, err := r.agent.Volumes(ctx); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "cairn serve") {
		t.Errorf("volumes: %v", err)
	}
	if st, err := r.agent.Status(ctx); err != nil || st.Serve != nil || st.ServeError == "" {
		t.Errorf("status: %+v, %v", st, err)
	}
	x, err := r.agent.Export(ctx, Export{Ref: b.ID})
	if err != nil {
		t.Fatal(err)
	}
	r.equal("the export", r.read(x.URI), shadow)
	file := filepath.Join(r.dir, "f")
	if j := r.wait(r.agent.Restore(ctx, Restore{Backup: b.ID, File: file})); j.State != JobSucceeded {
		t.Errorf("restore to a file: %+v", j)
	}
	r.stopAgent()
	r.startAgent()
	r.startServe()
	r.scatter(v, shadow, 3)
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(next, shadow)
	if next.FullCompareReason != "" {
		t.Errorf("after a clean restart: %+v", next)
	}
}
