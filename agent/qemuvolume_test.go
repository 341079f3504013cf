package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/source"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// TestLiveGuest: the disk of a running qemu is a volume, whose incrementals read what
// qemu's bitmap says, and everything, with the reason, when that is gone; nothing but the
// bitmaps of the kept checkpoints is left in qemu.
func TestLiveGuest(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	g := newQEMUGuest(t, "raw", 4<<20)
	g.write(7, 1<<20, 300<<10)
	v, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "guest", QMP: g.qmp(), Node: "disk"})
	if err != nil || v.Kind != "qemu" || v.Size != 4<<20 || !v.InUse || v.URI != "" {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err = r.agent.CreateBackup(ctx, CreateBackup{Volume: "guest"}); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "must use the force flag") {
		t.Errorf("without force: %v", err)
	}
	backup := func(incremental bool) Backup {
		t.Helper()
		b := r.backup(CreateBackup{Volume: "guest", Force: true, Incremental: incremental})
		r.same(b, g.model)
		if l := g.left(); len(l) > 0 {
			t.Errorf("left in qemu: %q", l)
		}
		return b
	}
	full := backup(false)
	g.write(9, 3<<20, 1)
	g.write(0, 1<<20, 64<<10)
	incr := backup(true)
	if incr.Parent != full.ID || incr.FullCompareReason != "" || incr.BytesChanged != 2<<16 || incr.BytesRead != 2<<16 || incr.Warning != "" {
		t.Errorf("by the bitmap: %+v", incr)
	}
	g.write(11, 2<<20, 70000)
	third := backup(true)
	if third.FullCompareReason != "" || third.BytesRead != 2<<16 {
		t.Errorf("again: %+v", third)
	}
	r.until("two bitmaps", func() bool { return len(g.bitmaps()) == keepCheckpoints })
	l, err := r.agent.Checkpoints(ctx, "guest")
	l = l[max(0, len(l)-keepCheckpoints):] // the record of a dropped one goes after its bitmap
	if err != nil || len(l) != keepCheckpoints || l[0].DirtyBytes == nil || *l[0].DirtyBytes != 2<<16 || l[1].DirtyBytes == nil || *l[1].DirtyBytes != 0 {
		t.Errorf("what changed since: %+v, %v", l, err)
	}

	g.kill()
	if v, err = r.agent.Volume(ctx, "guest"); err != nil || v.Status != "error" || !strings.Contains(v.Error, "guest") {
		t.Errorf("of a guest that ended: %+v, %v", v, err)
	}
	if _, err = r.agent.CreateBackup(ctx, CreateBackup{Volume: "guest", Force: true}); !errors.Is(err, ErrConflict) {
		t.Errorf("of a guest that ended: %v", err)
	}
	g.start()
	g.write(13, 0, 1)
	again := backup(true)
	if again.Parent != third.ID || !strings.Contains(again.FullCompareReason, "does not have this checkpoint any more") || again.BytesChanged != 1<<16 {
		t.Errorf("after kill -9: %+v", again)
	}
	g.write(15, 1<<16, 1)
	if last := backup(true); last.Parent != again.ID || last.FullCompareReason != "" || last.BytesRead != 1<<16 {
		t.Errorf("and by the bitmap again: %+v", last)
	}
	if err = r.agent.DeleteVolume(ctx, "guest"); err != nil || len(g.bitmaps()) > 0 || len(g.left()) > 0 {
		t.Errorf("deleted: %v, %q, %q", err, g.bitmaps(), g.left())
	}
}

// TestLiveGuestRefusals: what cannot be done with the disk of a running guest.
func TestLiveGuestRefusals(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	g := newQEMUGuest(t, "qcow2", 1<<20)
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "guest", QMP: g.qmp(), Node: "d0"}); err != nil {
		t.Fatal(err)
	}
	b := r.backup(CreateBackup{Volume: "guest", Force: true})
	create := func(req CreateVolume) error { req.Name = "x"; return second(r.agent.CreateVolume(ctx, req)) }
	for name, x := range map[string]struct {
		err  error
		want *Error
		text string
	}{
		"extend":    {second(r.agent.ExtendVolume(ctx, "guest", 2<<20)), ErrInvalid, "block_resize"},
		"reopen":    {second(r.agent.ReopenVolume(ctx, "guest")), ErrInvalid, "nothing to be reopened"},
		"export":    {second(r.agent.Export(ctx, Export{Ref: "guest"})), ErrInvalid, "has no address"},
		"restore":   {second(r.agent.Restore(ctx, Restore{Backup: b.ID, Volume: "guest"})), ErrInvalid, "its qemu has the disk"},
		"snapshot":  {second(r.agent.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"guest"}, Force: true})), ErrInvalid, "only be snapshotted for a backup"},
		"no socket": {create(CreateVolume{QMP: "/no/such", Node: "d0"}), ErrUnavailable, "is the guest running"},
		"no node":   {create(CreateVolume{QMP: g.qmp(), Node: "d7"}), nil, "no disk d7"},
	} {
		if x.err == nil || x.want != nil && !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v", name, x.err)
		}
	}
}

// TestLiveGuestCut: of a backup that is canceled, or whose agent ends, nothing is left in
// qemu, and the next one misses nothing.
func TestLiveGuestCut(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	g := newQEMUGuest(t, "raw", 4<<20)
	g.write(7, 0, 4<<20)
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "guest", QMP: g.qmp(), Node: "disk"}); err != nil {
		t.Fatal(err)
	}
	full := r.backup(CreateBackup{Volume: "guest", Force: true})
	for i, cut := range []func(j Job){
		func(j Job) {
			if _, err := r.agent.CancelJob(ctx, j.ID); err != nil {
				t.Error(err)
			}
			if j = r.wait(j, nil); j.State != JobCanceled {
				t.Errorf("%+v", j)
			}
		},
		func(Job) { r.stopAgent(); r.startAgent() },
	} {
		for off := 0; off < 4<<20; off += 1 << 16 {
			g.write(byte(off>>16+i+20), off, 4096) // nothing of it is known
		}
		began, release := r.hang()
		j, err := r.agent.CreateBackup(ctx, CreateBackup{Volume: "guest", Force: true, Incremental: true})
		if err != nil {
			t.Fatal(err)
		}
		<-began
		if len(g.left()) == 0 {
			t.Error("nothing is read from qemu")
		}
		g.write(byte(i+3), 5<<16, 1)
		go release()
		cut(j)
		r.until("a clean qemu", func() bool { return len(g.left()) == 0 })
		next := r.backup(CreateBackup{Volume: "guest", Force: true, Incremental: true})
		r.same(next, g.model)
		if next.FullCompareReason != "" || i == 0 && next.Parent != full.ID {
			t.Errorf("%+v", next)
		}
	}
}

// TestLiveGuestKilled: what an agent that was killed left in qemu the next one removes.
func TestLiveGuestKilled(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	g := newQEMUGuest(t, "raw", 1<<20)
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "guest", QMP: g.qmp(), Node: "disk"}); err != nil {
		t.Fatal(err)
	}
	full := r.backup(CreateBackup{Volume: "guest", Force: true})
	r.stopAgent()
	// Another set of the same records does what that agent did, and is never heard of again.
	killed, err := source.Open(vfs.OS(), filepath.Join(r.dir, "agent", "sources"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = killed.CreateSnapshots(ctx, CreateSnapshots{Volumes: []string{"guest"}, Name: "b", Temporary: true, Force: true}, nil); err != nil {
		t.Fatal(err)
	}
	if len(g.left()) == 0 {
		t.Fatal("nothing was left")
	}
	g.write(5, 0, 1)
	r.startAgent()
	r.until("a clean qemu", func() bool { return len(g.left()) == 0 })
	b := r.backup(CreateBackup{Volume: "guest", Force: true, Incremental: true})
	r.same(b, g.model)
	if b.Parent != full.ID || b.FullCompareReason != "" || b.BytesRead != 1<<16 {
		t.Errorf("%+v", b)
	}
}

// TestLiveGuestQuiesced: a guest is frozen for the instant of its snapshot, and its backup
// needs no force.
func TestLiveGuestQuiesced(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	g, h := newQEMUGuest(t, "raw", 1<<20), newStillHook(t)
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "guest", QMP: g.qmp(), Node: "disk", Quiesce: &Quiesce{Command: h.program}}); err != nil {
		t.Fatal(err)
	}
	if b := r.backup(CreateBackup{Volume: "guest"}); !b.Quiesced || h.calls(t) != "freeze thaw" {
		t.Errorf("%+v", b)
	}
	if err := os.WriteFile(h.fail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	j := r.wait(r.agent.CreateBackup(ctx, CreateBackup{Volume: "guest"}))
	if j.State != JobFailed || !strings.Contains(j.Error, "the database is down") || h.calls(t) != "freeze thaw" {
		t.Errorf("%+v", j)
	}
	r.until("a clean qemu", func() bool { return len(g.left()) == 0 && len(g.bitmaps()) == 1 })
}
