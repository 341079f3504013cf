package agent

import (
	"context"
	"errors"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// oneSnapshot is a data plane with one snapshot.
type oneSnapshot struct {
	control

	name    string
	deleted bool
}

// Snapshot returns it.
func (o *oneSnapshot) Snapshot(_ context.Context, ref string) (Snapshot, error) {
	if ref != o.name || o.deleted {
		return Snapshot{}, refuse(CodeNotFound, "there is no %s", ref)
	}
	return Snapshot{Name: o.name, Volume: "web"}, nil
}

// DeleteSnapshot deletes it.
func (o *oneSnapshot) DeleteSnapshot(_ context.Context, ref string) error {
	o.deleted = ref == o.name
	return nil
}

// foreignMon is a set with one volume, mon, an export of qemu-nbd's.
func foreignMon(t *testing.T) *source.Set {
	t.Helper()
	foreign, err := source.Open(vfs.NewMem(), "/sources")
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/disk"
	if err = vfs.WriteFile(vfs.OS(), file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = foreign.Create(t.Context(), source.Record{Name: "mon", Kind: source.KindNBD, URI: otherServers["qemu-nbd"](t, t.TempDir(), file)}); err != nil {
		t.Fatal(err)
	}
	return foreign
}

// TestSnapshotNamedAsForeignVolume: names of snapshots are no names of volumes.
func TestSnapshotNamedAsForeignVolume(t *testing.T) {
	ctx, foreign := t.Context(), foreignMon(t)
	plane := &oneSnapshot{name: "mon"}
	r := &router{control: plane, foreign: foreign}
	if x, xerr := r.Snapshot(ctx, "mon"); xerr != nil || x.Volume != "web" {
		t.Errorf("%+v, %v", x, xerr)
	}
	if err := r.DeleteSnapshot(ctx, "mon"); err != nil || !plane.deleted {
		t.Errorf("%v, deleted %t", err, plane.deleted)
	}
}

// TestReleaseForeign: what something else serves is kept whole, and nobody is asked.
func TestReleaseForeign(t *testing.T) {
	ctx, foreign := t.Context(), foreignMon(t)
	r := &router{foreign: foreign}
	l, err := r.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"mon"}, Name: "b", Temporary: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err = r.ReleaseSnapshot(ctx, l[0].ID, 1<<20); !errors.Is(err, serve.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
