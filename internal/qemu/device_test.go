package qemu

import (
	"bytes"
	"errors"
	"testing"
)

// TestDevices: each kind of device can be given another node while the guest runs.
func TestDevices(t *testing.T) {
	for _, c := range []struct {
		name   string
		device string
		args   []string
		node   string
		thread bool
	}{
		{name: "virtio, by node", device: "virtio-blk-pci,id=d0,drive=disk", node: "disk"},
		{name: "virtio, by path", device: "virtio-blk-pci,id=d0,drive=disk", node: "/machine/peripheral/d0/virtio-backend"},
		{name: "virtio without an ID", device: "virtio-blk-pci,drive=disk", node: "disk"},
		{name: "virtio in a thread", device: "virtio-blk-pci,id=d0,drive=disk,iothread=io", args: []string{"-object", "iothread,id=io"}, node: "d0", thread: true},
		{name: "scsi", device: "scsi-hd,id=d0,drive=disk", args: []string{"-device", "virtio-scsi-pci"}, node: "d0"},
		{name: "scsi in a thread", device: "scsi-hd,id=d0,drive=disk", args: []string{"-object", "iothread,id=io", "-device", "virtio-scsi-pci,iothread=io"}, node: "d0", thread: true},
		{name: "virtio beside a thread", device: "virtio-blk-pci,id=d0,drive=disk", args: []string{"-object", "iothread,id=io"}, node: "d0"},
		{name: "ide", device: "ide-hd,id=d0,drive=disk", node: "d0"},
		{name: "nvme", device: "nvme,id=d0,serial=1,drive=disk", node: "d0"},
		{name: "usb", device: "usb-storage,id=d0,drive=disk", args: []string{"-device", "qemu-xhci"}, node: "disk"},
		{name: "behind a throttle", device: "virtio-blk-pci,id=d0,drive=slow", args: []string{
			"-object", "throttle-group,id=tg", "-blockdev", "driver=throttle,node-name=slow,throttle-group=tg,file=disk",
		}, node: "d0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, guestOptions{device: c.device, args: c.args})
			g.disk.Node = c.node
			g.write(1, 0, 8*block)
			before := g.traces()
			v := g.version()
			if c.thread && v.before(9, 0) {
				if _, err := g.disk.Snapshot(t.Context(), SnapshotOptions{ID: "one"}); !errors.Is(err, ErrState) {
					t.Errorf("a snapshot of a disk in a thread: %v", err)
				}
				return
			}
			s := g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
			want := bytes.Clone(g.model)
			g.write(2, 2*block+512, 3*block)
			if got, _ := read(t, s); !bytes.Equal(got, want) {
				t.Error("the snapshot is not what the disk was")
			}
			if err := g.disk.Verify(t.Context(), "one"); err != nil {
				t.Error(err)
			}
			if err := g.disk.Sweep(t.Context(), func(string) bool { return false }, func(string) bool { return false }); err != nil {
				t.Errorf("%v\n%s", err, g.printed())
			}
			if after := g.traces(); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
			g.write(3, 0, block)
		})
	}
}
