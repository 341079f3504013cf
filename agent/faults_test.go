package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/nbd"
)

func TestRefusals(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	r.volume("small", 64<<10)
	long := strings.Repeat("x", 256)
	backup := func(req CreateBackup) error { _, err := r.agent.CreateBackup(ctx, req); return err }
	restore := func(req Restore) error { _, err := r.agent.Restore(ctx, req); return err }
	if err := backup(CreateBackup{Volume: "disk", Incremental: true}); !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "No backups available to do an incremental backup") {
		t.Errorf("incremental of nothing: %v", err)
	}
	b := r.backup(CreateBackup{Volume: "disk", Name: "twin"})
	r.backup(CreateBackup{Volume: "disk", Name: "twin"})
	c := r.dial(v.URI)
	for name, x := range map[string]struct {
		err  error
		want *Error
		text string
	}{
		"in use":             {backup(CreateBackup{Volume: "disk"}), ErrInvalid, "must use the force flag"},
		"no volume":          {backup(CreateBackup{}), ErrInvalid, "no volume"},
		"unknown volume":     {backup(CreateBackup{Volume: "dusk"}), ErrNotFound, "dusk"},
		"both":               {backup(CreateBackup{Volume: "disk", Incremental: true, Auto: true}), ErrInvalid, "exclude"},
		"long name":          {backup(CreateBackup{Volume: "disk", Name: long}), ErrInvalid, "255"},
		"control":            {backup(CreateBackup{Volume: "disk", Description: "a\nb"}), ErrInvalid, "printable"},
		"name like an ID":    {backup(CreateBackup{Volume: "disk", Name: b.ID}), ErrInvalid, "looks like an ID"},
		"unknown snapshot":   {backup(CreateBackup{Volume: "disk", Snapshot: "none"}), ErrNotFound, "none"},
		"ambiguous":          {restore(Restore{Backup: "twin"}), ErrConflict, b.ID},
		"unknown backup":     {restore(Restore{Backup: "none"}), ErrNotFound, "none"},
		"two targets":        {restore(Restore{Backup: b.ID, Volume: "disk", File: "/tmp/x"}), ErrInvalid, "several targets"},
		"to one in use":      {restore(Restore{Backup: b.ID, Volume: "disk"}), ErrBusy, "disconnect"},
		"to a small one":     {restore(Restore{Backup: b.ID, Volume: "small"}), ErrInvalid, "extend"},
		"to a relative path": {restore(Restore{Backup: b.ID, File: "x.raw"}), ErrInvalid, "absolute"},
		"to no folder":       {restore(Restore{Backup: b.ID, File: "/no/such/folder/x"}), ErrConflict, "/no/such/folder"},
		"new, but there":     {restore(Restore{Backup: b.ID, NewVolume: "small"}), ErrConflict, "there already"},
		"bad volume name":    {restore(Restore{Backup: b.ID, NewVolume: "a/b"}), ErrInvalid, "letters"},
		"overwrite what":     {restore(Restore{Backup: b.ID, Overwrite: true}), ErrInvalid, "for files"},
		"volume name":        {second(r.agent.CreateVolume(ctx, CreateVolume{Name: "../x", Size: 1})), ErrInvalid, "../x"},
		"volume size":        {second(r.agent.CreateVolume(ctx, CreateVolume{Name: "x", Size: -1})), ErrInvalid, ""},
		"volume twice":       {second(r.agent.CreateVolume(ctx, CreateVolume{Name: "disk", Size: 1 << 20})), ErrConflict, "disk"},
		"shrink":             {second(r.agent.ExtendVolume(ctx, "disk", 5)), ErrInvalid, ""},
		"export nothing":     {second(r.agent.Export(ctx, Export{})), ErrInvalid, "nothing is named"},
		"export unknown":     {second(r.agent.Export(ctx, Export{Ref: "none"})), ErrNotFound, "none"},
		"overlay of volume":  {second(r.agent.Export(ctx, Export{Ref: "disk", Overlay: true})), ErrInvalid, "overlay"},
		"unexport unknown":   {r.agent.Unexport(ctx, "none"), ErrNotFound, "none"},
		"delete unknown":     {r.agent.DeleteBackup(ctx, "none"), ErrNotFound, "none"},
		"delete in use":      {r.agent.DeleteVolume(ctx, "disk"), ErrBusy, "disk"},
		"unknown job":        {second(r.agent.Job(ctx, "nonesuch")), ErrNotFound, "nonesuch"},
		"unknown wait":       {second(r.agent.WaitJob(ctx, "nonesuch", nil)), ErrNotFound, "nonesuch"},
		"negative limit":     {second(r.agent.Jobs(ctx, -1)), ErrInvalid, "limit"},
		"unknown call":       {r.agent.call(ctx, "GET", "/v1/nonsense", nil), ErrNotFound, "another version"},
		"unknown field":      {r.agent.call(ctx, "POST", "/v1/backups", map[string]int{"volum": 1}), ErrInvalid, "volum"},
		"no agent":           {second(NewClient(filepath.Join(r.dir, "nobody")).Status(ctx)), nil, "is cairn agent running"},
	} {
		if x.err == nil || x.want != nil && !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v", name, x.err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if l, err := r.agent.Backups(ctx); err != nil || len(l) != 2 {
		t.Errorf("refused backups left records: %+v, %v", l, err)
	}
	if err := Run(ctx, Options{State: filepath.Join(r.dir, "agent"), Socket: filepath.Join(r.dir, "other"), NBDDir: r.dir, KeepPriority: true}, nil); err == nil || !strings.Contains(err.Error(), "another agent uses") {
		t.Errorf("a second agent on the same state: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A canceled backup leaves nothing, and the next one starts where it did.
func TestCancelBackup(t *testing.T) {
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
	queued, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	if x, ierr := r.agent.Job(ctx, queued.ID); ierr != nil || x.State != JobQueued {
		t.Errorf("second job of the volume: %+v, %v", x, ierr)
	}
	if ierr := r.agent.DeleteVolume(ctx, "disk"); !errors.Is(ierr, ErrBusy) {
		t.Errorf("delete during a backup: %v", ierr)
	}
	if ierr := r.agent.DeleteBackup(ctx, j.Backup); !errors.Is(ierr, ErrBusy) {
		t.Errorf("delete of a backup that is being made: %v", ierr)
	}
	// Writes after the snapshot belong to the next backup.
	r.put(v, shadow, noise(100_000), 30<<20)
	for _, id := range []string{j.ID, queued.ID} {
		if _, ierr := r.agent.CancelJob(ctx, id); ierr != nil {
			t.Error(ierr)
		}
	}
	for _, id := range []string{j.ID, queued.ID} {
		if x, ierr := r.agent.WaitJob(ctx, id, nil); ierr != nil || x.State != JobCancelled || !strings.Contains(x.Error, "canceled") {
			t.Errorf("%+v, %v", x, ierr)
		}
	}
	release()
	b, err := r.agent.Backup(ctx, j.Backup)
	if err != nil || b.Status != BackupError || b.Undecided || !strings.Contains(b.FailReason, "canceled") {
		t.Errorf("%+v, %v", b, err)
	}
	r.settled("disk", full)
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(next, shadow)
	if next.Parent != full.ID || next.FullCompareReason != "" {
		t.Errorf("next: %+v", next)
	}
	for _, id := range []string{j.Backup, queued.Backup} {
		if err := r.agent.DeleteBackup(ctx, id); err != nil {
			t.Error(err)
		}
	}
	r.settled("disk", full, next)
}

// A backup whose stores fail is given up, and the next one is exact.
func TestStoresFail(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 16<<20)
	shadow := make([]byte, 16<<20)
	r.put(v, shadow, noise(1<<20), 0)
	full := r.backup(CreateBackup{Volume: "disk"})
	r.scatter(v, shadow, 10)
	for _, s := range r.stores[:3] {
		s.SetFaults(memstore.Faults{Decide: func(c memstore.Call) memstore.Fault {
			if c.Op == "put" && strings.HasPrefix(c.Name, "packs/") {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	j := r.wait(r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk", Incremental: true}))
	b, err := r.agent.Backup(ctx, j.Backup)
	if err != nil || j.State != JobFailed || b.Status != BackupError || b.FailReason != j.Error || b.Undecided {
		t.Errorf("%+v, %+v, %v", j, b, err)
	}
	r.settled("disk", full)
	for _, s := range r.stores {
		s.SetFaults(memstore.Faults{})
	}
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(next, shadow)
	if next.Parent != full.ID || next.FullCompareReason != "" {
		t.Errorf("next: %+v", next)
	}
	r.down(5)
	if j := r.wait(r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"})); j.State != JobFailed {
		t.Errorf("with one store: %+v", j)
	}
	if j := r.wait(r.agent.Restore(ctx, Restore{Backup: full.ID, NewVolume: "never"})); j.State != JobFailed {
		t.Errorf("restore with one store: %+v", j)
	}
	if _, err := r.agent.Volume(ctx, "never"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a failed restore left its volume: %v", err)
	}
	r.down(0)
}

// When the stores do not say whether a backup was committed, they are asked
// until they do.
func TestOutcomeUnknown(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 4<<20)
	shadow := make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<20), 0)
	full := r.backup(CreateBackup{Volume: "disk"})
	r.scatter(v, shadow, 10)
	voting := make(chan struct{}, 100)
	for _, s := range r.stores {
		s.SetFaults(memstore.Faults{Decide: func(c memstore.Call) memstore.Fault {
			if strings.HasSuffix(c.Name, "/verdict") {
				select {
				case voting <- struct{}{}:
				default:
				}
				return memstore.FailAfter // done, and nobody knows
			}
			return memstore.None
		}})
	}
	j, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	<-voting
	for _, s := range r.stores {
		s.SetFaults(memstore.Faults{})
	}
	if j, err = r.agent.WaitJob(ctx, j.ID, nil); err != nil {
		t.Fatal(err)
	}
	b, err := r.agent.Backup(ctx, j.Backup)
	if err != nil || b.Undecided || (b.Status == BackupAvailable) != (j.State == JobSucceeded) {
		t.Fatalf("%+v, %+v, %v", j, b, err)
	}
	if b.Status == BackupAvailable {
		r.same(b, shadow)
		r.settled("disk", full, b)
	} else {
		r.settled("disk", full)
	}
	r.same(r.backup(CreateBackup{Volume: "disk", Incremental: true}), shadow)
}

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
	half, err := r.serve.CreateVolume(ctx, CreateVolume{Name: "half", Size: 1 << 20})
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
		if j, ierr := r.agent.Job(ctx, id); ierr != nil || j.State != want || (want == JobFailed) != strings.Contains(j.Error, "stopped or killed") {
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

func TestCancelRestore(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 64<<20)
	shadow := make([]byte, 64<<20)
	r.put(v, shadow, noise(60<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	r.put(v, shadow, noise(60<<20), 1<<20)
	// Reads of packs hang, so that the restore is caught in the middle.
	first, gate := make(chan struct{}, 100), make(chan struct{})
	for _, s := range r.stores {
		s.SetFaults(memstore.Faults{Before: func(ctx context.Context, c memstore.Call) error {
			if c.Op != "get" || !strings.HasPrefix(c.Name, "packs/") {
				return nil
			}
			select {
			case first <- struct{}{}:
			default:
			}
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}})
	}
	var jobs []Job
	for _, req := range []Restore{{Backup: b.ID, NewVolume: "new"}, {Backup: b.ID, File: filepath.Join(r.dir, "file")}} {
		j, err := r.agent.Restore(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, j)
	}
	<-first
	if x, err := r.agent.Backup(ctx, b.ID); err != nil || x.Status != BackupRestoring {
		t.Errorf("during a restore: %+v, %v", x, err)
	}
	if err := r.agent.DeleteBackup(ctx, b.ID); !errors.Is(err, ErrBusy) {
		t.Errorf("delete during a restore: %v", err)
	}
	for _, j := range jobs {
		if _, err := r.agent.CancelJob(ctx, j.ID); err != nil {
			t.Error(err)
		}
	}
	for _, j := range jobs {
		if x, err := r.agent.WaitJob(ctx, j.ID, nil); err != nil || x.State != JobCancelled {
			t.Errorf("%+v, %v", x, err)
		}
	}
	close(gate)
	if _, err := r.agent.Volume(ctx, "new"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the canceled restore left its volume: %v", err)
	}
	if l, err := filepath.Glob(filepath.Join(r.dir, "*file*")); err != nil || len(l) != 0 {
		t.Errorf("the canceled restore left %v, %v", l, err)
	}
	if x, err := r.agent.Backup(ctx, b.ID); err != nil || x.Status != BackupAvailable {
		t.Errorf("after it: %+v, %v", x, err)
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
