package guestvm

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
)

func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("from the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	v := Start(t, Options{Files: map[string]string{"/etc/file": file}, Modules: []string{"nbd", "loop", "virtio_net"}})
	t.Logf("booted in %v", time.Since(began))
	ctx := t.Context()

	out, err := v.Run(ctx, "cat /etc/file; echo; sort; exit 3")
	if err == nil || out != "from the host\n" || err.Error() != "exit status 3" {
		t.Errorf("a script printed %q and ended with: %v", out, err)
	}
	if out, err = v.Run(ctx, "seq 20000 | sha256sum; ls /dev/nbd0; dmesg | grep -c BUG"); err == nil || strings.Count(out, "\n") != 3 {
		t.Errorf("a script printed %q and ended with: %v", out, err)
	}

	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if out, err = v.Run(short, "echo begun; sleep 1000"); !errors.Is(err, context.DeadlineExceeded) || out != "begun\n" {
		t.Errorf("a script that was not waited for printed %q and ended with: %v", out, err)
	}

	said, w := io.Pipe()
	c, err := v.Begin("trap 'echo stopped; exit 0' TERM; echo ready; while :; do sleep 0.05; done", w)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-c.Done()
		_ = w.Close() // of a pipe in memory: never fails
	}()
	r := bufio.NewReader(said)
	if line, err := r.ReadString('\n'); line != "ready\n" { // a signal before that would find no trap
		t.Fatalf("a script printed %q: %v", line, err)
	}
	forwards(t, v)
	if err := c.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(r) // ends with the script
	if err := c.Wait(); err != nil || !strings.Contains(string(rest), "stopped") {
		t.Errorf("a script that was told to stop printed %q and ended with: %v", rest, err)
	}
	v.Shutdown()
	if _, err := v.Run(ctx, "true"); !errors.Is(err, errGone) {
		t.Errorf("a script in a guest that is off: %v", err)
	}
	t.Logf("all of it took %v", time.Since(began))
}

// forwards speaks to a socket in the guest.
func forwards(t *testing.T, v *VM) {
	t.Helper()
	conn, err := net.Dial("unix", v.Forward("/run/nobody"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("nobody listens there, and a connection ends with: %v", err)
	}
}

// TestRootOnDisk boots from a disk that is a file, kills the guest, and boots again.
func TestRootOnDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	t.Parallel()
	mke2fs, e2fsck := needs.Tool(t, "mke2fs", "e2fsprogs"), needs.Tool(t, "e2fsck", "e2fsprogs")
	dir := t.TempDir()
	tree, image := filepath.Join(dir, "tree"), filepath.Join(dir, "image")
	Tree(t, tree, nil)
	run(t, mke2fs, "-q", "-t", "ext4", "-d", tree, image, "48M")
	m := New(t, Options{Root: "/dev/vda", Args: FileDisk("d0", image)})

	v := m.Boot()
	if out, err := v.Run(t.Context(), "echo kept >/kept; sync; grep -w / /proc/mounts"); err != nil || !strings.Contains(out, "/dev/vda / ext4 rw") {
		t.Errorf("%q: %v", out, err)
	}
	v.Kill()
	<-v.Done()

	v = m.Boot()
	if out, err := v.Run(t.Context(), "cat /kept"); err != nil || out != "kept\n" {
		t.Errorf("what was synced before the kill reads %q: %v", out, err)
	}
	v.Shutdown()
	run(t, e2fsck, "-f", "-n", image)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
