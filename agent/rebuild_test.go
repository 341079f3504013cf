package agent

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// A record that the catalog lost while the agent runs comes back from the repository, as
// it was; those that are there stay as they are.
func TestRebuildCatalog(t *testing.T) {
	r := testRig(t)
	v := r.volume("web", 4<<20)
	r.put(v, make([]byte, 4<<20), []byte("content"), 0)
	ctx := context.Background()
	var made []Backup
	for _, name := range []string{"lost", "kept"} {
		j, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "web", Name: name, Description: "of the web"})
		if err == nil {
			j, err = r.agent.WaitJob(ctx, j.ID, nil)
		}
		if err != nil || j.State != JobSucceeded {
			t.Fatal(j, err)
		}
		b, err := r.agent.Backup(ctx, j.Backup)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, b)
	}
	cat, err := catalog.Open(ctx, filepath.Join(r.dir, "agent", "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer cat.Close()
	if err = cat.RemoveBackup(ctx, made[0].ID); err != nil {
		t.Fatal(err)
	}
	if l, lerr := r.agent.Backups(ctx); lerr != nil || len(l) != 1 {
		t.Fatalf("%d backups behind the loss, %v", len(l), lerr)
	}
	for _, want := range []int{1, 0} {
		if got, gerr := r.agent.RebuildCatalog(ctx); gerr != nil || got.Found != want {
			t.Errorf("found %d, %v, want %d", got.Found, gerr, want)
		}
	}
	for _, want := range made {
		got, gerr := r.agent.Backup(ctx, want.ID)
		if gerr != nil || got.Name != want.Name || got.Description != want.Description || got.Status != BackupAvailable || got.Size != want.Size ||
			got.BytesStored != want.BytesStored || got.Checkpoint != want.Checkpoint || !got.DataTime.Equal(want.DataTime) || string(got.VolumeNotes) != string(want.VolumeNotes) {
			t.Errorf("got %+v, %v\nwas %+v", got, gerr, want)
		}
	}
}
