package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/nbd"
)

// TestFileSystem backs up a real file system, in full and then incrementally,
// loses two stores, and has other people's programs look at what comes back.
func TestFileSystem(t *testing.T) {
	mke2fs, e2fsck := needs.Tool(t, "mke2fs", "e2fsprogs"), needs.Tool(t, "e2fsck", "e2fsprogs")
	debugfs := needs.Tool(t, "debugfs", "e2fsprogs")
	nbdcopy, qemuImg := needs.Tool(t, "nbdcopy", "libnbd-bin"), needs.Tool(t, "qemu-img", "qemu-utils")
	h := newHost(t)
	ctx := t.Context()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, out)
		}
	}

	image := h.path("disk.img")
	tree := h.path("tree")
	err := os.Mkdir(tree, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two", "three"} {
		writeRandom(t, filepath.Join(tree, name), 3<<20)
	}
	run(mke2fs, "-q", "-t", "ext4", "-d", tree, image, "96M")
	v, err := h.control.CreateVolume(ctx, agent.CreateVolume{Name: "disk", Size: 96 << 20})
	if err != nil {
		t.Fatal(err)
	}
	run(nbdcopy, image, v.URI)
	full := h.backup("disk", agent.CreateBackup{Volume: "disk"})

	// A file more; what that changes goes through NBD.
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	added := h.path("added")
	writeRandom(t, added, 700<<10)
	run(debugfs, "-w", "-R", "write "+added+" added", image)
	after, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	h.write(v, func(ctx context.Context, c *nbd.Client) error {
		for off := 0; off < len(after); off += 4096 {
			if p := after[off : off+4096]; !bytes.Equal(p, before[off:off+4096]) {
				if err = c.WriteAt(ctx, p, int64(off), false); err != nil {
					return err
				}
			}
		}
		return c.Flush(ctx)
	})
	incr := h.backup("disk", agent.CreateBackup{Volume: "disk", Incremental: true})
	if incr.Parent != full.ID || incr.BytesRead > 8<<20 {
		t.Errorf("the incremental from %s read %d bytes", incr.Parent, incr.BytesRead)
	}

	for _, store := range []string{h.stores[1], h.stores[4]} {
		if err = os.RemoveAll(store); err != nil {
			t.Fatal(err)
		}
	}
	restored := h.path("restored.img")
	h.restore(incr.ID, restored)
	run(e2fsck, "-f", "-n", restored)
	run(qemuImg, "compare", "-f", "raw", "-F", "raw", restored, image)
	dumped := h.path("dumped")
	run(debugfs, "-R", "dump added "+dumped, restored)
	run("cmp", added, dumped)

	e, err := h.control.Export(ctx, agent.Export{Ref: full.ID})
	if err != nil {
		t.Fatal(err)
	}
	copied := h.path("copied.img")
	run(nbdcopy, e.URI, copied)
	run(e2fsck, "-f", "-n", copied)
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, before) {
		t.Errorf("the export of the full backup differs from what was backed up: %v", err)
	}
}

// writeRandom makes a file that does not compress.
func writeRandom(t *testing.T, name string, n int) {
	t.Helper()
	p := make([]byte, n)
	if _, err := rand.Read(p); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
}
