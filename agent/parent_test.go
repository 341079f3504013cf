package agent

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// Without its checkpoint an incremental compares everything, and says so.
func TestCheckpointGone(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 8<<20)
	shadow := make([]byte, 8<<20)
	r.put(v, shadow, noise(2<<20), 0)
	full := r.backup(CreateBackup{Volume: "disk"})
	dirty := r.scatter(v, shadow, 3)
	if err := r.serve.DropCheckpoint(ctx, "disk", full.ID); err != nil {
		t.Fatal(err)
	}
	b := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(b, shadow)
	if b.Parent != full.ID || !b.Incremental || !strings.Contains(b.FullCompareReason, "checkpoint") || b.BytesRead < 2<<20 || b.BytesChanged > dirty<<16 || b.BytesNew > dirty<<16 {
		t.Errorf("%+v", b)
	}
	// The newest is deleted: the one before it serves.
	r.scatter(v, shadow, 3)
	b2 := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	if err := r.agent.DeleteBackup(ctx, b2.ID); err != nil {
		t.Fatal(err)
	}
	r.settled("disk", b)
	b3 := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(b3, shadow)
	if b3.Parent != b.ID || b3.FullCompareReason != "" {
		t.Errorf("%+v", b3)
	}
	// All are deleted from the repository behind the agent's back.
	for _, x := range []Backup{full, b, b3} {
		if err := r.repo.Delete(ctx, x.ID); err != nil {
			t.Fatal(err)
		}
	}
	b4 := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(b4, shadow)
	if b4.Incremental || b4.Parent != "" || b4.FullCompareReason == "" {
		t.Errorf("%+v", b4)
	}
}

// A persistent snapshot is backed up as it was.
func TestBackupOfSnapshot(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 8<<20)
	shadow := make([]byte, 8<<20)
	r.put(v, shadow, noise(2<<20), 0)
	early, err := r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Name: "early"})
	if err != nil {
		t.Fatal(err)
	}
	old := append([]byte{}, shadow...)
	r.scatter(v, shadow, 5)
	full := r.backup(CreateBackup{Volume: "disk"})
	guest := r.dial(v.URI) // in use, and no force is needed
	b := r.backup(CreateBackup{Volume: "disk", Snapshot: "early", Incremental: true})
	r.same(b, old)
	if b.SnapshotID != early[0].ID || b.Parent != full.ID || b.FullCompareReason != "" || b.BytesChanged == 0 || b.BytesRead > 5<<16 {
		t.Errorf("%+v", b)
	}
	if err := guest.Close(); err != nil {
		t.Error(err)
	}
	r.idle("disk")
	r.scatter(v, shadow, 2)
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(next, shadow)
	if next.Parent != full.ID || next.FullCompareReason != "" {
		t.Errorf("%+v", next)
	}
	if err := r.agent.RevertVolume(ctx, "early"); err != nil {
		t.Fatal(err)
	}
	after := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(after, old)
	if err := r.agent.DeleteSnapshot(ctx, "early"); err != nil {
		t.Error(err)
	}
}

// The backup of a snapshot has a checkpoint where the snapshot is: later ones of
// the volume and of snapshots start from it, also when the snapshot is gone.
func TestBackupOfSnapshotIsStartedFrom(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 8<<20)
	shadow := make([]byte, 8<<20)
	r.put(v, shadow, noise(2<<20), 0)
	if _, err := r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Name: "s"}); err != nil {
		t.Fatal(err)
	}
	old := slices.Clone(shadow)
	dirty := r.scatter(v, shadow, 7)
	full := r.backup(CreateBackup{Volume: "disk", Snapshot: "s"})
	r.same(full, old)
	if full.Incremental || full.Checkpoint != full.ID {
		t.Fatalf("%+v", full)
	}
	r.settled("disk", full)
	incr := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(incr, shadow)
	if incr.Parent != full.ID || incr.FullCompareReason != "" || incr.BytesRead > dirty<<16 || incr.BytesRead == 0 {
		t.Errorf("of the volume: %+v, want at most %d bytes read", incr, dirty<<16)
	}
	// The nearest to the snapshot is what its next backup starts from.
	again := r.backup(CreateBackup{Volume: "disk", Snapshot: "s", Incremental: true})
	r.same(again, old)
	if again.Parent != full.ID || again.FullCompareReason != "" || again.BytesRead != 0 {
		t.Errorf("of the snapshot again: %+v", again)
	}
	for _, b := range []Backup{incr, full} {
		if err := r.agent.DeleteBackup(ctx, b.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.agent.DeleteSnapshot(ctx, "s"); err != nil {
		t.Fatal(err)
	}
	r.stopAgent()
	r.stopServe()
	r.startServe()
	r.startAgent()
	r.settled("disk", again)
	dirty += r.scatter(v, shadow, 2)
	last := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(last, shadow)
	if last.Parent != again.ID || last.FullCompareReason != "" || last.BytesRead > dirty<<16 {
		t.Errorf("without the snapshot: %+v", last)
	}
}

// A data plane that takes no further checkpoint costs the checkpoint, not the
// backup of a snapshot.
func TestBackupOfSnapshotWithoutCheckpoint(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	shadow := make([]byte, 1<<20)
	r.put(v, shadow, noise(1<<20), 0)
	if _, err := r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Name: "s"}); err != nil {
		t.Fatal(err)
	}
	var err error
	last := ""
	for n := 0; err == nil && n < 1000; n++ {
		name := uuid.NewString() // as a backup's, or room would be kept for these
		if err = r.serve.AliasCheckpoint(ctx, "s", name); err == nil {
			last = name
		}
	}
	if !errors.Is(err, serve.ErrConflict) {
		t.Fatalf("there is no limit: %v", err)
	}
	b := r.backup(CreateBackup{Volume: "disk", Snapshot: "s"})
	r.same(b, shadow)
	if b.Checkpoint != "" {
		t.Errorf("%+v", b)
	}
	if err = r.serve.DropCheckpoint(ctx, "disk", last); err != nil {
		t.Fatal(err)
	}
	next := r.backup(CreateBackup{Volume: "disk", Snapshot: "s", Incremental: true})
	r.same(next, shadow)
	if next.Parent != b.ID || next.FullCompareReason == "" || next.Checkpoint == "" || next.BytesNew != 0 {
		t.Errorf("%+v", next)
	}
}

// The audit finds what was changed behind the data plane's back.
func TestAuditMismatch(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 2<<20)
	shadow := make([]byte, 2<<20)
	r.put(v, shadow, noise(2<<20), 0)
	full := r.backup(CreateBackup{Volume: "disk"})
	r.put(v, shadow, noise(4096), 0)
	incr := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(incr, shadow)
	f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	evil := noise(100)
	copy(shadow[1<<20:], evil)
	if _, err := f.WriteAt(evil, 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.put(v, shadow, noise(4096), 0)
	// The volume has fewer blocks than an audit takes: it finds it at once.
	b := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(b, shadow)
	if !strings.Contains(b.FullCompareReason, "audit") {
		t.Errorf("%+v", b)
	}
	if x, err := r.agent.Backup(ctx, incr.ID); err != nil || x.Warning == "" {
		t.Errorf("the one before is not flagged: %+v, %v", x, err)
	}
	if x, err := r.agent.Backup(ctx, full.ID); err != nil || x.Warning != "" {
		t.Errorf("the full one is flagged: %+v, %v", x, err)
	}
}

// The snapshot of a volume that grows keeps its size, and the next has the new.
func TestGrow(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 2<<20+512)
	shadow := make([]byte, 2<<20+512)
	r.put(v, shadow, noise(2<<20+512), 0)
	r.backup(CreateBackup{Volume: "disk"})
	if _, err := r.agent.ExtendVolume(ctx, "disk", 5<<20); err != nil {
		t.Fatal(err)
	}
	shadow = slices.Concat(shadow, make([]byte, 5<<20-len(shadow)))
	r.write(v.URI, func(c *nbd.Client) error {
		p := noise(70_000)
		copy(shadow[3<<20:], p)
		return c.WriteAt(ctx, p, 3<<20, false)
	})
	r.idle("disk")
	b := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(b, shadow)
	if b.FullCompareReason != "" || b.Size != 5<<20 {
		t.Errorf("%+v", b)
	}
}
