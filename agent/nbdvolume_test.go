package agent

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/nbd"
)

// otherServer starts another NBD server for a file, and returns its URI.
type otherServer func(t *testing.T, dir, file string) string

// otherServers are servers that are not Cairn's.
var otherServers = map[string]otherServer{
	"nbdkit": func(t *testing.T, dir, file string) string {
		t.Helper()
		return serving(t, dir, exec.CommandContext(t.Context(), needs.Tool(t, "nbdkit", "nbdkit"), "-f", "--exit-with-parent", "-U", filepath.Join(dir, "s"), "file", file))
	},
	"qemu-nbd": func(t *testing.T, dir, file string) string {
		t.Helper()
		return serving(t, dir, exec.CommandContext(t.Context(), needs.Tool(t, "qemu-nbd", "qemu-utils"), "-t", "-f", "raw", "--discard=unmap", "-k", filepath.Join(dir, "s"), file))
	},
	"without flush": func(t *testing.T, dir, file string) string { // nor anything else that is optional
		t.Helper()
		return serving(t, dir, exec.CommandContext(t.Context(), needs.Tool(t, "nbdkit", "nbdkit"), "-f", "--exit-with-parent", "-U", filepath.Join(dir, "s"),
			"sh", plainServer(t, file)))
	},
}

// plainServer is a plugin of nbdkit that can read and write and nothing else.
func plainServer(t *testing.T, file string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "plugin")
	script := `#!/bin/sh
F='` + file + `'
case "$1" in
  get_size) stat -L -c %s "$F" ;;
  pread) dd if="$F" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=64k 2>/dev/null ;;
  pwrite) dd of="$F" oflag=seek_bytes conv=notrunc seek="$4" bs=64k 2>/dev/null ;;
  can_write) exit 0 ;;
  can_fua) echo none ;;
  can_flush|can_trim|can_zero|can_extents) exit 3 ;;
  *) exit 2 ;;
esac
`
	if err := os.WriteFile(name, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return name
}

// serving runs a server on the socket "s" in dir until the test ends.
func serving(t *testing.T, dir string, cmd *exec.Cmd) string {
	t.Helper()
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	socket := filepath.Join(dir, "s")
	for range 2000 {
		if c, err := new(net.Dialer).DialContext(t.Context(), "unix", socket); err == nil {
			if err = c.Close(); err != nil {
				t.Error(err)
			}
			return nbd.URI(socket, "")
		}
		pause(t.Context(), 5*time.Millisecond)
	}
	t.Fatalf("%s does not serve: %s", cmd, said.String())
	return ""
}

// rawDisk makes a raw file: data, a hole and data.
func rawDisk(t *testing.T, name string, size int64) []byte {
	t.Helper()
	content := make([]byte, size)
	copy(content, noise(3<<16))
	copy(content[size-5<<16:], noise(5<<16))
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	_, first := f.WriteAt(content[:3<<16], 0)
	_, last := f.WriteAt(content[size-5<<16:], size-5<<16)
	if err = errors.Join(first, last, f.Close()); err != nil {
		t.Fatal(err)
	}
	return content
}

// TestOtherServers: the export of any NBD server is a volume, which is backed up, compared
// in full from then on with the reason, and restored to.
func TestOtherServers(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	for name, start := range otherServers {
		t.Run(name, func(t *testing.T) {
			dir := r.folder()
			file := filepath.Join(dir, "disk")
			want := rawDisk(t, file, 2<<20)
			uri := start(t, dir, file)
			called := strings.ReplaceAll(name, " ", "-")
			v, err := r.agent.CreateVolume(ctx, CreateVolume{Name: called, NBD: uri})
			if err != nil || v.Kind != "nbd" || v.Size != 2<<20 || v.URI != uri || v.Status != "available" {
				t.Fatalf("%+v, %v", v, err)
			}
			full := r.backup(CreateBackup{Volume: called})
			r.same(full, want)
			if full.Incremental || !strings.Contains(full.Warning, "may have been written") || !strings.HasSuffix(full.Warning, "wrote meanwhile") {
				t.Errorf("full: %+v", full)
			}
			change(t, file, want, 1<<20)
			incr := r.backup(CreateBackup{Volume: called, Incremental: true})
			r.same(incr, want)
			if incr.Parent != full.ID || incr.FullCompareReason != "the server does not say what changed" || incr.BytesChanged != 1<<16 {
				t.Errorf("incremental: %+v", incr)
			}
			change(t, file, want, 0)
			change(t, file, want, 1<<19)
			j := r.wait(r.agent.Restore(ctx, Restore{Backup: incr.ID, Volume: called}))
			res, err := DecodeRestore(j)
			if err != nil || j.State != JobSucceeded || res.BytesWritten > 2<<16 {
				t.Fatalf("restore: %+v, %+v, %v", j, res, err)
			}
			if hasWarning := strings.Contains(res.Warning, "no flush"); hasWarning != (name == "without flush") {
				t.Errorf("warning %q", res.Warning)
			}
			r.same(incr, contentOf(t, file))
			if err = r.agent.DeleteVolume(ctx, called); err != nil {
				t.Error(err)
			}
		})
	}
}

func change(t *testing.T, file string, content []byte, off int64) {
	t.Helper()
	copy(content[off:], noise(4096))
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(content[off:off+4096], off)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func contentOf(t *testing.T, file string) []byte {
	t.Helper()
	p, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// nbdkit runs nbdkit with a file: options with a dash go in front of it, and parameters
// behind it.
func nbdkit(t *testing.T, dir, file string, args ...string) string {
	t.Helper()
	all := []string{"-f", "--exit-with-parent", "-U", filepath.Join(dir, "s"), "file", file}
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			all = append([]string{a}, all...)
		} else {
			all = append(all, a)
		}
	}
	return serving(t, dir, exec.CommandContext(t.Context(), needs.Tool(t, "nbdkit", "nbdkit"), all...))
}

// folder makes a folder for a server's socket and file.
func (r *rig) folder() string {
	r.Helper()
	dir, err := os.MkdirTemp(r.dir, "")
	if err != nil {
		r.Fatal(err)
	}
	return dir
}

// TestRestoreToServers: a backup is restored to the export of any NBD server, of which only
// what differs is written.
func TestRestoreToServers(t *testing.T) {
	r := testRig(t)
	v, want := r.volume("disk", 2<<20), make([]byte, 2<<20)
	r.put(v, want, noise(3<<16), 1<<20)
	b := r.backup(CreateBackup{Volume: "disk"})
	for name, start := range otherServers {
		t.Run(name, func(t *testing.T) {
			dir := r.folder()
			file := filepath.Join(dir, "disk")
			content := rawDisk(t, file, 3<<20) // larger, and full of something else
			uri := start(t, dir, file)
			copy(content, want)
			for round, most := range []int64{3 << 16, 0} {
				j := r.wait(r.agent.Restore(t.Context(), Restore{Backup: b.ID, NBD: uri, Verify: true}))
				res, err := DecodeRestore(j)
				if err != nil || j.State != JobSucceeded || j.Target != uri || res.NBD != uri || res.BytesWritten > most {
					t.Fatalf("round %d: %+v, %+v, %v", round, j, res, err)
				}
				if hasWarning := strings.Contains(res.Warning, "no flush"); hasWarning != (name == "without flush") {
					t.Errorf("warning %q", res.Warning)
				}
				r.equal("the target", contentOf(t, file), content)
			}
		})
	}
}

// TestRestoreToServerCanceled: a canceled restore to an NBD server says what it left, and
// nobody restores to one export twice at once.
func TestRestoreToServerCanceled(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 8<<20)
	r.put(v, make([]byte, 8<<20), noise(8<<20), 0)
	b := r.backup(CreateBackup{Volume: "disk"})
	dir := r.folder()
	file := filepath.Join(dir, "disk")
	rawDisk(t, file, 8<<20)
	uri := nbdkit(t, dir, file, "--filter=delay", "wdelay=200ms")
	j, err := r.agent.Restore(ctx, Restore{Backup: b.ID, NBD: uri})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = r.agent.Restore(ctx, Restore{Backup: b.ID, NBD: uri}); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), j.ID) {
		t.Errorf("a second restore: %v", err)
	}
	r.until("progress", func() bool {
		now, jerr := r.agent.Job(ctx, j.ID)
		return jerr != nil || now.Progress.Written > 0 || now.State.Final()
	})
	if _, err = r.agent.CancelJob(ctx, j.ID); err != nil {
		t.Fatal(err)
	}
	if j = r.wait(j, nil); j.State != JobCanceled || !strings.Contains(j.Error, uri+" holds a mixture") {
		t.Errorf("%+v", j)
	}
	if j = r.wait(r.agent.Restore(ctx, Restore{Backup: b.ID, NBD: uri})); j.State != JobSucceeded {
		t.Errorf("again: %+v", j)
	}
	r.same(b, contentOf(t, file))
}

// TestForeignRefusals: what a foreign volume cannot do, and what cannot be one, is said in
// a sentence.
func TestForeignRefusals(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	v := r.volume("disk", 1<<20)
	b := r.backup(CreateBackup{Volume: "disk"})
	dir, small := r.folder(), r.folder()
	rawDisk(t, filepath.Join(dir, "disk"), 1<<20)
	uri := nbdkit(t, dir, filepath.Join(dir, "disk"), "-r")
	rawDisk(t, filepath.Join(small, "disk"), 512<<10)
	smallURI := nbdkit(t, small, filepath.Join(small, "disk"))
	if _, err := r.agent.CreateVolume(ctx, CreateVolume{Name: "there", NBD: uri}); err != nil {
		t.Fatal(err)
	}
	create := func(req CreateVolume) error { return second(r.agent.CreateVolume(ctx, req)) }
	snapshot := func(req CreateSnapshots) error { return second(r.agent.CreateSnapshots(ctx, req)) }
	restore := func(req Restore) error { req.Backup = b.ID; return second(r.agent.Restore(ctx, req)) }
	away := nbd.URI(filepath.Join(r.dir, "nobody"), "")
	for name, x := range map[string]struct {
		err  error
		want *Error
		text string
	}{
		"extend":              {second(r.agent.ExtendVolume(ctx, "there", 2<<20)), ErrInvalid, "of kind nbd cannot be extended"},
		"reopen":              {second(r.agent.ReopenVolume(ctx, "there")), ErrInvalid, "nothing to be reopened"},
		"snapshot":            {snapshot(CreateSnapshots{Volumes: []string{"there"}}), ErrInvalid, "NBD has no snapshots"},
		"snapshot of two":     {snapshot(CreateSnapshots{Volumes: []string{"disk", "there"}}), ErrInvalid, "each alone"},
		"its snapshot":        {second(r.agent.CreateBackup(ctx, CreateBackup{Volume: "there", Snapshot: "x"})), ErrNotFound, "x"},
		"name of it":          {create(CreateVolume{Name: "there", Size: 1 << 20}), ErrConflict, "of kind nbd already"},
		"name taken":          {create(CreateVolume{Name: "disk", NBD: uri}), ErrConflict, "already"},
		"ID taken":            {create(CreateVolume{Name: "x", ID: v.ID, NBD: uri}), ErrConflict, "already"},
		"twice":               {create(CreateVolume{Name: "there", NBD: uri}), ErrConflict, "already"},
		"our own":             {create(CreateVolume{Name: "x", NBD: v.URI}), ErrConflict, "is volume disk"},
		"no server":           {create(CreateVolume{Name: "x", NBD: away}), ErrUnavailable, "nobody"},
		"no URI":              {create(CreateVolume{Name: "x", NBD: "http://here"}), ErrInvalid, "no NBD URI"},
		"two things":          {create(CreateVolume{Name: "x", NBD: uri, Size: 1}), ErrInvalid, "one thing"},
		"half a qemu":         {create(CreateVolume{Name: "x", QMP: "/run/q"}), ErrInvalid, "needs both"},
		"restore, read-only":  {restore(Restore{NBD: uri}), ErrInvalid, "is volume there"},
		"restore, too small":  {restore(Restore{NBD: smallURI}), ErrInvalid, "make it larger"},
		"restore, no server":  {restore(Restore{NBD: away}), ErrConflict, "nobody"},
		"restore, no URI":     {restore(Restore{NBD: "disk"}), ErrInvalid, "no NBD URI"},
		"restore, our own":    {restore(Restore{NBD: v.URI}), ErrInvalid, "is volume disk"},
		"restore, two places": {restore(Restore{NBD: uri, File: "/x"}), ErrInvalid, "several targets"},
		"overwrite":           {restore(Restore{NBD: uri, Overwrite: true}), ErrInvalid, "for files"},
	} {
		if x.err == nil || !errors.Is(x.err, x.want) || !strings.Contains(x.err.Error(), x.text) {
			t.Errorf("%s: %v", name, x.err)
		}
	}
	j := r.wait(r.agent.Restore(ctx, Restore{Backup: b.ID, Volume: "there"}))
	if j.State != JobFailed || !strings.Contains(j.Error, "read-only") {
		t.Errorf("restore to a read-only one: %+v", j)
	}
}

// TestServerAway: a volume whose server does not answer is shown, its backup fails with a
// sentence, and what the server has when it is back is backed up, also with another size.
func TestServerAway(t *testing.T) {
	r := testRig(t)
	ctx := t.Context()
	dir := r.folder()
	file := filepath.Join(dir, "disk")
	rawDisk(t, file, 1<<20)
	var v Volume
	t.Run("there", func(t *testing.T) { // ends the server
		var err error
		if v, err = r.agent.CreateVolume(ctx, CreateVolume{Name: "disk", NBD: nbdkit(t, dir, file)}); err != nil {
			t.Fatal(err)
		}
		r.backup(CreateBackup{Volume: "disk"})
	})
	j := r.wait(r.agent.CreateBackup(ctx, CreateBackup{Volume: "disk"}))
	if j.State != JobFailed || j.Code != string(CodeUnavailable) || !strings.Contains(j.Error, "volume disk (nbd+unix:") {
		t.Errorf("%+v", j)
	}
	r.stopAgent()
	r.startAgent()
	if got, err := r.agent.Volume(ctx, v.ID); err != nil || got.URI != v.URI || got.Size != 1<<20 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.Remove(filepath.Join(dir, "s")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	want := rawDisk(t, file, 2<<20)
	nbdkit(t, dir, file)
	b := r.backup(CreateBackup{Volume: "disk", Incremental: true})
	r.same(b, want)
	if got, err := r.agent.Volume(ctx, v.ID); err != nil || got.Size != 2<<20 || b.Size != 2<<20 {
		t.Errorf("%+v, %v: %+v", got, err, b)
	}
}
