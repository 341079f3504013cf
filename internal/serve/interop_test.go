package serve_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// The clients that people use, on the sockets that they use.
func TestRealClients(t *testing.T) {
	qemuIO, qemuImg := needs.Tool(t, "qemu-io", "qemu-utils"), needs.Tool(t, "qemu-img", "qemu-utils")
	nbdinfo, nbdcopy := needs.Tool(t, "nbdinfo", "libnbd-bin"), needs.Tool(t, "nbdcopy", "libnbd-bin")
	p := start(t, options(t))
	v := p.create(t, "db", 16*mib)
	dir := t.TempDir()
	ref, out := filepath.Join(dir, "ref"), filepath.Join(dir, "out")

	content := append(random(1, 8*mib), make([]byte, 8*mib)...)
	if err := os.WriteFile(ref, content, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, nbdcopy, ref, v.URI)
	run(t, qemuImg, "compare", "-f", "raw", "-F", "raw", v.URI, ref)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s", Checkpoints: []string{"b1"}})[0]

	run(t, qemuIO, "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "write -z 2M 64k", "-c", "discard 3M 64k", "-c", "flush", "-c", "read -P 7 1M 64k", "-c", "read -P 0 2M 64k", v.URI)

	run(t, nbdcopy, s.URI, out)
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "nbdcopy of the snapshot", got, content)
	run(t, qemuImg, "compare", "-f", "raw", "-F", "raw", s.URI, ref)
	run(t, qemuImg, "convert", "-f", "raw", "-O", "raw", nbd.URI(v.Socket, "db@ro"), out)
	run(t, qemuImg, "compare", "-f", "raw", "-F", "raw", v.URI, out)

	// What both contexts say, as people see it.
	alloc := run(t, nbdinfo, "--map", s.URI)
	if !strings.Contains(alloc, "hole,zero") || !strings.Contains(alloc, "data") {
		t.Errorf("allocation of the snapshot:\n%s", alloc)
	}
	dirty := run(t, nbdinfo, "--map=qemu:dirty-bitmap:b1", nbd.URI(v.Socket, "db@ro"))
	for _, want := range []string{"1048576 65536 1 dirty", "2097152 65536 1 dirty"} {
		if !strings.Contains(strings.Join(strings.Fields(dirty), " "), want) {
			t.Errorf("no %q in the dirty bitmap of the volume:\n%s", want, dirty)
		}
	}
	if clean := run(t, nbdinfo, "--map=qemu:dirty-bitmap:b1", "--totals", s.URI); !strings.Contains(clean, "100.0%") || strings.Contains(clean, "dirty") {
		t.Errorf("dirty bitmap of the snapshot itself:\n%s", clean)
	}
	list := run(t, nbdinfo, "--list", nbd.URI(v.Socket, ""))
	for _, want := range []string{`export="db"`, `export="db@ro"`, "qemu:dirty-bitmap:b1"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %s in the list:\n%s", want, list)
		}
	}
	run(t, nbdinfo, "--is", "readonly", s.URI)
	run(t, nbdinfo, "--can", "multi-conn", v.URI)
	run(t, nbdinfo, "--is", "readonly", nbd.URI(v.Socket, "db@ro"))
	run(t, nbdinfo, "--can", "write", nbd.URI(v.Socket, "")) // the default is the read-write door
}
