package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/guestvm"
	"github.com/cairnbackup/cairn/internal/needs"
)

// freezeHook is what the guest agent calls before it freezes and after it has thawed. It
// takes its time for the first as long as /run/slow is there.
const freezeHook = `#!/bin/sh
echo $1 >>/run/hook
while [ $1 = freeze ] && [ -e /run/slow ]; do sleep 0.1; done
`

// agentScript starts the guest agent.
const agentScript = "qemu-ga -m virtio-serial -p " + guestvm.GuestAgentPort + " -t /run -f /run/qga.pid -l /run/qga.log -F/etc/hook -d"

// TestGuestFrozen backs up real guests that their real guest agent freezes: one whose disk
// Cairn serves, and one whose disk is its qemu's.
func TestGuestFrozen(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests: not with -short")
	}
	t.Parallel()
	for kind, disk := range map[string]func(h *host, image string) []string{"served": servedDisk, "pulled": fileDisk} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := newFrozenGuest(t, disk)
			if kind == "pulled" {
				g.pulledDisk()
			}
			g.holdsCached()
			g.killed()
			g.slow()
			g.stop()
		})
	}
}

// frozenGuest is a guest with a guest agent.
type frozenGuest struct {
	*bootGuest
	agentSocket string
	freezes     int // that the guest's hook has told of
}

func newFrozenGuest(t *testing.T, disk func(h *host, image string) []string) *frozenGuest {
	t.Helper()
	root := filepath.Dir(filepath.Dir(needs.Newer(t, "qemu-system-x86_64")))
	files := guestvm.Linked(t, root, "/usr/sbin/qemu-ga")
	hook := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(hook, []byte(freezeHook), 0o600); err != nil {
		t.Fatal(err)
	}
	files["/etc/hook"] = hook
	g := &frozenGuest{}
	g.bootGuest = newBootGuest(t, guestvm.Options{Files: files}, func(h *host, image string) []string {
		g.agentSocket = h.path("qga")
		return append(guestvm.GuestAgent(g.agentSocket), disk(h, image)...)
	})
	g.within("PATH=$PATH:/usr/sbin " + agentScript)
	return g
}

// within runs a script in the guest.
func (g *frozenGuest) within(script string) string {
	g.t.Helper()
	out, err := g.vm.Run(g.t.Context(), script)
	if err != nil {
		log, _ := g.vm.Run(g.t.Context(), "cat /run/qga.log")
		g.t.Fatalf("%s: %v: %s\n%s", script, err, out, log)
	}
	return out
}

// cached writes a file that is in the guest's memory alone, and returns its checksum.
func (g *frozenGuest) cached(name string) string {
	g.t.Helper()
	return strings.Fields(g.within("dd if=/dev/urandom of=/" + name + " bs=64k count=8 2>/dev/null && sha256sum </" + name))[0]
}

// frozen asks the guest agent itself.
func (g *frozenGuest) frozen(ctx context.Context) (bool, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", g.agentSocket)
	if err != nil {
		return false, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if _, err = fmt.Fprint(c, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":7}}\n{\"execute\":\"guest-fsfreeze-status\"}\n"); err != nil {
		return false, err
	}
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return false, err
		}
		var answer struct{ Return string }
		if json.Unmarshal(line, &answer) == nil && answer.Return != "" {
			return answer.Return == "frozen", nil
		}
	}
}

// becomes waits until the guest is frozen, or is not.
func (g *frozenGuest) becomes(frozen bool) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	if err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		now, err := g.frozen(ctx)
		return now == frozen, err
	}); err != nil {
		g.t.Fatalf("the guest does not become frozen=%v: %v", frozen, err)
	}
}

// awaitFreeze waits until the guest is told once more to freeze.
func (g *frozenGuest) awaitFreeze() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), time.Minute)
	defer cancel()
	if err := poll(ctx, 50*time.Millisecond, func() (bool, error) {
		out, err := g.vm.Run(ctx, "grep -c freeze /run/hook; true")
		return strings.TrimSpace(out) == strconv.Itoa(g.freezes+1), err
	}); err != nil {
		g.t.Fatalf("the guest is not told to freeze: %v", err)
	}
	g.freezes++
}

// features are what the superblock of an image says.
func (g *frozenGuest) features(image string) string {
	g.t.Helper()
	out, err := exec.CommandContext(g.t.Context(), needs.Tool(g.t, "dumpe2fs", "e2fsprogs"), "-h", image).CombinedOutput()
	if err != nil {
		g.t.Fatalf("dumpe2fs: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if f, ok := strings.CutPrefix(line, "Filesystem features:"); ok {
			return f
		}
	}
	g.t.Fatalf("dumpe2fs says nothing of features:\n%s", out)
	return ""
}

const needsRecovery = "needs_recovery"

// holdsCached makes backups that must be as of a file system that was unmounted, with what
// was only in the guest's memory; without freezing they are not.
func (g *frozenGuest) holdsCached() {
	g.t.Helper()
	crashed := g.backupWhileWriting(agent.CreateBackup{Volume: "disk", Force: true})
	image := g.path("crashed.img")
	g.restore(crashed.ID, image)
	if f := g.features(image); crashed.Quiesced || !strings.Contains(f, needsRecovery) {
		g.t.Errorf("not frozen, the backup is of a file system at rest (quiesced: %v): the test tests nothing: %s", crashed.Quiesced, f)
	}
	if _, err := g.control.SetQuiesce(g.t.Context(), "disk", agent.Quiesce{Agent: g.agentSocket}); err != nil {
		g.t.Fatal(err)
	}
	for i := range 2 {
		name := fmt.Sprint("cached", i)
		sum := g.cached(name)
		made := g.backupWhileWriting(agent.CreateBackup{Volume: "disk", Incremental: true})
		g.awaitFreeze() // once
		if !made.Quiesced || made.Warning != "" || made.Parent == "" || made.FullCompareReason != "" {
			g.t.Errorf("frozen: %+v", made)
		}
		image = g.path(name + ".img")
		g.restore(made.ID, image)
		if f := g.features(image); strings.Contains(f, needsRecovery) {
			g.t.Errorf("a backup of the frozen guest needs its journal: %s", f)
		}
		g.fsck(image)
		g.run(needs.Tool(g.t, "debugfs", "e2fsprogs"), "-R", "dump /"+name+" "+image+".file", image)
		if got := g.sum(image + ".file"); got != sum {
			g.t.Errorf("the frozen guest's file %s has the checksum %s in backup %s, not %s", name, got, made.ID, sum)
		}
	}
	if hook := g.within("cat /run/hook"); hook != strings.Repeat("freeze\nthaw\n", 2) {
		g.t.Errorf("the guest's hook was called for\n%s", hook)
	}
}

// killed kills the agent while the guest is about to freeze, which it does when nobody is
// there any more; the next agent thaws it.
func (g *frozenGuest) killed() {
	g.t.Helper()
	g.within("touch /run/slow")
	if _, err := g.control.CreateBackup(g.t.Context(), agent.CreateBackup{Volume: "disk"}); err != nil {
		g.t.Fatal(err)
	}
	g.awaitFreeze()
	g.kill(g.agent)
	g.within("rm /run/slow")
	g.becomes(true)
	g.startAgent()
	g.becomes(false)
	g.awaitFiles(3)
}

// slow has the guest need longer to freeze than it may be frozen: the backup fails, and the
// guest is thawed.
func (g *frozenGuest) slow() {
	g.t.Helper()
	g.within("touch /run/slow")
	job, err := g.control.CreateBackup(g.t.Context(), agent.CreateBackup{Volume: "disk"})
	if err != nil {
		g.t.Fatal(err)
	}
	g.awaitFreeze()
	g.within("sleep 12; rm /run/slow")
	if job, err = g.control.WaitJob(g.t.Context(), job.ID, nil); err != nil {
		g.t.Fatal(err)
	}
	if job.State != agent.JobFailed || !strings.Contains(job.Error, "volume disk could not be quiesced") {
		g.t.Errorf("its freeze took longer than the limit: %s: %s", job.State, job.Error)
	}
	g.becomes(false)
	g.awaitFiles(3)
	if made := g.backupWhileWriting(agent.CreateBackup{Volume: "disk", Incremental: true}); !made.Quiesced {
		g.t.Errorf("the next backup: %+v", made)
	}
}
