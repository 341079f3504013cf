package agent

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

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
		if x, ierr := r.agent.WaitJob(ctx, id, nil); ierr != nil || x.State != JobCanceled || x.Code != "" || !strings.Contains(x.Error, "canceled") {
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
	if err != nil || j.State != JobFailed || b.Status != BackupError || b.FailReason != j.Error || b.Undecided || Code(j.Code) != CodeUnavailable {
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
	if j := r.wait(r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"})); j.State != JobFailed || Code(j.Code) != CodeUnavailable {
		t.Errorf("with one store: %+v", j)
	}
	if j := r.wait(r.agent.Restore(ctx, Restore{Backup: full.ID, NewVolume: "never"})); j.State != JobFailed || Code(j.Code) != CodeUnavailable {
		t.Errorf("restore with one store: %+v", j)
	}
	if _, err := r.agent.Volume(ctx, "never"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a failed restore left its volume: %v", err)
	}
	r.down(0)
}

// A job whose data plane goes away says so, and that it is no fault of the job.
func TestServeGoneInJob(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 48<<20)
	r.put(v, make([]byte, 48<<20), noise(40<<20), 0)
	r.stopAgent()
	r.limits.ReadBytesPerSecond = 1 << 20
	r.startAgent()
	j, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	j, err = r.agent.WaitJob(ctx, j.ID, func(j Job) {
		if j.Progress.Read > 0 {
			once.Do(r.stopServe)
		}
	})
	if err != nil || j.State != JobFailed || Code(j.Code) != CodeUnavailable || !strings.Contains(j.Error, "data plane") {
		t.Errorf("%+v, %v", j, err)
	}
	r.startServe()
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

func TestCancelRestore(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 64<<20)
	shadow := make([]byte, 64<<20)
	r.put(v, shadow, noise(60<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	r.put(v, shadow, noise(60<<20), 1<<20)
	// Reads of packs hang, so that the restore is caught in the middle.
	began, release := r.hold("get", "packs/")
	var jobs []Job
	for _, req := range []Restore{{Backup: b.ID, NewVolume: "new"}, {Backup: b.ID, File: filepath.Join(r.dir, "file")}} {
		j, err := r.agent.Restore(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, j)
	}
	<-began
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
		if x, err := r.agent.WaitJob(ctx, j.ID, nil); err != nil || x.State != JobCanceled {
			t.Errorf("%+v, %v", x, err)
		}
	}
	release()
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

// A restore that is canceled while its volume is being made, before the agent
// has heard of it, leaves no volume either.
func TestCancelRestoreEarly(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	r.put(v, make([]byte, 1<<20), noise(1<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	early := 0
	for i := range 30 {
		j, err := r.agent.Restore(ctx, Restore{Backup: b.ID, NewVolume: "new"})
		if err != nil {
			t.Fatal(err)
		}
		pause(ctx, time.Duration(i)*time.Millisecond/2)
		if _, err = r.agent.CancelJob(ctx, j.ID); err != nil && !errors.Is(err, ErrConflict) {
			t.Fatal(err)
		}
		j, err = r.agent.WaitJob(ctx, j.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.agent.Volume(ctx, "new")
		switch j.State {
		case JobCanceled:
			early++
			if !errors.Is(err, ErrNotFound) {
				t.Fatalf("round %d: the canceled restore left its volume: %v", i, err)
			}
		default:
			if err != nil {
				t.Fatalf("round %d: %+v, and the volume: %v", i, j, err)
			}
			if err = r.agent.DeleteVolume(ctx, "new"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if early == 0 {
		t.Error("no restore was canceled in time: nothing was tested")
	}
}

// A restore to a new volume may take longer than cleaning up behind one may.
func TestSlowRestore(t *testing.T) {
	short, usual := 300*time.Millisecond, cleanTimeout
	cleanTimeout = short
	t.Cleanup(func() { cleanTimeout = usual }) // when the agent has ended
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	shadow := make([]byte, 1<<20)
	r.put(v, shadow, noise(1<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	for _, s := range r.stores {
		s.SetFaults(memstore.Faults{Before: func(ctx context.Context, c memstore.Call) error {
			if c.Op == "get" && strings.HasPrefix(c.Name, "packs/") {
				pause(ctx, 2*short)
			}
			return ctx.Err()
		}})
	}
	j := r.wait(r.agent.Restore(ctx, Restore{Backup: b.ID, NewVolume: "slow"}))
	if j.State != JobSucceeded {
		t.Fatalf("%+v", j)
	}
	if n, err := r.serve.Volume(ctx, "slow"); err != nil {
		t.Error(err)
	} else {
		r.equal("the new volume", r.read(n.URI), shadow)
	}
}

// Whoever waits for a job hears its end also when that cannot be recorded, as
// on a full disk, and it is recorded as soon as it can be: as what became of the backup
// in the stores.
func TestEndNotRecorded(t *testing.T) {
	r := testRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	v := r.volume("disk", 1<<20)
	r.put(v, make([]byte, 1<<20), noise(1<<20), 0)
	// The agent writes beside us.
	db, err := sql.Open("sqlite", filepath.Join(r.dir, "agent", "catalog.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(statements ...string) {
		t.Helper()
		for _, q := range statements {
			if _, err = db.ExecContext(ctx, q); err != nil {
				t.Fatal(err)
			}
		}
	}
	exec(`CREATE TRIGGER j BEFORE INSERT ON jobs WHEN NEW.finished > 0 BEGIN SELECT RAISE(FAIL, 'no room'); END`,
		`CREATE TRIGGER b BEFORE INSERT ON backups WHEN NEW.status <> 'creating' BEGIN SELECT RAISE(FAIL, 'no room'); END`)
	j, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	j, err = r.agent.WaitJob(ctx, j.ID, nil)
	if err != nil || j.State != JobFailed || !strings.Contains(j.Error, "no room") {
		t.Fatalf("%+v, %v", j, err)
	}
	if again, werr := r.agent.WaitJob(ctx, j.ID, nil); werr != nil || again.State != JobFailed {
		t.Errorf("waited for again: %+v, %v", again, werr)
	}
	if l, lerr := r.agent.Jobs(ctx, 0); lerr != nil || len(l) != 1 || l[0].State != JobFailed {
		t.Errorf("jobs: %+v, %v", l, lerr)
	}
	if derr := r.agent.DeleteBackup(ctx, j.Backup); !errors.Is(derr, ErrBusy) || !strings.Contains(derr.Error(), "could not be recorded") {
		t.Errorf("delete: %v", derr)
	}
	exec(`DROP TRIGGER j`, `DROP TRIGGER b`)
	r.backup(CreateBackup{Volume: "disk"}) // the end of each job wakes the tidying
	for {
		b, berr := r.agent.Backup(ctx, j.Backup)
		if berr != nil {
			t.Fatal(berr)
		}
		if b.Status == BackupAvailable { // the stores had taken it
			break
		}
		pause(ctx, 10*time.Millisecond)
	}
	var state string // is recorded behind the backup, which is there
	for state != string(JobSucceeded) {
		if err := db.QueryRowContext(ctx, `SELECT state FROM jobs WHERE id = ?`, j.ID).Scan(&state); err != nil {
			t.Fatalf("recorded as %q, %v", state, err)
		}
		pause(ctx, 10*time.Millisecond)
	}
}
