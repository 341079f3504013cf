package qemu

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// TestOthersRefused: while a snapshot lasts qemu refuses other programs what would
// exchange the disk below the filter, and the snapshot is none the worse for it. After
// it all that works again.
func TestOthersRefused(t *testing.T) {
	g := newGuest(t, guestOptions{})
	g.write(1, 0, 2*block)
	g.command("blockdev-add", map[string]any{"driver": "null-co", "node-name": "moved", "size": g.size}, nil)
	s := g.snapshot(SnapshotOptions{ID: "one"})
	want := bytes.Clone(g.model)
	others := []struct {
		command string
		args    map[string]any
	}{
		{"block_resize", map[string]any{"node-name": "disk", "size": g.size}},
		{"blockdev-mirror", map[string]any{"job-id": "move", "device": "disk", "target": "moved", "sync": "full"}},
		{"blockdev-snapshot-sync", map[string]any{
			"node-name": "disk", "snapshot-file": filepath.Join(g.dir, "overlay"), "snapshot-node-name": "overlay",
		}},
	}
	for _, o := range others {
		if err := g.try(o.command, o.args, nil); !refused(err) {
			t.Errorf("%s during a snapshot: %v", o.command, err)
		}
	}
	g.write(2, block, block)
	if got, _ := read(t, s); !bytes.Equal(got, want) {
		t.Error("the snapshot is not what the disk was")
	}
	if err := g.disk.Verify(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
	g.drop(s.ID)
	for _, o := range others {
		if err := g.try(o.command, o.args, nil); err != nil {
			t.Errorf("%s after it: %v", o.command, err)
		}
		if o.command == "blockdev-mirror" {
			g.command("job-cancel", map[string]any{"id": "move"}, nil)
			g.awaitJob("") // in an I/O thread it takes a while
		}
	}
	// An overlay makes it another disk.
	info, err := g.disk.Info(t.Context())
	if err != nil || info.Node != "overlay" {
		t.Errorf("got %+v, %v", info, err)
	}
}

// TestOthersBackup: another program's backup that begins during a snapshot has its filter
// below ours, and keeps it when ours goes: it sees every write of the guest.
func TestOthersBackup(t *testing.T) {
	g := newGuest(t, guestOptions{})
	g.write(1, 0, 4*block)
	before := g.traces()
	s := g.snapshot(SnapshotOptions{ID: "one"})
	want := bytes.Clone(g.model)
	kept := filepath.Join(g.dir, "kept")
	if err := os.WriteFile(kept, make([]byte, g.size), 0o600); err != nil {
		t.Fatal(err)
	}
	g.command("blockdev-add", map[string]any{
		"driver": "raw", "node-name": "kept", "file": map[string]any{"driver": "file", "filename": kept},
	}, nil)
	g.command("blockdev-backup", map[string]any{"job-id": "backup", "device": "disk", "target": "kept", "sync": "none"}, nil)
	g.write(2, block, block)
	if got, _ := read(t, s); !bytes.Equal(got, want) {
		t.Error("the snapshot is not what the disk was")
	}
	g.drop(s.ID)
	g.write(3, 2*block, block)
	got, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got[block:3*block], want[block:3*block]) {
		t.Error("the other's backup missed a write")
	}
	g.command("job-cancel", map[string]any{"id": "backup"}, nil)
	g.awaitJob("")
	g.command("blockdev-del", map[string]any{"node-name": "kept"}, nil)
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestBlockJob: while a job copies what the guest writes, a filter below the device would
// take it away from the job.
func TestBlockJob(t *testing.T) {
	g := newGuest(t, guestOptions{})
	g.write(1, 0, 2*block)
	g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	g.drop("one")
	moved := filepath.Join(g.dir, "moved")
	if err := os.WriteFile(moved, make([]byte, g.size), 0o600); err != nil {
		t.Fatal(err)
	}
	g.command("blockdev-add", map[string]any{
		"driver": "raw", "node-name": "moved", "file": map[string]any{"driver": "file", "filename": moved},
	}, nil)
	g.command("blockdev-mirror", map[string]any{"job-id": "move", "device": "disk", "target": "moved", "sync": "full"}, nil)
	g.awaitJob("ready")
	before := g.traces()
	if _, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "two"}); !errors.Is(err, ErrBusy) {
		t.Errorf("during the job: %v", err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	g.write(2, block, 2*block)
	g.command("job-complete", map[string]any{"id": "move"}, nil)
	g.awaitJob("")
	s := g.snapshot(SnapshotOptions{ID: "two", Since: []string{"c1"}})
	if got, _ := read(t, s); !bytes.Equal(got, g.model) || s.Lost["c1"] == "" {
		t.Errorf("the disk after the move: %v", s.Lost)
	}
}

// awaitJob waits until the only block job has a status; "" is that it is gone.
func (g *guest) awaitJob(status string) {
	g.tb.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		var jobs []struct{ Status string }
		var now string
		if g.command("query-jobs", nil, &jobs); len(jobs) > 0 {
			now = jobs[0].Status
		}
		switch {
		case now == status:
			return
		case time.Now().After(end):
			g.tb.Fatalf("the block job is %q for a minute, not %q", now, status)
		}
	}
}

// TestOthersBitmaps: what is not ours is left alone.
func TestOthersBitmaps(t *testing.T) {
	g := newGuest(t, guestOptions{})
	for _, name := range []string{"libvirt-1", "cairn-vol2-c1@4194304", "cairn-vol1-c1", "cairn-vol1-c1@x"} {
		g.command("block-dirty-bitmap-add", map[string]any{"node": "disk", "name": name}, nil)
	}
	before := g.traces()
	g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	none := func(string) bool { return false }
	if err := g.disk.Sweep(t.Context(), none, none); err != nil {
		t.Error(err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestCrowd: all who want the monitor get their turn.
func TestCrowd(t *testing.T) {
	g := newGuest(t, guestOptions{})
	var group errgroup.Group
	for range 16 {
		group.Go(func() error {
			info, err := g.disk.Info(t.Context())
			if err == nil && info.Node != "disk" {
				err = errors.New("another disk: " + info.Node)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
