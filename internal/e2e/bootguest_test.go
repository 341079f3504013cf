package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/guestvm"
	"github.com/cairnbackup/cairn/internal/needs"
)

// filesScript writes files until it is told to stop, and says which: a file when its
// fsync has returned, and before it is deleted. What is deleted is given back to the disk.
const filesScript = `
mkdir -p /data && sync /data || exit 1
i=$(ls /data | sed s/f// | sort -n | tail -n 1)
while [ ! -e /run/stop ]; do
	i=$((i+1))
	dd if=/dev/urandom of=/data/f$i bs=1k count=$((i * 37 % 96 + 4)) conv=fsync 2>/dev/null || exit 1
	echo wrote f$i $(sha256sum </data/f$i)
	if [ $((i % 3)) = 0 ]; then
		echo deleting f$((i * 2 / 3))
		rm /data/f$((i * 2 / 3)) || exit 1
	fi
	if [ $((i % 8)) = 0 ]; then
		fstrim / || exit 1
	fi
done
`

// TestGuestOnVolume boots a real guest from a volume and backs it up, in full and
// incrementally, while it writes files; the agent is killed and started meanwhile. The
// guest notices nothing. What a backup must hold of files whose fsync the guest was told
// of is compared with the guest's own checksums, and its file system is checked.
func TestGuestOnVolume(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	t.Parallel()
	nbdcopy := needs.Tool(t, "nbdcopy", "libnbd-bin")
	b := newBootGuest(t, guestvm.Options{}, servedDisk)
	full := b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true})
	b.killAgentInBackup()
	incr := b.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true, Incremental: true})
	if incr.BytesRead >= full.BytesRead {
		t.Errorf("the incremental read %d bytes, the full backup %d", incr.BytesRead, full.BytesRead)
	}
	b.stop()

	last := b.backup("disk", agent.CreateBackup{Volume: "disk", Incremental: true})
	if last.Parent == "" {
		t.Error("the last backup is not incremental")
	}
	restored := b.path("last.img")
	b.restore(last.ID, restored)
	b.fsck(restored)
	there := b.log.files()
	b.log.forget(there)
	if got := b.files(restored); !maps.Equal(got, there) {
		t.Errorf("the last backup has the files\n%v\nand the guest said\n%v", got, there)
	}
	e, err := b.control.Export(t.Context(), agent.Export{Ref: last.ID})
	if err != nil {
		t.Fatal(err)
	}
	exported := b.path("exported.img")
	b.run(nbdcopy, e.URI, exported)
	b.fsck(exported)
	b.run("cmp", restored, exported)
	t.Logf("%d files written, %d of them there at the end; full backup %d bytes read, incremental %d, last %d",
		b.log.count(), len(there), full.BytesRead, incr.BytesRead, last.BytesRead)
}

// bootGuest is a host with a guest that runs from a volume of its and writes files.
type bootGuest struct {
	*host
	machine *guestvm.Machine
	vm      *guestvm.VM
	writing *guestvm.Command
	log     *fileLog
}

// newBootGuest makes one with these options whose root, in an image with the options'
// files, is the disk of these arguments of qemu's, and boots it.
func newBootGuest(t *testing.T, o guestvm.Options, disk func(h *host, image string) []string) *bootGuest {
	t.Helper()
	mke2fs := needs.Tool(t, "mke2fs", "e2fsprogs")
	b := &bootGuest{host: newHost(t), log: &fileLog{wrote: map[string]string{}, deleting: map[string]bool{}}}
	image, tree := b.path("disk.img"), b.path("tree")
	guestvm.Tree(t, tree, o.Files)
	b.run(mke2fs, "-q", "-t", "ext4", "-d", tree, image, "64M")
	o.Root, o.Files, o.Args = "/dev/vda", nil, disk(b.host, image)
	b.machine = guestvm.New(t, o)
	b.boot()
	return b
}

// servedDisk makes a volume of the image, and returns the arguments of the disk that it is.
func servedDisk(h *host, image string) []string {
	h.t.Helper()
	v, err := h.control.CreateVolume(h.t.Context(), agent.CreateVolume{Name: "disk", File: image})
	if err != nil {
		h.t.Fatal(err)
	}
	return guestvm.NBDDisk("d0", v.Socket, "disk")
}

// boot starts the guest, which writes files from then on.
func (b *bootGuest) boot() {
	b.t.Helper()
	b.vm = b.machine.Boot()
	b.log.rest = nil // of a line that was cut off; nobody writes any more
	var err error
	if b.writing, err = b.vm.Begin(filesScript, b.log); err != nil {
		b.t.Fatal(err)
	}
	b.awaitFiles(6)
}

func (b *bootGuest) run(name string, args ...string) {
	b.t.Helper()
	if out, err := exec.CommandContext(b.t.Context(), name, args...).CombinedOutput(); err != nil {
		b.t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, out)
	}
}

// awaitFiles waits until the guest has written n files more.
func (b *bootGuest) awaitFiles(n int) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	n += b.log.count()
	err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
		select {
		case <-b.writing.Done():
			return false, fmt.Errorf("the guest stopped writing: %w", b.writing.Wait())
		default:
			return b.log.count() >= n, nil
		}
	})
	if err != nil {
		b.t.Fatalf("wait for the guest's files: %v\n%s", err, b.log.other)
	}
}

// backupWhileWriting makes a backup of the running guest and looks what is in it.
func (b *bootGuest) backupWhileWriting(req agent.CreateBackup) agent.Backup {
	b.t.Helper()
	must := b.log.files()
	made := b.backup("disk", req)
	b.log.forget(must)
	b.awaitFiles(3)

	image := b.path(made.ID + ".img")
	b.restore(made.ID, image)
	b.replay(image)
	b.fsck(image)
	got := b.files(image)
	for name, sum := range must {
		if got[name] != sum {
			b.t.Errorf("backup %s: file %s was told to be on the disk and has the checksum %q, not %q", made.ID, name, got[name], sum)
		}
	}
	if len(must) < 2 {
		b.t.Errorf("only %d files had to be in backup %s: the test tests too little", len(must), made.ID)
	}
	return made
}

// killAgentInBackup kills the agent when it has taken the snapshot of a backup, and starts
// it when the guest has written some files more.
func (b *bootGuest) killAgentInBackup() {
	b.t.Helper()
	ctx := b.t.Context()
	job, err := b.control.CreateBackup(ctx, agent.CreateBackup{Volume: "disk", Force: true})
	if err != nil {
		b.t.Fatal(err)
	}
	err = poll(ctx, time.Millisecond, func() (bool, error) {
		snaps, serr := b.data.Snapshots(ctx, "disk")
		j, jerr := b.control.Job(ctx, job.ID)
		return len(snaps) > 0 || j.State.Final(), errors.Join(serr, jerr)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.kill(b.agent)
	b.awaitFiles(3)
	b.startAgent()
	if job, err = b.control.WaitJob(ctx, job.ID, nil); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("the job whose agent was killed: %s: %s", job.State, job.Error)
}

// stop shuts the guest down, which must have noticed nothing.
func (b *bootGuest) stop() {
	b.t.Helper()
	if out, err := b.vm.Run(b.t.Context(), "touch /run/stop"); err != nil {
		b.t.Fatalf("%v: %s", err, out)
	}
	if err := b.writing.Wait(); err != nil || b.log.other != "" {
		b.t.Errorf("the guest's files: %v: %s", err, b.log.other)
	}
	out, err := b.vm.Run(b.t.Context(), "dmesg | grep -iE 'error|warning|remount|hung|blocked for' | grep -v 'random: '; mount | grep ' / '")
	if err != nil || !strings.HasPrefix(out, "/dev/vda on / type ext4 (rw,") || !strings.Contains(out, "discard") {
		b.t.Errorf("the guest noticed something: %v: %s", err, out)
	}
	b.vm.Shutdown()
}

// replay does what mounting does after a crash.
func (b *bootGuest) replay(image string) {
	b.t.Helper()
	e2fsck := needs.Tool(b.t, "e2fsck", "e2fsprogs")
	var exit *exec.ExitError
	out, err := exec.CommandContext(b.t.Context(), e2fsck, "-y", "-E", "journal_only", image).CombinedOutput()
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		b.t.Errorf("the journal of %s: %v\n%s", image, err, out)
	}
}

// fsck finds no fault.
func (b *bootGuest) fsck(image string) {
	b.t.Helper()
	b.run(needs.Tool(b.t, "e2fsck", "e2fsprogs"), "-f", "-n", image)
}

// files returns the checksums of the guest's files in an image.
func (b *bootGuest) files(image string) map[string]string {
	b.t.Helper()
	dir := image + ".files"
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	b.run(needs.Tool(b.t, "debugfs", "e2fsprogs"), "-R", "rdump /data "+dir, image)
	names, err := filepath.Glob(filepath.Join(dir, "data", "*"))
	if err != nil {
		b.t.Fatal(err)
	}
	sums := map[string]string{}
	for _, name := range names {
		sums[filepath.Base(name)] = b.sum(name)
	}
	return sums
}

// sum is the checksum of a file, as sha256sum prints it.
func (b *bootGuest) sum(file string) string {
	b.t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		b.t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))
}

// fileLog takes what filesScript says.
type fileLog struct {
	mu       sync.Mutex
	rest     []byte            // of a line
	wrote    map[string]string // checksums of files that are on the disk for good
	deleting map[string]bool   // files whose deletion has begun
	other    string            // what else was said
}

// Write takes a piece of the output.
func (l *fileLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		switch f := strings.Fields(string(line)); {
		case len(f) == 4 && f[0] == "wrote":
			l.wrote[f[1]] = f[2]
		case len(f) == 2 && f[0] == "deleting":
			l.deleting[f[1]] = true
		default:
			l.other += string(line) + "\n"
		}
	}
}

func (l *fileLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.wrote)
}

// files returns what is on the disk for good now.
func (l *fileLog) files() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.wrote)
}

// forget takes out of files those whose deletion has begun by now.
func (l *fileLog) forget(files map[string]string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(files, func(name, _ string) bool { return l.deleting[name] })
}
