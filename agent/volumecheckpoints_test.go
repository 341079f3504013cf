package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// dirty is which blocks of 64 KiB an export says to have changed since a checkpoint.
func (r *rig) dirty(uri, checkpoint string) string {
	r.Helper()
	name := nbd.ContextDirtyBitmap + checkpoint
	c, err := nbd.Dial(context.Background(), uri, nbd.ClientOptions{Contexts: []string{name}})
	if err != nil {
		r.Fatal(err)
	}
	l, err := c.Map(context.Background(), name, 0, c.Size())
	if err = errors.Join(err, c.Close()); err != nil {
		r.Fatal(err)
	}
	var blocks []string
	for _, e := range l {
		for off := e.Offset; off < e.End() && e.State&blockmap.Dirty != 0; off += 1 << 16 {
			blocks = append(blocks, strconv.FormatInt(off>>16, 10))
		}
	}
	return strings.Join(blocks, " ")
}

// owners lists a volume's checkpoints and whose they are.
func (r *rig) owners(volume string) string {
	r.Helper()
	l, err := r.agent.Checkpoints(context.Background(), volume)
	if err != nil {
		r.Fatal(err)
	}
	var out []string
	for _, c := range l {
		if c.Doubt != "" || c.DirtyBytes == nil || c.Warning != "" {
			r.Errorf("%+v", c)
		}
		out = append(out, c.Name+"="+c.Owner+c.Backup)
	}
	return strings.Join(out, " ")
}

// TestCheckpointsOfOthers: what others count changes from stays, exact, whatever Cairn's
// backups, their deletion and the tidying do; and theirs are in no backup's way.
func TestCheckpointsOfOthers(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v, shadow := r.volume("disk", 1<<20), make([]byte, 1<<20)
	put := func(block int64) {
		t.Helper()
		r.put(v, shadow, noise(1<<16), block<<16)
	}
	put(0)
	got, err := r.agent.CreateCheckpoint(ctx, "disk", "tape")
	if err != nil || got.Name != "tape" || got.Owner != OwnerOther || got.Doubt != "" {
		t.Fatalf("%+v, %v", got, err)
	}
	full := r.backup(CreateBackup{Volume: "disk"})
	put(1)
	var last []Backup
	for i := range int64(4) { // more than the tidying keeps
		put(2 + i)
		last = append(last, r.backup(CreateBackup{Volume: "disk", Incremental: true}))
	}
	pair, err := r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Name: "s", Checkpoints: []string{"tape2"}})
	if err != nil {
		t.Fatal(err)
	}
	then := slices.Clone(shadow)
	put(8)
	r.equal("the snapshot", r.read(pair[0].URI), then)
	for _, c := range []struct{ what, uri, since, want string }{
		{"volume", nbd.URI(v.Socket, "disk@ro"), "tape", "1 2 3 4 5 8"},
		{"volume", nbd.URI(v.Socket, "disk@ro"), "tape2", "8"},
		{"snapshot", pair[0].URI, "tape", "1 2 3 4 5"},
		{"snapshot", pair[0].URI, "tape2", ""},
	} {
		if got := r.dirty(c.uri, c.since); got != c.want {
			t.Errorf("%s since %s: dirty %q, want %q", c.what, c.since, got, c.want)
		}
	}
	want := fmt.Sprintf("tape=other %s=cairn%[1]s %s=cairn%[2]s tape2=other", last[2].ID, last[3].ID)
	r.until("tidying", func() bool { return r.owners("disk") == want })

	// Deleting all backups leaves others' alone, also over a restart of both.
	for _, b := range append(last, full) {
		if err := r.agent.DeleteBackup(ctx, b.ID); err != nil {
			t.Fatal(err)
		}
	}
	r.until("tidying", func() bool { return r.owners("disk") == "tape=other tape2=other" })
	r.stopAgent()
	r.stopServe()
	r.startServe()
	r.startAgent()
	if got := r.owners("disk") + " " + r.dirty(nbd.URI(v.Socket, "disk@ro"), "tape"); got != "tape=other tape2=other 1 2 3 4 5 8" {
		t.Errorf("after a restart: %s", got)
	}
	if err := r.agent.DeleteCheckpoint(ctx, "disk", "tape", false); err != nil {
		t.Fatal(err)
	}
	if got := r.owners("disk") + " " + r.dirty(nbd.URI(v.Socket, "disk@ro"), "tape2"); got != "tape2=other 8" {
		t.Errorf("without the other: %s", got)
	}
}

// TestCheckpointsOfCairn: those of backups go only by force, and the next incremental is
// right without.
func TestCheckpointsOfCairn(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v, shadow := r.volume("disk", 1<<20), make([]byte, 1<<20)
	r.put(v, shadow, noise(1<<20), 0)
	full := r.backup(CreateBackup{Volume: "disk"})
	if err := r.agent.DeleteCheckpoint(ctx, "disk", full.ID, false); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("without force: %v", err)
	}
	if err := r.agent.DeleteCheckpoint(ctx, "disk", full.ID, true); err != nil {
		t.Fatal(err)
	}
	if got := r.owners("disk"); got != "" {
		t.Errorf("left: %s", got)
	}
	r.put(v, shadow, noise(4096), 1<<16)
	next := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(next, shadow)
	if next.Parent != full.ID || next.FullCompareReason == "" {
		t.Errorf("%+v", next)
	}
	// One of a backup that no catalog knows is Cairn's all the same.
	lost := uuid.NewString()
	if _, err := r.serve.CreateCheckpoint(ctx, "disk", lost); err != nil {
		t.Fatal(err)
	}
	if got, want := r.owners("disk"), fmt.Sprintf("%s=cairn%[1]s %s=cairn", next.ID, lost); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if err := r.agent.DeleteCheckpoint(ctx, "disk", lost, false); !errors.Is(err, ErrConflict) {
		t.Errorf("of a backup that is not known: %v", err)
	}
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"gone", r.agent.DeleteCheckpoint(ctx, "disk", full.ID, true), ErrNotFound},
		{"never there", r.agent.DeleteCheckpoint(ctx, "disk", "x", false), ErrNotFound},
		{"no volume", r.agent.DeleteCheckpoint(ctx, "none", "x", false), ErrNotFound},
		{"an ID", second(r.agent.CreateCheckpoint(ctx, "disk", uuid.NewString())), ErrInvalid},
		{"no name", second(r.agent.CreateCheckpoint(ctx, "disk", "a b")), ErrInvalid},
		{"an ID with a snapshot", second(r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"disk"}, Checkpoints: []string{uuid.NewString()}})), ErrInvalid},
		{"no volume to list", second(r.agent.Checkpoints(ctx, "none")), ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v", c.what, c.err)
		}
	}
}

// TestCheckpointOfOneMedium: a volume that another host has too gets no checkpoint for
// others, as these would miss what that host writes; one that was there says so.
func TestCheckpointOfOneMedium(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx, id := t.Context(), uuid.NewString()
	for _, r := range []*rig{a, b} {
		file := filepath.Join(r.dir, "lun")
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := r.serve.CreateVolume(ctx, serve.CreateVolume{ID: id, Name: "lun", File: file}); err != nil {
			t.Fatal(err)
		}
		if r == a {
			if _, err := a.agent.CreateCheckpoint(ctx, "lun", "before"); err != nil {
				t.Fatal(err)
			}
		}
		r.told(id)
	}
	if err := second(a.agent.CreateCheckpoint(ctx, "lun", "t")); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "host b has the volume too") {
		t.Error(err)
	}
	if err := second(a.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"lun"}, Checkpoints: []string{"t"}})); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	l, err := a.agent.Checkpoints(ctx, "lun")
	if err != nil || len(l) != 1 || !strings.Contains(l[0].Warning, "host b") {
		t.Errorf("%+v, %v", l, err)
	}
}
