package agent

import (
	"errors"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/serve"
)

// forceDelete deletes what is being made.
func (r *rig) forceDelete(backup string) {
	r.Helper()
	r.act(http.StatusAccepted, root, "backup", backup, "os-force_delete", object{})
}

// The states of a volume and its backup while a backup runs, and what a cancel by force
// leaves: nothing.
func TestBlockCancelBackup(t *testing.T) {
	r := apiRig(t, func(r *rig) { r.limits.ConcurrentJobs = 1 })
	v := r.disk(ann, nil)
	r.fill(v, noise(1<<20), 0)
	full := r.backedUp(ann, v, nil)
	r.fill(v, noise(40<<20), 1<<20) // more than fits into one pack: its first is put before it commits

	// While it reads, and another waits for its turn.
	began, release := r.hang()
	id := r.backing(ann, v, object{"incremental": true})
	r.await(began)
	other := r.disk(ann, nil)
	waits := r.backing(ann, other, nil)
	for what, want := range map[[2]string]string{
		{"volume", v}: "backing-up", {"backup", id}: "creating", {"volume", other}: "backing-up", {"backup", waits}: "creating",
	} {
		if got := r.state(what[0], what[1]); got != want {
			t.Errorf("%v is %s, want %s", what, got, want)
		}
	}
	r.refused(400, "Backup status must be available or error", ann, "DELETE", "backups/"+id, nil)
	r.refused(403, "", ann, "POST", "backups/"+id+"/action", object{"os-force_delete": nil})
	r.refused(400, `must be available or in-use, but the current status is "backing-up"`, ann, "POST", "backups", object{"backup": object{"volume_id": v}})
	r.refused(400, "", ann, "DELETE", "volumes/"+v, nil)
	r.refused(400, "", ann, "POST", "backups/"+full+"/restore", object{"restore": object{"volume_id": v}})
	r.forceDelete(waits)
	if got := r.state("backup", waits); got != "deleting" && got != "gone" {
		t.Errorf("canceled: %s", got)
	}
	r.becomes("backup", waits, "gone")
	r.becomes("volume", other, "available")
	r.forceDelete(id)
	r.becomes("backup", id, "gone")
	r.becomes("volume", v, "available")
	release()
	r.settledIDs(v, full)

	// While it commits: too late for the job, but the backup goes all the same.
	began, release = r.hold("put", "backups/")
	id = r.backing(ann, v, nil)
	r.await(began)
	r.forceDelete(id)
	r.forceDelete(id) // twice is once
	if got := r.state("backup", id); got != "deleting" {
		t.Errorf("canceled: %s", got)
	}
	release()
	r.becomes("backup", id, "gone")
	r.becomes("volume", v, "available")
	r.settledIDs(v, full)
}

// settledIDs is settled for backups of which only the ID is known.
func (r *rig) settledIDs(volume string, backups ...string) {
	r.Helper()
	var l []Backup
	for _, id := range backups {
		l = append(l, Backup{ID: id})
	}
	r.settled(volume, l...)
}

// What a killed agent left is settled at the next start, as the API says.
func TestBlockKilled(t *testing.T) {
	r := apiRig(t, nil)
	ctx := t.Context()
	v := r.disk(ann, nil)
	r.fill(v, noise(1<<20), 0)
	var made, canceled, restored, deleted, whole string
	for _, id := range []*string{&made, &canceled, &restored, &deleted, &whole} {
		*id = r.backedUp(ann, v, nil)
	}
	to := r.disk(ann, nil)
	r.stopAgent()
	cat, err := catalog.Open(ctx, filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	for id, change := range map[string]func(b *Backup){
		made:     func(b *Backup) { b.Status, b.Session = catalog.Creating, "" },
		canceled: func(b *Backup) { b.Status, b.Session = catalog.Creating, "" },
		restored: func(b *Backup) { b.Status = catalog.Restoring },
		deleted:  func(b *Backup) { b.Status = catalog.Deleting },
		whole:    func(b *Backup) { b.Status, b.Undecided = catalog.Creating, true }, // it was killed behind the commit
	} {
		b, berr := cat.Backup(ctx, id)
		if berr != nil {
			t.Fatal(berr)
		}
		change(&b)
		if err = cat.PutBackup(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	if err = errors.Join(cat.UnwantBackup(ctx, canceled, catalog.Creating), cat.Close()); err != nil {
		t.Fatal(err)
	}
	plane, err := r.serve.Volume(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	n := notesOf(plane)
	n.Status = noteRestoring
	data, err := n.encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err = r.serve.SetAttributes(ctx, to, serve.SetAttributes{Attributes: data}); err != nil {
		t.Fatal(err)
	}
	r.startAgent()
	for id, want := range map[string]string{made: "error", canceled: "gone", restored: "available", deleted: "gone", whole: "available"} {
		r.becomes("backup", id, want)
	}
	r.becomes("volume", v, "available")
	r.becomes("volume", to, "error_restoring")
	if got := r.get(ann, "backups/"+made).text("backup", "fail_reason"); !strings.Contains(got, "stopped or killed") {
		t.Errorf("fail_reason %q", got)
	}
	if used := r.get(ann, "os-quota-sets/a?usage=True").at("quota_set", "backups", "in_use"); used != 3.0 {
		t.Errorf("%v backups count", used)
	}
	r.call(202, ann, "DELETE", "volumes/"+to, nil)
}

// The states while a restore runs, and what a cancel leaves.
func TestBlockCancelRestore(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, object{"metadata": object{"role": "db"}})
	data := noise(20 << 20)
	r.fill(v, data, 0)
	id := r.backedUp(ann, v, nil)
	began, release := r.hold("get", "packs/")
	to := r.disk(ann, nil)
	r.restoring(ann, id, to)
	r.await(began)
	fresh := r.restoringAs(id)
	for what, want := range map[[2]string]string{{"volume", to}: "restoring-backup", {"backup", id}: "restoring"} {
		if got := r.state(what[0], what[1]); got != want {
			t.Errorf("%v is %s, want %s", what, got, want)
		}
	}
	if fresh != 400 {
		t.Errorf("a second restore: %d", fresh)
	}
	r.refused(400, "", ann, "DELETE", "volumes/"+to, nil)
	r.refused(400, "", ann, "DELETE", "backups/"+id, nil)
	r.act(202, root, "backup", id, "os-reset_status", object{"status": "available"})
	r.becomes("backup", id, "available")
	r.becomes("volume", to, "error")
	release()
	r.refused(400, `current status is "error"`, ann, "POST", "backups/"+id+"/restore", object{"restore": object{"volume_id": to}})
	r.act(202, root, "volume", to, "os-reset_status", object{"status": "available"})
	r.restoring(ann, id, to)
	r.becomes("volume", to, "available")
	r.holds(to, data)
	if got := r.get(ann, "volumes/"+to).at("volume", "metadata", "role"); got != "db" {
		t.Errorf("metadata: %v", got)
	}

	// Too few stores: the volume tells, and so it does behind a restart.
	r.down(3)
	into := r.disk(ann, nil)
	if status, x := r.try(ann, "POST", "backups/"+id+"/restore", object{"restore": object{"volume_id": into}}); status == 202 {
		r.becomes("volume", into, "error_restoring")
	} else if status != 503 {
		t.Errorf("%d %v", status, x)
	}
	r.down(0)

	began, release = r.hold("get", "packs/")
	x := r.restoring(ann, id, "")
	r.await(began)
	r.stopAgent()
	release()
	r.startAgent()
	r.becomes("volume", x, "error_restoring")
	r.becomes("backup", id, "available")
	r.call(202, ann, "DELETE", "volumes/"+x, nil)
	r.becomes("volume", x, "gone")
}

// restoringAs tries to restore to a new volume and returns the status.
func (r *rig) restoringAs(backup string) int {
	status, _ := r.try(ann, "POST", "backups/"+backup+"/restore", object{"restore": object{}})
	return status
}

// A cancel behind the last moment: the backup is promised to be deleted, whatever the
// stores say, and goes when it may.
func TestBlockCancelLate(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	r.fill(v, noise(1<<20), 0)
	id := r.backedUp(ann, v, nil)
	r.stopAgent()
	cat, err := catalog.Open(t.Context(), filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := cat.Backup(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b.Status, b.Undecided = catalog.Failed, true // as after a commit that nobody answered
	if err = errors.Join(cat.PutBackup(t.Context(), b), cat.Close()); err != nil {
		t.Fatal(err)
	}
	r.down(6)
	r.startAgent()
	r.refused(400, "waits for the stores", ann, "DELETE", "backups/"+id, nil)
	r.forceDelete(id)
	r.forceDelete(id)
	if got := r.state("backup", id); got != "deleting" {
		t.Errorf("canceled: %s", got)
	}
	r.refused(400, `"deleting"`, ann, "POST", "backups/"+id+"/restore", object{"restore": object{}})
	r.down(0)
	r.backedUp(ann, v, nil) // its end wakes the tidying
	r.becomes("backup", id, "gone")

	r.stopAgent()
	r.limits.Retain = time.Hour
	r.startAgent()
	began, release := r.hold("put", "backups/")
	id = r.backing(ann, v, nil)
	r.await(began)
	r.forceDelete(id)
	release()
	r.until("the end of the job", func() bool {
		b, err := r.agent.Backup(t.Context(), id)
		return err == nil && b.Status == BackupAvailable && !b.RetainUntil.IsZero()
	})
	r.becomes("volume", v, "available")
	if got := r.state("backup", id); got != "deleting" {
		t.Errorf("retained: %s", got)
	}
	kept := r.backedUp(ann, v, nil)
	r.refused(400, "retention", ann, "DELETE", "backups/"+kept, nil)
	if got := r.state("backup", kept); got != "available" {
		t.Errorf("refused: %s", got)
	}
}

// Who sees that a backup has ended may go on at once: back the volume up again, delete the
// backup.
func TestBlockAtOnce(t *testing.T) {
	r := apiRig(t, nil)
	v := r.disk(ann, nil)
	for range 10 {
		b := r.backing(ann, v, nil)
		for r.state("backup", b) == "creating" {
		}
		next := r.backing(ann, v, nil)
		r.call(http.StatusAccepted, ann, http.MethodDelete, "backups/"+b, nil)
		r.becomes("backup", next, "available")
		r.call(http.StatusAccepted, ann, http.MethodDelete, "backups/"+next, nil)
	}
	r.call(http.StatusAccepted, ann, http.MethodDelete, "volumes/"+v, nil)
}
