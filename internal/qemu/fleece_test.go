package qemu

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"
)

// TestEmptyQcow2: qemu finds nothing wrong with what we write, at any size.
func TestEmptyQcow2(t *testing.T) {
	img := needs.Tool(t, "qemu-img", "qemu-utils")
	for _, size := range []int64{512, 1 << 20, 512 << 20, 512<<20 + 512, 1 << 40, 40<<40 + 512, maxDisk} {
		name := filepath.Join(t.TempDir(), "fleece")
		if err := os.WriteFile(name, emptyQcow2(size), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, img, "check", "-q", "-f", "qcow2", name)
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		if err := json.Unmarshal([]byte(run(t, img, "info", "--output=json", "-f", "qcow2", name)), &info); err != nil {
			t.Fatal(err)
		}
		if info.Size != size {
			t.Errorf("qemu takes it for %d bytes, it should be %d", info.Size, size)
		}
	}
	for _, size := range []int64{-1, 0, maxDisk + 1} {
		if f, err := newFleece(t.TempDir(), size); err == nil {
			t.Errorf("a fleece of %d bytes: %v", size, f.Close())
		}
	}
}

// TestLargeDisk: nothing takes time or space by the size of the disk alone.
func TestLargeDisk(t *testing.T) {
	g := newGuest(t, guestOptions{device: "virtio-blk-pci,id=d0,drive=large", args: []string{
		"-blockdev", "driver=null-co,node-name=large,size=4398046511104,read-zeroes=on",
	}})
	before := g.traces()
	s := g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
	if s.Size != 4<<40 {
		t.Errorf("its size is %d", s.Size)
	}
	g.drop("one")
	g.write(1, 0, block)
	if out := g.io("write -P 1 %d %d", s.Size-block, block); !bytes.HasPrefix([]byte(out), []byte("wrote")) {
		t.Error(out)
	}
	g.snapshot(SnapshotOptions{ID: "two", Since: []string{"c1"}})
	info, err := g.disk.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Checkpoints[0].Dirty; got != 2*block {
		t.Errorf("%d bytes are dirty", got)
	}
	if saved := info.Snapshots[0].Saved; saved > 1<<20 {
		t.Errorf("%d bytes are saved", saved)
	}
	all := func(string) bool { return false }
	if err := g.disk.Sweep(t.Context(), all, all); err != nil {
		t.Error(err)
	}
	if after := g.traces(); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}
