package nbd

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

// run runs a program that must succeed, and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := command(t, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// command prepares a program that ends with the test.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = t.TempDir()
	// nbdsh is a script for the system's Python, which has the module.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin")
	return cmd
}

// contains checks that a program's answer holds some texts.
func contains(t *testing.T, out string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), w) {
			t.Errorf("no %q in\n%s", w, out)
		}
	}
}

// image makes a raw file with data, holes between them, and an odd end.
func image(t *testing.T, size int64) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	for off := int64(0); off < size; off += 8 << 20 {
		_, _ = rng.Read(content[off:min(size, off+3<<20)])
	}
	path = filepath.Join(t.TempDir(), "ref")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer closeQuietly(f)
	for off := int64(0); off < size; off += 8 << 20 {
		end := min(size, off+3<<20)
		if _, err := f.WriteAt(content[off:end], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path, content
}

// interop exports an empty disk over each kind of device, and a read-only one beside it.
// What programs make of the product is tested in internal/e2e.
func interop(t *testing.T, size int, fn func(t *testing.T, uri, ro string, d Device)) {
	t.Helper()
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			d, m := kind.device(t, size)
			rw, ro := m.export("disk"), m.export("disk@ro")
			rw.Open = func(context.Context, Peer) (Device, error) { return d, nil }
			ro.Open, ro.ReadOnly = rw.Open, true
			if kind.network != "unix" {
				uri := serveDevice(t, kind.network, d, m)
				fn(t, uri, "", d)
				return
			}
			path := listen(t, serverOf(t, rw, ro))
			fn(t, URI(path, "disk"), URI(path, "disk@ro"), d)
		})
	}
}

func content(t *testing.T, d Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestInteropLibnbd(t *testing.T) {
	nbdinfo, nbdcopy := needs.Tool(t, "nbdinfo", "libnbd-bin"), needs.Tool(t, "nbdcopy", "libnbd-bin")
	const size = 32<<20 + 512
	interop(t, size, func(t *testing.T, uri, ro string, d Device) {
		t.Helper()
		contains(t, run(t, nbdinfo, uri), "newstyle-fixed", "structured packets", "export-size: 33554944", "base:allocation", dirtyName,
			"is_read_only: false", "can_flush: true", "can_fua: true", "can_trim: true", "can_zero: true", "can_df: true", "can_cache: true",
			"can_multi_conn: true", "block_size_minimum: 1", "block_size_preferred: 4096", "block_size_maximum: 33554432")
		contains(t, run(t, nbdinfo, "--map", uri), "0 33554944 3 hole,zero")
		ref, want := image(t, size)
		run(t, nbdcopy, ref, uri)
		if !bytes.Equal(content(t, d), want) {
			t.Fatal("nbdcopy wrote something else")
		}
		run(t, nbdcopy, "--flush", "--connections=4", "--requests=128", uri, ref+".out")
		if got, err := os.ReadFile(ref + ".out"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("nbdcopy read something else, %v", err)
		}
		contains(t, run(t, nbdinfo, "--map", uri), "0 3145728 0 data 3145728 5242880 3 hole,zero 8388608 3145728 0 data", "33554432 512 0 data")
		contains(t, run(t, nbdinfo, "--map="+dirtyName, "--totals", uri), "100.0%")
		contains(t, run(t, nbdinfo, "--list", uri), `export="disk":`, "description: test disk", "export-size: 33554944")
		if ro == "" {
			return
		}
		contains(t, run(t, nbdinfo, "--list", uri), `export="disk@ro":`)
		run(t, nbdinfo, "--is", "readonly", ro)
		run(t, nbdinfo, "--can", "multi-conn", ro)
	})
}

func TestInteropQemu(t *testing.T) {
	img, io := needs.Tool(t, "qemu-img", "qemu-utils"), needs.Tool(t, "qemu-io", "qemu-utils")
	const size = 32 << 20
	interop(t, size, func(t *testing.T, uri, ro string, d Device) {
		t.Helper()
		ref, want := image(t, size)
		run(t, img, "convert", "-n", "-f", "raw", "-O", "raw", ref, uri)
		if !bytes.Equal(content(t, d), want) {
			t.Fatal("qemu-img wrote something else")
		}
		contains(t, run(t, img, "compare", "-f", "raw", "-F", "raw", uri, ref), "identical")
		run(t, img, "convert", "-f", "raw", "-O", "qcow2", uri, ref+".qcow2")
		contains(t, run(t, img, "compare", "-f", "qcow2", "-F", "raw", ref+".qcow2", ref), "identical")
		contains(t, run(t, img, "map", "--output=json", "-f", "raw", uri), `"start": 0, "length": 3145728`, `"start": 3145728, "length": 5242880, "depth": 0, "present": true, "zero": true, "data": false`)
		run(t, io, "-f", "raw", "-c", "write -P 7 0 1M", "-c", "read -P 7 0 1M", "-c", "flush", "-c", "write -z 0 64k", "-c", "discard 0 32k",
			"-c", "read -P 0 0 64k", "-c", "read -P 7 64k 960k", "-c", "write -f -P 9 31M 1M", "-c", "read -P 9 31M 1M", "-c", "write -z -u 512 1536",
			"-c", "aio_write -P 1 4M 3M", "-c", "aio_write -P 2 8M 3M", "-c", "aio_read 4M 512", "-c", "aio_flush", "-c", "read -P 2 8M 3M", uri)
		if ro != "" {
			contains(t, run(t, img, "compare", "-f", "raw", "-F", "raw", uri, ro), "identical")
			run(t, io, "-r", "-f", "raw", "-c", "read -P 0 512 1536", ro)
			out, err := exec.CommandContext(t.Context(), io, "-f", "raw", "-c", "write 0 512", ro).CombinedOutput()
			if err == nil {
				t.Errorf("qemu-io opened a read-only export for writing: %s", out)
			}
		}
	})
}
