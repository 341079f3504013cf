package agent

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// losePacks drops the shards that some stores have.
func (r *rig) losePacks(ctx context.Context, stores ...int) {
	r.Helper()
	for _, i := range stores {
		mem, ok := r.stores[i].Store.(*memstore.Store)
		if !ok {
			r.Fatal("the store is none in memory")
		}
		for _, name := range mem.Names() {
			if !strings.HasPrefix(name, "packs/") {
				continue
			}
			if err := mem.Delete(ctx, name); err != nil {
				r.Fatal(err)
			}
		}
	}
}

// What is lost for good is read from the volume again by the next incremental,
// although nothing changed in it, and by the first backup of another volume with the
// same content.
func TestHeal(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 8<<20)
	shadow := make([]byte, 8<<20)
	r.put(v, shadow, noise(1<<20), 0)
	r.put(v, shadow, noise(1<<18), 4<<20)
	first := r.backup(CreateBackup{Volume: "disk"})
	r.losePacks(ctx, 0, 1, 4)
	rep, err := r.repo.Check(ctx, repository.CheckOptions{ReadData: true, Publish: true})
	if err != nil || rep.Beyond == 0 || rep.Unpublished != "" || rep.Backups[0].Restorable {
		t.Fatalf("%+v, %v", rep, err)
	}
	second := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	if !second.Incremental || second.Parent != first.ID || second.BytesRead != 5<<18 || second.BytesNew != 5<<18 {
		t.Errorf("%+v", second)
	}
	r.same(second, shadow)
	twin := r.volume("twin", 8<<20)
	r.put(twin, make([]byte, 8<<20), shadow, 0)
	other := r.backup(CreateBackup{Volume: "twin"})
	if other.BytesNew != 0 {
		t.Errorf("the healed content is not found: %+v", other)
	}
	r.same(other, shadow)
	rep, err = r.repo.Check(ctx, repository.CheckOptions{ReadData: true, Publish: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range rep.Backups {
		if b.Restorable != (b.Backup.ID != first.ID) {
			t.Errorf("backup %s: %+v", b.Backup.ID, b)
		}
	}
	// Nothing is left to be healed: an incremental is as cheap as ever.
	third := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	if third.BytesRead != 0 || third.BytesNew != 0 {
		t.Errorf("%+v", third)
	}
	r.same(third, shadow)
}

// The scrub finds what is lost, and publishes it.
func TestScrubPublishes(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	shadow := make([]byte, 1<<20)
	r.put(v, shadow, noise(1<<18), 0)
	r.backup(CreateBackup{Volume: "disk"})
	r.losePacks(ctx, 1, 2, 3)
	r.stopAgent()
	r.scrub = Scrub{Every: scrubParts * 20 * time.Millisecond}
	r.startAgent()
	r.until("damage", func() bool {
		st, err := r.agent.Status(ctx)
		return err == nil && st.Scrub != nil && strings.Contains(st.Scrub.Problem, "cannot be restored")
	})
	healed := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	if healed.BytesRead != 1<<18 {
		t.Errorf("%+v", healed)
	}
	r.same(healed, shadow)
}
