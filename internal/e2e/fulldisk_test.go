package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/nbd"
)

// filled is a machine whose folder of state is a small disk of its own. The data of its
// volumes are elsewhere, and guests write to them all the time.
type filled struct {
	*host
	rng    *rand.Rand
	guests []*filledGuest
}

// filledGuest is connected to a volume.
type filledGuest struct {
	name    string
	content []byte
	disk    *nbd.Client
}

// filledSize makes several regions of the activity log of each volume.
const filledSize = 64 << 20

// TestFullDisk: while the disk of the state folder is full guests write on, in blocks that
// changed before and in others. A backup fails with a sentence that says where room is
// missing, whether before it has begun or in its middle, and leaves nothing in the
// repository. Once there is room the next one has all that was written.
func TestFullDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("fills a disk of 300 MiB: not with -short")
	}
	t.Parallel()
	f := &filled{host: emptyHost(t, cairnBinary(t)), rng: rand.New(rand.NewPCG(1, 1))}
	f.small()
	f.stores = []string{f.path("store1"), f.path("store2"), f.path("store3")}
	f.initRepository(2, 1)
	f.startServe()
	f.startAgent()
	f.addOwn()
	f.addOther()
	for _, g := range f.guests {
		f.write(g, 0, 8<<20)
		f.backedUp(g)
	}

	t.Log("the catalog is on the full disk")
	free := f.fill()
	f.writeAll()
	for _, g := range f.guests {
		if _, err := f.control.CreateBackup(t.Context(), agent.CreateBackup{Volume: g.name, Auto: true, Force: true}); !errors.Is(err, agent.ErrNoSpace) ||
			!strings.Contains(err.Error(), "free some space on the disk of "+f.path("state")) {
			t.Errorf("backup of %s: %v", g.name, err)
		}
	}
	f.kept(1)
	free()
	f.writeAll()
	for _, g := range f.guests {
		f.backedUp(g)
	}
	f.kept(2)

	t.Log("the catalog is elsewhere")
	elsewhere := []string{"--catalog", "sqlite:" + f.path("catalog.db")}
	f.restartAgent(elsewhere...)
	for _, g := range f.guests {
		f.backedUp(g)
	}
	free = f.fill()
	f.writeAll()
	f.fails(f.guests[0], "take a snapshot: volume own: free some space on the disk of "+f.path("state"))
	f.fails(f.guests[1], "record volume other: free some space on the disk of "+f.path("state"))
	free()
	f.writeAll()
	for _, g := range f.guests {
		f.backedUp(g)
	}

	t.Log("it becomes full while a backup reads")
	f.write(f.guests[0], 0, 32<<20)
	f.restartAgent(append(elsewhere, "--read-limit", "1MiB")...) // so that it has not ended by then
	f.fails(f.guests[0], "are free on the disk of "+f.path("state"), func() {
		free = f.fill()
		f.writeAll()
	})
	free()
	f.writeAll()
	f.restartAgent(elsewhere...)
	for _, g := range f.guests {
		f.backedUp(g)
	}
}

// restartAgent starts another agent with other settings.
func (f *filled) restartAgent(settings ...string) {
	f.t.Helper()
	f.kill(f.agent)
	f.settings = settings
	f.startAgent()
}

// small makes the folder of state a disk of 300 MiB, which is more than what is kept free
// of preimages.
func (f *filled) small() {
	f.t.Helper()
	dir := f.path("state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		f.t.Fatal(err)
	}
	mount := needs.Tool(f.t, "mount", "mount")
	if out, err := exec.CommandContext(f.t.Context(), mount, "-t", "tmpfs", "-o", "size=300m", "cairn-test", dir).CombinedOutput(); err != nil {
		needs.Missing(f.t, "needs the right to mount a tmpfs: %v: %s", err, out)
	}
	f.t.Cleanup(func() {
		for _, g := range f.guests {
			_ = g.disk.Close() // its server may have ended
		}
		f.kill(f.agent)
		f.kill(f.serve)
		if err := syscall.Unmount(dir, 0); err != nil {
			f.t.Error(err)
		}
	})
}

// raw makes the file of a volume.
func (f *filled) raw(name string) (file string) {
	f.t.Helper()
	file = f.path(name + ".raw")
	err := os.WriteFile(file, nil, 0o600)
	if err == nil {
		err = os.Truncate(file, filledSize)
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return file
}

// addOwn makes a volume of the data plane's.
func (f *filled) addOwn() {
	f.t.Helper()
	f.add(agent.CreateVolume{Name: "own", File: f.raw("own")})
}

// addOther makes the export of another server a volume.
func (f *filled) addOther() {
	f.t.Helper()
	socket := f.path("other.sock")
	cmd := exec.Command(needs.Tool(f.t, "nbdkit", "nbdkit"), "--foreground", "--unix", socket, "file", f.raw("other"))
	if err := cmd.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		_ = cmd.Process.Kill() // whatever became of it
		_ = cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	if err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
		_, err := nbd.List(ctx, nbd.URI(socket, ""))
		return err == nil, nil
	}); err != nil {
		f.t.Fatalf("nbdkit: %v", err)
	}
	f.add(agent.CreateVolume{Name: "other", NBD: nbd.URI(socket, "")})
}

func (f *filled) add(req agent.CreateVolume) {
	f.t.Helper()
	v, err := f.control.CreateVolume(f.t.Context(), req)
	if err != nil {
		f.t.Fatal(err)
	}
	c, err := nbd.Dial(f.t.Context(), v.URI, nbd.ClientOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	f.guests = append(f.guests, &filledGuest{name: v.Name, content: make([]byte, filledSize), disk: c})
}

// fill leaves no byte free until the function that it returns is called.
func (f *filled) fill() (free func()) {
	f.t.Helper()
	name := f.path("state", "filler")
	w, err := os.Create(name)
	if err != nil {
		f.t.Fatal(err)
	}
	p := make([]byte, 1<<20)
	for err == nil {
		_, err = w.Write(p)
	}
	if cerr := w.Close(); !errors.Is(err, syscall.ENOSPC) || cerr != nil {
		f.t.Fatal(err, cerr)
	}
	return func() {
		f.t.Helper()
		if err := os.Remove(name); err != nil {
			f.t.Fatal(err)
		}
	}
}

// writeAll lets every guest write a little of everything.
func (f *filled) writeAll() {
	f.t.Helper()
	for _, g := range f.guests {
		for off := int64(0); off < filledSize; off += 4 << 20 {
			f.write(g, off+f.rng.Int64N(3<<20), 100<<10)
		}
	}
}

// write is a guest that writes a range and flushes it.
func (f *filled) write(g *filledGuest, off, n int64) {
	f.t.Helper()
	p := g.content[off : off+n]
	for i := range p {
		p[i] = byte(f.rng.Uint32())
	}
	if err := errors.Join(g.disk.WriteAt(f.t.Context(), p, off, false), g.disk.Flush(f.t.Context())); err != nil {
		f.t.Fatalf("a write of the guest on %s: %v", g.name, err)
	}
}

// backedUp makes an incremental backup, which must hold what the volume does.
func (f *filled) backedUp(g *filledGuest) {
	f.t.Helper()
	b := f.backup(g.name, agent.CreateBackup{Volume: g.name, Auto: true, Force: true})
	file := filepath.Join(f.t.TempDir(), "restored")
	f.restore(b.ID, file)
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, g.content) {
		f.t.Errorf("the backup of %s is something else: %v", g.name, err)
	}
}

// fails makes a backup, which must fail and say why; meanwhile is done when it reads.
func (f *filled) fails(g *filledGuest, want string, meanwhile ...func()) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), time.Minute)
	defer cancel()
	job, err := f.control.CreateBackup(ctx, agent.CreateBackup{Volume: g.name, Auto: true, Force: true})
	for _, do := range meanwhile {
		if err == nil {
			err = poll(ctx, time.Millisecond, func() (bool, error) {
				j, jerr := f.control.Job(ctx, job.ID)
				return j.Progress.Read > 0, jerr
			})
		}
		do()
	}
	if err == nil {
		job, err = f.control.WaitJob(ctx, job.ID, nil)
	}
	if err != nil || job.State != agent.JobFailed || !strings.Contains(job.Error, want) {
		f.t.Errorf("backup of %s: %s %q, %v; want something of %q", g.name, job.State, job.Error, err, want)
	}
	b, err := f.control.Backup(ctx, job.Backup)
	if err != nil || b.Status != agent.BackupError {
		f.t.Errorf("its record: %s, %v", b.Status, err)
	}
}

// kept checks how many backups of each guest the agent and its stores have.
func (f *filled) kept(each int) {
	f.t.Helper()
	args := []string{"repo", "backups", "-o", "json", "--password-file", f.path("password")}
	for _, s := range f.stores {
		args = append(args, "--store", s)
	}
	var stored []struct{ ID string }
	out, err := exec.CommandContext(f.t.Context(), f.bin, args...).Output()
	if err == nil {
		err = json.Unmarshal(out, &stored)
	}
	l, lerr := f.control.Backups(f.t.Context())
	if want := each * len(f.guests); err != nil || lerr != nil || len(stored) != want || len(l) != want {
		f.t.Errorf("%d backups in the stores, %d of the agent, want %d: %v, %v", len(stored), len(l), want, err, lerr)
	}
}
