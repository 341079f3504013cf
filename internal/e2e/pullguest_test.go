package e2e

import (
	"testing"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/guestvm"
)

// TestGuestPulled backs up a real guest whose disk is its qemu's, in full and incrementally
// by qemu's record of changes, while it writes files. Then qemu is killed and with it that
// record: the next incremental compares everything and says why.
func TestGuestPulled(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	t.Parallel()
	b := newBootGuest(t, func(_ *host, image string) []string { return guestvm.FileDisk("d0", image) })
	if _, err := b.control.CreateVolume(t.Context(), agent.CreateVolume{Name: "disk", QMP: b.machine.Monitor, Node: "d0"}); err != nil {
		t.Fatal(err)
	}
	full := b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true})
	incr := b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true, Incremental: true})
	if incr.Parent != full.ID || incr.FullCompareReason != "" || incr.BytesRead >= full.BytesRead {
		t.Errorf("the incremental from %s read %d bytes (%s), the full backup %d", incr.Parent, incr.BytesRead, incr.FullCompareReason, full.BytesRead)
	}

	b.vm.Kill()
	b.boot()
	compared := b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true, Incremental: true})
	if compared.Parent != incr.ID || compared.FullCompareReason == "" {
		t.Errorf("after qemu was killed an incremental from %s compared everything because of %q", compared.Parent, compared.FullCompareReason)
	}
	last := b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true, Incremental: true})
	if last.FullCompareReason != "" || last.BytesRead >= compared.BytesRead {
		t.Errorf("and the next one read %d bytes (%s), that one %d", last.BytesRead, last.FullCompareReason, compared.BytesRead)
	}
	b.stop()

	// What the backups were compared with is what the guest had on its disk.
	b.fsck(b.path("disk.img"))
	there := b.log.files()
	b.log.forget(there)
	got := b.files(b.path("disk.img"))
	for name, sum := range there {
		if got[name] != sum {
			t.Errorf("the guest said that its file %s has the checksum %s, and left one with %q", name, sum, got[name])
		}
	}
	t.Logf("read: full %d bytes, incremental %d, after the kill %d (%s), and then %d", full.BytesRead, incr.BytesRead, compared.BytesRead, compared.FullCompareReason, last.BytesRead)
}
