package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/nbd"
)

const volumeSize = 24<<20 + 4096 // the last block is short

// The main job: full, incremental, two stores lost, and all ways back.
func TestBackupAndBack(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", volumeSize)
	shadow := make([]byte, volumeSize)
	r.put(v, shadow, noise(5<<20), 1<<20)
	r.put(v, shadow, noise(3000), volumeSize-3000)
	full := r.backup(CreateBackup{Volume: "disk", Name: "first", Description: "the whole of it"})
	r.same(full, shadow)
	if full.Incremental || full.Parent != "" || full.Size != volumeSize || full.BytesStored < 5<<20 || full.BytesShards < full.BytesStored*3/2 {
		t.Errorf("full: %+v", full)
	}
	// Holes are not read: 5 MiB begin and end on blocks' edges.
	if full.BytesRead > 6<<20 {
		t.Errorf("%d bytes were read of 5 MiB of data", full.BytesRead)
	}
	dirty := r.scatter(v, shadow, 20)
	incr := r.backup(CreateBackup{Volume: v.ID, Name: "second", Incremental: true})
	r.same(incr, shadow)
	if !incr.Incremental || incr.Parent != full.ID || incr.FullCompareReason != "" || incr.BytesRead > dirty<<16 || incr.BytesChanged > dirty<<16 {
		t.Errorf("incremental of %d blocks: %+v", dirty, incr)
	}
	r.settled("disk", full, incr)
	auto := r.backup(CreateBackup{Volume: "disk", Auto: true})
	if auto.Parent != incr.ID || auto.BytesRead != 0 || auto.BytesChanged != 0 {
		t.Errorf("nothing changed, yet: %+v", auto)
	}
	r.settled("disk", incr, auto)

	r.down(2)
	r.same(full, r.readBack(t, full, shadow))
	r.same(incr, shadow)
	for _, s := range []string{"status", "jobs"} {
		st, err := r.agent.Status(ctx)
		if err != nil || st.Backups != 3 || len(st.Repository.Stores) != 6 || st.Serve == nil {
			t.Errorf("%s: %+v, %v", s, st, err)
		}
	}

	// To a new volume.
	j := r.wait(r.agent.Restore(ctx, Restore{Backup: "second", NewVolume: "copy"}))
	res, err := DecodeRestore(j)
	if err != nil || j.State != JobSucceeded || res.BytesWritten == 0 || res.BytesWritten > 8<<20 {
		t.Fatalf("restore: %+v, %+v, %v", j, res, err)
	}
	c, err := r.agent.Volume(ctx, "copy")
	if err != nil {
		t.Fatal(err)
	}
	r.equal("the new volume", r.read(c.URI), shadow)
	if c.Allocated > 10<<20 {
		t.Errorf("the new volume takes %d bytes", c.Allocated)
	}
	// To an existing one: only what differs is written.
	r.idle("copy")
	other := append([]byte{}, shadow...)
	changed := r.scatter(c, other, 5)
	j = r.wait(r.agent.Restore(ctx, Restore{Backup: incr.ID, Volume: "copy"}))
	if res, err = DecodeRestore(j); err != nil || j.State != JobSucceeded || res.BytesWritten > changed<<16 {
		t.Fatalf("restore: %+v, %+v, %v", j, res, err)
	}
	r.equal("the existing volume", r.read(c.URI), shadow)
	// To a file.
	file := filepath.Join(r.dir, "out.raw")
	if j = r.wait(r.agent.Restore(ctx, Restore{Backup: incr.ID, File: file})); j.State != JobSucceeded {
		t.Fatalf("restore: %+v", j)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	r.equal("the file", got, shadow)
	if _, err := r.agent.Restore(ctx, Restore{Backup: incr.ID, File: file}); !errors.Is(err, ErrConflict) {
		t.Errorf("over a file: %v", err)
	}
	if j = r.wait(r.agent.Restore(ctx, Restore{Backup: incr.ID, File: file, Overwrite: true})); j.State != JobSucceeded {
		t.Errorf("over a file: %+v", j)
	}
	if b, err := r.agent.Backup(ctx, incr.ID); err != nil || b.Status != BackupAvailable {
		t.Errorf("after restores: %+v, %v", b, err)
	}
}

// readBack returns what the first backup must hold: the volume as it was
// before scatter, which the backup itself tells with all stores up.
func (r *rig) readBack(t *testing.T, b Backup, shadow []byte) []byte {
	t.Helper()
	r.down(0)
	img, err := r.repo.Image(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, len(shadow))
	if err := errors.Join(img.ReadAt(t.Context(), p, 0), img.Close()); err != nil {
		t.Fatal(err)
	}
	r.down(2)
	return p
}

func TestExports(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 4<<20)
	shadow := make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<20), 512)
	b := r.backup(CreateBackup{Volume: "disk", Name: "one"})
	for ref, want := range map[string]string{"disk": v.URI, v.ID: v.URI} {
		if x, err := r.agent.Export(ctx, Export{Ref: ref}); err != nil || x.URI != want || x.Kind != "volume" {
			t.Errorf("export %s: %+v, %v", ref, x, err)
		}
	}
	snaps, err := r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Name: "snap"})
	if err != nil {
		t.Fatal(err)
	}
	if x, ierr := r.agent.Export(ctx, Export{Ref: "snap"}); ierr != nil || x.URI != snaps[0].URI || x.Kind != "snapshot" {
		t.Errorf("export of a snapshot: %+v, %v", x, ierr)
	}
	ro, err := r.agent.Export(ctx, Export{Ref: "one"})
	if err != nil || ro.Name != b.ID || ro.Kind != "backup" || ro.Overlay {
		t.Fatalf("%+v, %v", ro, err)
	}
	r.equal("the export", r.read(ro.URI), shadow)
	c := r.dial(ro.URI)
	if ierr := c.WriteAt(ctx, []byte("x"), 0, false); !c.ReadOnly() || ierr == nil {
		t.Errorf("write to a read-only export: %v", ierr)
	}
	if ierr := c.Close(); ierr != nil {
		t.Error(ierr)
	}
	rw, err := r.agent.Export(ctx, Export{Ref: "one", Overlay: true, Name: "try", Purpose: "tried by somebody"})
	if err != nil {
		t.Fatal(err)
	}
	mine := append([]byte{}, shadow...)
	r.scatterTo(rw.URI, mine)
	r.equal("the overlay", r.read(rw.URI), mine)
	r.equal("the export beside it", r.read(ro.URI), shadow)
	if ierr := r.agent.DeleteBackup(ctx, "one"); !errors.Is(ierr, ErrBusy) || !strings.Contains(ierr.Error(), "export") {
		t.Errorf("delete while exported: %v", ierr)
	}
	for _, name := range []string{"try", "disk", "bad/name"} {
		if _, ierr := r.agent.Export(ctx, Export{Ref: "one", Name: name}); ierr == nil {
			t.Errorf("exported as %s", name)
		}
	}
	if _, ierr := r.agent.CreateVolume(ctx, CreateVolume{Name: "try", Size: 1 << 20}); !errors.Is(ierr, ErrConflict) {
		t.Errorf("volume with the name of an export: %v", ierr)
	}

	r.stopAgent()
	r.startAgent()
	l, err := r.agent.Exports(ctx)
	if err != nil || len(l) != 2 {
		t.Fatalf("after a restart: %+v, %v", l, err)
	}
	r.equal("the overlay after a restart", r.read(rw.URI), mine)
	r.equal("the export after a restart", r.read(ro.URI), shadow)
	r.scatterTo(rw.URI, mine)
	r.equal("the overlay after another write", r.read(rw.URI), mine)

	if err := r.agent.Unexport(ctx, "one"); !errors.Is(err, ErrConflict) {
		t.Errorf("unexport of one of two: %v", err)
	}
	guest := r.dial(rw.URI)
	if err := r.agent.Unexport(ctx, "try"); !errors.Is(err, ErrBusy) {
		t.Errorf("unexport of an overlay that is written: %v", err)
	}
	if err := guest.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"try", "one"} {
		if err := r.agent.Unexport(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if l, err := os.ReadDir(filepath.Join(r.dir, "agent", "overlays")); err != nil || len(l) != 0 {
		t.Errorf("overlays left: %v, %v", l, err)
	}
	if err := r.agent.Unexport(ctx, "one"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unexport twice: %v", err)
	}
	if x, err := r.agent.Export(ctx, Export{Ref: "one", Overlay: true, Name: "try"}); err != nil {
		t.Error(err)
	} else {
		r.equal("a new overlay", r.read(x.URI), shadow)
		guest := r.dial(x.URI)
		if err := r.agent.ForceUnexport(ctx, "try"); err != nil {
			t.Error(err)
		}
		_ = guest.Close() // the connection is lost
	}
}

// scatterTo writes and zeroes parts of an export and of its shadow.
func (r *rig) scatterTo(uri string, shadow []byte) {
	r.Helper()
	ctx := context.Background()
	r.write(uri, func(c *nbd.Client) error {
		for i := range int64(10) {
			off := i*390_000 + 1
			p := noise(2000)
			copy(shadow[off:], p)
			if err := c.WriteAt(ctx, p, off, false); err != nil {
				return err
			}
		}
		clear(shadow[100_000:300_000])
		return c.Zero(ctx, 100_000, 200_000, true)
	})
}

// A store whose folder goes away in the middle harms nothing; three do.
func TestStoresRemoved(t *testing.T) {
	dir, err := os.MkdirTemp("", "cairn") //nolint:usetesting // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	r := &rig{tester: t, dir: dir}
	var stores []objstore.Store
	folder := func(i int) string { return filepath.Join(dir, "store"+string(rune('0'+i))) }
	for i := range 6 {
		s, serr := dirstore.Create(folder(i), dirstore.Options{})
		if serr != nil {
			t.Fatal(serr)
		}
		stores = append(stores, s)
	}
	r.init(stores)
	defer r.close()
	v := r.volume("disk", 64<<20)
	shadow := make([]byte, 64<<20)
	r.put(v, shadow, noise(30<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	r.put(v, shadow, noise(30<<20), 10<<20)
	// In the middle of the job: the folders go when it has begun to read.
	j, err := r.agent.CreateBackup(t.Context(), CreateBackup{Volume: "disk", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	removed := 0
	j, err = r.agent.WaitJob(t.Context(), j.ID, func(j Job) {
		for ; removed < 3 && j.Progress.Read > 0; removed++ {
			if ierr := os.Rename(folder(removed), folder(removed)+".away"); ierr != nil {
				t.Error(ierr)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if j.State == JobSucceeded && removed == 3 {
		t.Log("the job was done before the folders were gone")
	}
	if j.State != JobSucceeded {
		failed, err := r.agent.Backup(t.Context(), j.Backup)
		if err != nil || failed.Status != BackupError || failed.FailReason == "" {
			t.Errorf("%+v, %v", failed, err)
		}
	}
	for i := range removed {
		if err := os.Rename(folder(i)+".away", folder(i)); err != nil {
			t.Fatal(err)
		}
	}
	_ = b
	r.same(r.backup(CreateBackup{Volume: "disk", Incremental: true}), shadow)
	// One is away: the backup is made, and says what is owed.
	if err := os.Rename(folder(0), folder(0)+".away"); err != nil {
		t.Fatal(err)
	}
	r.scatter(v, shadow, 30)
	owing := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(owing, shadow)
	if !strings.Contains(owing.Warning, "owed") {
		t.Errorf("one store away: %+v", owing)
	}
}

// What was deleted comes out of the trash, is listed at once, and again after
// the agent starts anew; the next incremental starts from what it can.
func TestUndelete(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 4<<20)
	shadow := make([]byte, 4<<20)
	r.put(v, shadow, noise(1<<20), 0)
	one := r.backup(CreateBackup{Volume: "disk", Name: "one"})
	old := slices.Clone(shadow)
	if _, err := r.agent.Undelete(ctx, one.ID); !errors.Is(err, ErrConflict) {
		t.Errorf("undelete of what is not deleted: %v", err)
	}
	if err := r.agent.DeleteBackup(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	l, err := r.agent.Trash(ctx)
	if err != nil || len(l) != 1 || l[0].ID != one.ID {
		t.Fatalf("%+v, %v", l, err)
	}
	b, err := r.agent.Undelete(ctx, "one")
	if err != nil || b.ID != one.ID || b.Status != BackupAvailable || b.BytesStored != one.BytesStored {
		t.Fatalf("%+v, %v", b, err)
	}
	if l, err = r.agent.Trash(ctx); err != nil || len(l) != 0 {
		t.Errorf("%+v, %v", l, err)
	}
	r.same(b, old)
	r.put(v, shadow, noise(1<<20), 1<<20)
	two := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(two, shadow)
	r.stopAgent()
	r.startAgent()
	if b, err = r.agent.Backup(ctx, one.ID); err != nil || b.Status != BackupAvailable {
		t.Errorf("%+v, %v", b, err)
	}
	r.same(b, old)
}

// What is undeleted is wanted, also if somebody asked for its deletion with force and the
// record of that is still there.
func TestUndeleteUnwanted(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	b := r.backup(CreateBackup{Volume: v.ID, Name: "one"})
	cat, err := catalog.Open(ctx, filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	// As an agent leaves it that is killed behind the tombstone.
	if err = errors.Join(r.repo.Delete(ctx, b.ID), cat.SetBackupStatus(ctx, b.ID, catalog.Available, catalog.Deleting), cat.UnwantBackup(ctx, b.ID, catalog.Deleting)); err != nil {
		t.Fatal(err)
	}
	if _, err = r.agent.Undelete(ctx, b.ID); err != nil {
		t.Fatal(err)
	}
	if got, berr := cat.Backup(ctx, b.ID); berr != nil || got.Unwanted || got.Status != catalog.Available {
		t.Errorf("undeleted, it is %s, unwanted %v, %v", got.Status, got.Unwanted, berr)
	}
	r.stopAgent()
	r.startAgent() // drops what is unwanted
	r.backup(CreateBackup{Volume: v.ID, Name: "two"})
	if l, lerr := r.repo.Trash(ctx); lerr != nil || len(l) != 0 {
		t.Errorf("it is in the trash again: %v, %v", l, lerr)
	}
	if got, berr := r.agent.Backup(ctx, "one"); berr != nil || got.Status != BackupAvailable || got.Unwanted {
		t.Errorf("later it is %s, unwanted %v, %v", got.Status, got.Unwanted, berr)
	}
}
