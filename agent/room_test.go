package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/internal/needs"
)

// TestGuestFillsTheDisk: a guest that overwrites so much while it is backed up that the
// agent's disk would be full loses its backup, which says where and what to do, and notices
// nothing; nor does a backup begin where there is no room.
func TestGuestFillsTheDisk(t *testing.T) {
	const disk = 62 << 20
	r := testRig(t)
	ctx := t.Context()
	fleeces := filepath.Join(r.dir, "agent", "sources", "fleeces")
	if err := unix.Mount("tmpfs", fleeces, "tmpfs", 0, "size=64m"); err != nil {
		needs.Missing(t, "needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(fleeces, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	g := newQEMUGuest(t, "raw", disk)
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "guest", QMP: g.qmp(), Node: "disk"}); err != nil {
		t.Fatal(err)
	}
	g.write(4, 0, disk) // of holes nothing is kept
	j := g.held(r)
	g.write(2, 0, 61<<20) // leaves less than a twentieth
	r.until("a clean qemu", func() bool { return len(g.left()) == 0 })
	g.write(3, 0, disk)
	expect := func(j Job) {
		t.Helper()
		if j.State != JobFailed || j.Code != string(CodeNoSpace) || !strings.Contains(j.Error, "are free in "+fleeces) ||
			!strings.Contains(j.Error, "mount a disk of its own at that folder") || strings.Contains(j.Error, "\n") {
			t.Errorf("%+v", j)
		}
	}
	expect(r.wait(j, nil))

	ballast := filepath.Join(fleeces, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 62<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(r.wait(r.agent.CreateBackup(ctx, CreateBackup{Volume: "guest", Force: true})))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	r.stopAgent()
	r.limits = Limits{}
	r.startAgent()
	r.same(r.backup(CreateBackup{Volume: "guest", Force: true}), g.model)
}
