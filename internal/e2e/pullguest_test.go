package e2e

import (
	"testing"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/guestvm"
	"github.com/cairnbackup/cairn/internal/needs"
)

// TestGuestPulled backs up a real guest whose disk is its qemu's, in full and incrementally
// by qemu's record of changes, while it writes files. Then qemu is killed and with it that
// record: the next incremental compares everything and says why.
func TestGuestPulled(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	t.Parallel()
	b := newBootGuest(t, guestvm.Options{}, fileDisk)
	full, incr := b.pullTwice()

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

// TestGuestPulledFromThreads is the same with a disk whose requests two I/O threads do, as
// only a newer qemu can. The guest's driver is what puts a virtio-blk there.
func TestGuestPulledFromThreads(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	t.Parallel()
	o := guestvm.Options{QEMU: needs.Newer(t, "qemu-system-x86_64")}
	b := newBootGuest(t, o, func(_ *host, image string) []string {
		return []string{
			"-object", "iothread,id=io0", "-object", "iothread,id=io1",
			"-blockdev", "driver=file,node-name=d0,discard=unmap,filename=" + image,
			"-device", `{"driver":"virtio-blk-pci","drive":"d0","num-queues":2,"iothread-vq-mapping":[{"iothread":"io0"},{"iothread":"io1"}]}`,
		}
	})
	b.pullTwice()
	b.stop()
	b.fsck(b.path("disk.img"))
}

// pullTwice makes a volume of the guest's disk, and of that a full backup and an
// incremental, which qemu's record of changes must spare reading it all.
func (b *bootGuest) pullTwice() (full, incr agent.Backup) {
	b.t.Helper()
	b.pulledDisk()
	full = b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true})
	incr = b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true, Incremental: true})
	if incr.Parent != full.ID || incr.FullCompareReason != "" || incr.BytesRead >= full.BytesRead {
		b.t.Errorf("the incremental from %s read %d bytes (%s), the full backup %d", incr.Parent, incr.BytesRead, incr.FullCompareReason, full.BytesRead)
	}
	return full, incr
}

// fileDisk returns the arguments of a disk that is its qemu's alone.
func fileDisk(_ *host, image string) []string { return guestvm.FileDisk("d0", image) }

// pulledDisk makes a volume of the guest's disk, which its qemu has.
func (b *bootGuest) pulledDisk() {
	b.t.Helper()
	if _, err := b.control.CreateVolume(b.t.Context(), agent.CreateVolume{Name: "disk", QMP: b.machine.Monitor, Node: "d0"}); err != nil {
		b.t.Fatal(err)
	}
}
