package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// TestOneLUN: two hosts have one LUN. Whatever one of them had cached, its backups have
// what the other wrote, and a restore to the LUN leaves nothing of it.
func TestOneLUN(t *testing.T) {
	const size = 4 << 20
	shadow := noise(size)
	file := filepath.Join(t.TempDir(), "lun")
	if err := os.WriteFile(file, shadow, 0o600); err != nil {
		t.Fatal(err)
	}
	here, there := needs.LUN(t, file)
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx, id := t.Context(), uuid.NewString()
	var vols [2]Volume
	for i, r := range []*rig{a, b} {
		v, err := r.serve.CreateVolume(ctx, serve.CreateVolume{ID: id, Name: "web", Device: []string{here, there}[i]})
		if err != nil {
			t.Fatal(err)
		}
		r.told(id)
		vols[i] = v
	}
	v, w := vols[0], vols[1]
	// cache has a host read all that there is now, and keep it.
	cache := func(r *rig, v Volume) {
		t.Helper()
		r.read(nbd.URI(v.Socket, "web@ro"))
	}
	backup := func(r *rig, req CreateBackup) Backup {
		t.Helper()
		req.Volume = "web"
		got := r.backup(req)
		r.same(got, shadow)
		return got
	}
	a.equal("what a reads at first", a.read(nbd.URI(v.Socket, "web@ro")), shadow)
	b.put(w, shadow, noise(1<<16), 1<<20)
	full := backup(a, CreateBackup{})
	then := append([]byte{}, shadow...)

	cache(a, v)
	b.put(w, shadow, noise(1<<16), 2<<20)
	if got := backup(a, CreateBackup{Incremental: true}); got.FullCompareReason == "" {
		t.Errorf("nothing was compared: %+v", got)
	}
	if got := backup(a, CreateBackup{Incremental: true}); got.FullCompareReason != "" {
		t.Errorf("compared because of %q", got.FullCompareReason)
	}
	// A snapshot that somebody asked for, backed up later.
	b.put(w, shadow, noise(1<<16), 3<<20)
	if _, err := a.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"web"}, Name: "s"}); err != nil {
		t.Fatal(err)
	}
	backup(a, CreateBackup{Snapshot: "s"})
	if err := a.agent.DeleteSnapshot(ctx, "web@s"); err != nil {
		t.Fatal(err)
	}

	// a has cached what it is to restore, so that nothing would differ. All that b wrote does.
	restore := func(r *rig, v Volume) {
		t.Helper()
		j := r.wait(r.agent.Restore(ctx, Restore{Backup: full.ID, Volume: v.ID}))
		if j.State != JobSucceeded {
			t.Fatalf("%+v", j)
		}
		var res RestoreResult
		if err := json.Unmarshal(j.Result, &res); err != nil || res.BytesWritten == 0 || res.BytesWritten >= size {
			t.Errorf("%+v, %v: not only what differs was written", res, err)
		}
		r.idle(v.ID)
		copy(shadow, then)
	}
	restore(a, v)
	cache(a, v)
	b.put(w, shadow, noise(1<<16), 2<<20)
	restore(a, v)
	backup(b, CreateBackup{})
	a.put(v, shadow, noise(1<<16), 0)
	restore(b, w)
	onMedium, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	a.equal("the medium", onMedium, then)
}

// TestLeftWithoutFlush: a volume whose client has just hung up is waited for.
func TestLeftWithoutFlush(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 16<<20)
	for range 3 {
		c := r.dial(v.URI)
		if err := c.WriteAt(ctx, noise(8<<20), 0, false); err != nil {
			t.Fatal(err)
		}
		left := make(chan error, 1)
		go func() {
			time.Sleep(50 * time.Millisecond)
			left <- c.Close()
		}()
		if now, err := r.serve.Volume(ctx, v.ID); err != nil || !now.InUse {
			t.Fatalf("%+v, %v", now, err)
		}
		r.backup(CreateBackup{Volume: "disk"})
		if err := <-left; err != nil {
			t.Fatal(err)
		}
	}
	// One that stays is not waited for for ever, and who hangs up hears of that.
	c := r.dial(v.URI)
	canceled, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := r.agent.CreateBackup(canceled, CreateBackup{Volume: "disk"}); err == nil || !strings.Contains(err.Error(), "must use the force flag") {
		t.Errorf("in use: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
