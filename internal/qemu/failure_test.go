package qemu

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

// TestFullFleece: where what the guest overwrites finds no room, the snapshot breaks,
// says so, and the guest writes on.
func TestFullFleece(t *testing.T) {
	g := newGuest(t, guestOptions{})
	mount := needs.Tool(t, "mount", "mount")
	if out, err := exec.CommandContext(t.Context(), mount, "-t", "tmpfs", "-o", "size=1m", "cairn-test", g.disk.Dir).CombinedOutput(); err != nil {
		needs.Missing(t, "needs the right to mount a tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		g.kill() // it has a file there
		if out, err := exec.CommandContext(ctx, "umount", g.disk.Dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	g.write(1, 0, g.size)
	before := g.traces()
	s := g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	want := bytes.Clone(g.model)
	g.write(2, 0, 2*block)
	if got, _ := read(t, s); !bytes.Equal(got, want) {
		t.Error("the snapshot is not what the disk was")
	}
	if err := g.disk.Verify(t.Context(), "one"); err != nil {
		t.Errorf("while there is room: %v", err)
	}
	for off := int64(0); off < g.size; off += 4 * block {
		g.write(3, off, 4*block)
	}
	err := g.disk.Verify(t.Context(), "one")
	if !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "no room") {
		t.Errorf("when it is full: %v", err)
	}
	var status struct{ Running bool }
	g.command("query-status", nil, &status)
	if !status.Running {
		t.Error("the guest was stopped")
	}
	g.drop("one")
	// What is tracked is not harmed by that.
	s = g.snapshot(SnapshotOptions{ID: "two", Since: []string{"c1"}})
	got, dirty := read(t, s)
	if !bytes.Equal(got, g.model) || len(dirtyBlocks(dirty["c1"])) != int(g.size/block) {
		t.Error("the next snapshot is not what the disk is")
	}
	if err := g.disk.Sweep(t.Context(), func(string) bool { return false }, func(string) bool { return false }); err != nil {
		t.Error(err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestGuestEnds: a qemu that is gone is told apart, and leaves nothing to clean up.
func TestGuestEnds(t *testing.T) {
	g := newGuest(t, guestOptions{format: "qcow2"})
	g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	g.kill()
	if err := g.disk.Verify(t.Context(), "one"); !errors.Is(err, ErrUnreachable) || !errors.Is(err, ErrEnded) {
		t.Errorf("verify: %v", err)
	}
	if _, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "two"}); !errors.Is(err, ErrEnded) {
		t.Errorf("snapshot: %v", err)
	}
	g.drop("one")
	if left, err := os.ReadDir(g.disk.Dir); err != nil || len(left) > 0 {
		t.Errorf("in the folder are %v, %v", left, err)
	}
	g.start()
	if err := g.disk.Verify(t.Context(), "one"); !errors.Is(err, ErrNoSnapshot) {
		t.Errorf("verify after the restart: %v", err)
	}
	g.drop("one")
	if err := os.Remove(g.disk.Monitor); err != nil {
		t.Fatal(err)
	}
	if _, err := g.disk.Info(t.Context()); !errors.Is(err, ErrEnded) || !strings.Contains(err.Error(), "-qmp") {
		t.Errorf("without a monitor: %v", err)
	}
}

// TestMonitorBusy: another client has it.
func TestMonitorBusy(t *testing.T) {
	g := newGuest(t, guestOptions{})
	m, err := openMonitor(t.Context(), g.disk.Monitor, dialUnix, greetingLimit)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err = g.disk.Info(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an impatient caller: %v", err)
	}
	g.disk.patience = 50 * time.Millisecond
	if _, err = g.disk.Info(t.Context()); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "libvirt") {
		t.Errorf("busy: %v", err)
	}
	if err = m.Close(); err != nil {
		t.Fatal(err)
	}
	g.disk.patience = 0
	if _, err = g.disk.Info(t.Context()); err != nil {
		t.Errorf("free again: %v", err)
	}
}

// TestRefusals: what cannot be snapshotted is a sentence, and changes nothing.
func TestRefusals(t *testing.T) {
	g := newGuest(t, guestOptions{args: []string{"-device", "ide-cd,id=cd0", "-drive", "if=none,id=old,file=null-co://,format=raw"}})
	g.snapshot(SnapshotOptions{ID: "there", Checkpoint: "c1"})
	before := g.traces()
	for _, c := range []struct {
		name   string
		change func(*Disk, *SnapshotOptions)
		want   string
		is     error
	}{
		{"the same again", func(_ *Disk, o *SnapshotOptions) { o.ID = "there" }, "has a snapshot there", nil},
		{"the same checkpoint", func(_ *Disk, o *SnapshotOptions) { o.Checkpoint = "c1" }, "has a checkpoint c1", nil},
		{"a bad ID", func(_ *Disk, o *SnapshotOptions) { o.ID = "a b" }, `"a b" cannot be`, nil},
		{"a bad checkpoint", func(_ *Disk, o *SnapshotOptions) { o.Since = []string{""} }, `"" cannot be`, nil},
		{"a bad tag", func(d *Disk, _ *SnapshotOptions) { d.Tag = "x-y" }, "tag", nil},
		{"no such disk", func(d *Disk, _ *SnapshotOptions) { d.Node = "d9" }, `no disk d9`, ErrNoDisk},
		{"a node below", func(d *Disk, _ *SnapshotOptions) { d.Node = "file" }, `["disk"]`, ErrNoDisk},
		{"no medium", func(d *Disk, _ *SnapshotOptions) { d.Node = "cd0" }, "no medium", ErrNoDisk},
		{"no device", func(d *Disk, _ *SnapshotOptions) { d.Node = "old" }, "no device of the guest has it", ErrNoDisk},
		{"a relative path", func(d *Disk, _ *SnapshotOptions) { d.Dir = "x" }, "absolute", nil},
		{"no folder", func(d *Disk, _ *SnapshotOptions) { d.Dir += "/gone" }, "no such file", nil},
		{"a long folder", func(d *Disk, _ *SnapshotOptions) {
			d.Dir += strings.Repeat("/x", 50)
		}, "too long", nil},
		{"another monitor of the same qemu", func(d *Disk, _ *SnapshotOptions) { d.Monitor = filepath.Join(g.dir, "guest") }, "only NBD server", ErrBusy},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, o := *g.disk, SnapshotOptions{ID: "new", Checkpoint: "c2"}
			c.change(&d, &o)
			_, err := d.Snapshot(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v", err)
			}
			if after := g.traces(); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
		})
	}
}

// TestOtherWriter: who writes to the disk past the device would write past the snapshot.
func TestOtherWriter(t *testing.T) {
	g := newGuest(t, guestOptions{device: "virtio-blk-pci,id=d0,drive=disk,share-rw=on"})
	g.command("nbd-server-start", map[string]any{"addr": map[string]any{
		"type": "unix", "data": map[string]any{"path": filepath.Join(g.dir, "other")},
	}}, nil)
	_, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "one"})
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "NBD server") {
		t.Errorf("with another's server: %v", err)
	}
	g.command("nbd-server-stop", nil, nil)
	s := g.snapshot(SnapshotOptions{ID: "one"})
	g.drop(s.ID)

	g.command("device_add", map[string]any{"driver": "virtio-blk-pci", "id": "d1", "drive": "disk", "share-rw": true}, nil)
	before := g.traces()
	if _, err = g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "two"}); !errors.Is(err, ErrNoDisk) && !errors.Is(err, ErrState) {
		t.Errorf("with two devices: %v", err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestStates: a guest that stands still can be read; one that is elsewhere cannot. One
// with a snapshot does not go: the migration fails, the guest goes on.
func TestStates(t *testing.T) {
	g := newGuest(t, guestOptions{format: "qcow2"})
	g.write(1, 0, block)
	g.command("stop", nil, nil)
	s := g.snapshot(SnapshotOptions{ID: "paused"})
	if got, _ := read(t, s); !bytes.Equal(got, g.model) {
		t.Error("the snapshot is not what the disk is")
	}
	g.drop("paused")
	g.command("cont", nil, nil)

	s = g.snapshot(SnapshotOptions{ID: "stays"})
	want := bytes.Clone(g.model)
	if status := g.migrate(); status != "failed" {
		t.Errorf("the migration of a guest with a snapshot: %s", status)
	}
	g.write(2, 0, block)
	if got, _ := read(t, s); !bytes.Equal(got, want) {
		t.Error("the snapshot is not what the disk was")
	}
	if err := g.disk.Verify(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
	g.drop(s.ID)

	if status := g.migrate(); status != "completed" {
		t.Errorf("the migration: %s", status)
	}
	before := g.traces()
	if _, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "gone"}); !errors.Is(err, ErrState) {
		t.Errorf("after the migration: %v", err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// migrate sends the guest nowhere, and returns what came of it.
func (g *guest) migrate() string {
	g.tb.Helper()
	g.command("migrate", map[string]any{"uri": "exec:cat > /dev/null"}, nil)
	var q struct{ Status string }
	for end := time.Now().Add(time.Minute); q.Status != "failed" && q.Status != "completed"; time.Sleep(5 * time.Millisecond) {
		g.command("query-migrate", nil, &q)
		if time.Now().After(end) {
			g.tb.Fatalf("the migration hangs in %s", q.Status)
		}
	}
	return q.Status
}

// TestMigration: while one goes on there are no snapshots.
func TestMigration(t *testing.T) {
	g := newGuest(t, guestOptions{})
	g.command("migrate-set-parameters", map[string]any{"max-bandwidth": 1}, nil) // before it is over
	g.command("migrate", map[string]any{"uri": "exec:cat > /dev/null"}, nil)
	if _, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "one"}); !errors.Is(err, ErrState) {
		t.Errorf("during the migration: %v", err)
	}
}

// TestResize: not while a snapshot lasts; and earlier checkpoints say nothing then: qemu
// does not take the new area for changed.
func TestResize(t *testing.T) {
	g := newGuest(t, guestOptions{format: "qcow2"})
	g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	resize := func() error {
		return g.try("block_resize", map[string]any{"node-name": "disk", "size": 2 * g.size}, nil)
	}
	if err := resize(); !refused(err) {
		t.Errorf("during a snapshot: %v", err)
	}
	g.drop("one")
	if err := resize(); err != nil {
		t.Fatal(err)
	}
	s := g.snapshot(SnapshotOptions{ID: "two", Checkpoint: "c2", Since: []string{"c1"}})
	if s.Size != 2*g.size || !strings.Contains(s.Lost["c1"], "resized") {
		t.Errorf("got %+v", s)
	}
	g.drop("two")
	info, err := g.disk.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(info.Checkpoints) != 1 || info.Checkpoints[0].Name != "c2" || info.Checkpoints[0].Fault != "" {
		t.Errorf("checkpoints are %+v", info.Checkpoints)
	}
}

// TestUnplug: the guest gives the disk away while a snapshot lasts.
func TestUnplug(t *testing.T) {
	g := newGuest(t, guestOptions{device: "scsi-hd,id=d0,drive=disk", args: []string{"-device", "virtio-scsi-pci"}})
	g.write(1, 0, block)
	g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	g.command("device_del", map[string]any{"id": "d0"}, nil)
	g.await(func(v *view) bool { return len(v.devices) == 0 || v.devices[0].Inserted == nil })
	if err := g.disk.Verify(t.Context(), "one"); !errors.Is(err, ErrBroken) {
		t.Errorf("verify: %v", err)
	}
	if _, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "two"}); !errors.Is(err, ErrNoDisk) {
		t.Errorf("another: %v", err)
	}
	g.drop("one")
	g.await(func(v *view) bool { return len(v.nodes) == 2 && len(v.exports) == 0 })
	g.command("blockdev-del", map[string]any{"node-name": "disk"}, nil)
}

// await waits until qemu looks a certain way.
func (g *guest) await(fn func(*view) bool) {
	g.tb.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		m, err := openMonitor(g.tb.Context(), filepath.Join(g.dir, "guest"), dialUnix, greetingLimit)
		if err != nil {
			g.tb.Fatal(err)
		}
		v, err := look(g.tb.Context(), m)
		if err = errors.Join(err, m.Close()); err != nil {
			g.tb.Fatal(err)
		}
		if fn(v) {
			return
		}
		if time.Now().After(end) {
			g.tb.Fatalf("qemu stays as it is: %+v", v)
		}
	}
}

// TestTwoVolumes: those of one guest share the NBD server, and leave each other alone.
func TestTwoVolumes(t *testing.T) {
	g := newGuest(t, guestOptions{args: []string{
		"-blockdev", "driver=null-co,node-name=other,size=1048576,read-zeroes=on", "-device", "virtio-blk-pci,id=d1,drive=other",
	}})
	before := g.traces()
	other := *g.disk
	other.Node, other.Tag = "other", "vol2"
	g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	s, err := other.Snapshot(t.Context(), SnapshotOptions{ID: "two", Checkpoint: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	none := func(string) bool { return false }
	if err := g.disk.Sweep(t.Context(), none, none); err != nil {
		t.Error(err)
	}
	if got, _ := read(t, s); !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Error("the other's snapshot is not what its disk was")
	}
	if err := other.Verify(t.Context(), "two"); err != nil {
		t.Error(err)
	}
	if err := other.Sweep(t.Context(), none, none); err != nil {
		t.Error(err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestAround: the instant is within, and what that fails with fails the snapshot.
func TestAround(t *testing.T) {
	g := newGuest(t, guestOptions{})
	before := g.traces()
	failed := errors.New("cannot be thawed")
	for name, around := range map[string]func(context.Context, func(context.Context) error) error{
		"not frozen": func(context.Context, func(context.Context) error) error { return failed },
		"not thawed": func(ctx context.Context, fn func(context.Context) error) error { return errors.Join(fn(ctx), failed) },
	} {
		_, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "one", Checkpoint: "c1", Around: around})
		if !errors.Is(err, failed) {
			t.Errorf("%s: %v", name, err)
		}
		if after := g.traces(); after != before {
			t.Errorf("%s, before:\n%safter:\n%s", name, before, after)
		}
	}
	_, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "one", Around: func(context.Context, func(context.Context) error) error { return nil }})
	if err == nil {
		t.Error("a snapshot that nobody took")
	}
}

// TestNoMonitor: what else may listen on a socket.
func TestNoMonitor(t *testing.T) {
	for name, says := range map[string]string{
		"nothing":        "",
		"no JSON":        "QEMU 7.2 monitor - type 'help' for more information\n(qemu) \n",
		"no greeting":    "{\"return\": {}}\n",
		"no end of line": `{"QMP": {}`,
		"too long":       `{"QMP": "` + strings.Repeat("x", maxLine) + "\"}\n",
		"null":           "null\n",
		"other answers":  "{\"QMP\": {}}\n{\"return\": {}, \"id\": 7}\n",
		"half an answer": "{\"QMP\": {}}\n{\"id\": 1}\n",
		"only events":    "{\"QMP\": {}}\n" + strings.Repeat("{\"event\": \"X\"}\n", maxSkipped+1),
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "q")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				c, accepting := l.Accept()
				if accepting != nil {
					t.Error(accepting)
					return
				}
				_, _ = c.Write([]byte(says)) // the client may have had enough
				_ = c.Close()
			}()
			m, err := openMonitor(t.Context(), socket, dialUnix, greetingLimit)
			if err == nil {
				err = errors.New("taken for a monitor")
				if m.Close() == nil {
					t.Error(err)
				}
			}
			if !errors.Is(err, ErrUnreachable) {
				t.Error(err)
			}
			<-done
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
