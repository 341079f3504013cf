package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/catalog/pgtest"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// hostRig is a host with a data plane and an agent, whose catalog is in a database.
func hostRig(t *testing.T, where, name string, other *rig) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "cairn") //nolint:usetesting // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{tester: t, dir: dir, host: name, catalog: where, served: true}
	if other == nil {
		r.init(r.six())
	} else {
		r.stores = other.stores
		var stores []objstore.Store
		for _, s := range r.stores {
			stores = append(stores, s)
		}
		if r.repo, err = repository.Open(t.Context(), repository.Options{Stores: stores, Password: []byte("secret"), CacheDir: filepath.Join(dir, "cache"), Agent: name}); err != nil {
			t.Fatal(err)
		}
		r.startBoth()
	}
	t.Cleanup(func() {
		r.close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// openCatalog is the catalog as a host sees it that has no agent.
func openCatalog(t *testing.T, where, host string) *catalog.Catalog {
	t.Helper()
	c, err := catalog.Open(t.Context(), where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c.For(host)
}

// TestTwoHosts: two agents on one catalog see each other's backups, and leave alone
// what the other has in hand, also when they start.
func TestTwoHosts(t *testing.T) {
	where := pgtest.Database(t)
	a := hostRig(t, where, "a", nil)
	b := hostRig(t, where, "b", a)
	ctx := t.Context()
	v := a.volume("web", 4<<20)
	shadow := make([]byte, 4<<20)
	a.put(v, shadow, noise(1<<20), 0)
	first := a.backup(CreateBackup{Volume: "web"})
	if got, err := b.agent.Backup(ctx, first.ID); err != nil || got.Host != "a" || got.Status != BackupAvailable {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := b.agent.CreateBackup(ctx, CreateBackup{Volume: v.ID}); !errors.Is(err, ErrNotFound) {
		t.Errorf("a volume of another host: %v", err)
	}

	a.put(v, shadow, noise(1<<20), 2<<20)
	began, release := a.hang()
	j, err := a.agent.CreateBackup(ctx, CreateBackup{Volume: "web", Incremental: true})
	if err != nil {
		t.Fatal(err)
	}
	<-began
	b.stopAgent()
	b.startAgent()
	if got, jerr := b.agent.Job(ctx, j.ID); jerr != nil || got.State != JobRunning || got.Host != "a" {
		t.Errorf("%+v, %v", got, jerr)
	}
	if got, berr := b.agent.Backup(ctx, j.Backup); berr != nil || got.Status != BackupCreating {
		t.Errorf("%+v, %v", got, berr)
	}
	if derr := b.agent.DeleteBackup(ctx, j.Backup); !errors.Is(derr, ErrBusy) || !strings.Contains(derr.Error(), "backup job ("+j.ID+") at host a") {
		t.Errorf("delete: %v", derr)
	}
	release()
	if j = a.wait(j, nil); j.State != JobSucceeded {
		t.Fatalf("%+v", j)
	}

	file := filepath.Join(b.dir, "restored")
	if got := b.wait(b.agent.Restore(ctx, Restore{Backup: j.Backup, File: file})); got.State != JobSucceeded || got.Host != "b" {
		t.Fatalf("%+v", got)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b.equal("what the other host restored", data, shadow)
	if got, berr := a.agent.Backup(ctx, j.Backup); berr != nil || got.Status != BackupAvailable {
		t.Errorf("%+v, %v", got, berr)
	}
	if derr := b.agent.DeleteBackup(ctx, first.ID); derr != nil {
		t.Errorf("delete a backup that the other host made: %v", derr)
	}
	if _, gerr := a.agent.Backup(ctx, first.ID); !errors.Is(gerr, ErrNotFound) {
		t.Errorf("deleted by the other host: %v", gerr)
	}
}

// TestLeftByHosts: what a host left that is down is settled by another, and what a
// host that is up has in hand is not.
func TestLeftByHosts(t *testing.T) {
	where := pgtest.Database(t)
	up, gone := openCatalog(t, where, "up"), openCatalog(t, where, "gone")
	ctx := t.Context()
	err := up.BeatHost(ctx, catalog.Host{Name: "up", ID: "x"})
	ids := map[string]string{}
	for name, c := range map[string]*catalog.Catalog{"up": up, "gone": gone} {
		for _, s := range []BackupStatus{BackupCreating, BackupRestoring, BackupDeleting, BackupError} {
			id := uuid.NewString()
			ids[name+string(s)] = id
			err = errors.Join(err, c.PutBackup(ctx, Backup{ID: id, Status: s, Unwanted: s == BackupError}))
		}
	}
	// Another host restores as well what the one that is gone restored.
	ids["both"] = uuid.NewString()
	err = errors.Join(err, gone.PutBackup(ctx, Backup{ID: ids["both"], Status: BackupRestoring}),
		up.PutJob(ctx, Job{ID: uuid.NewString(), Kind: catalog.RestoreJob, Backup: ids["both"], State: JobRunning}))
	if err != nil {
		t.Fatal(err)
	}
	r := hostRig(t, where, "a", nil)
	state := func(what string) BackupStatus {
		b, berr := r.agent.Backup(ctx, ids[what])
		if berr != nil && !errors.Is(berr, ErrNotFound) {
			t.Fatal(berr)
		}
		return b.Status
	}
	r.until("what the host left that is gone", func() bool {
		return state("gonecreating") == BackupError && state("gonerestoring") == BackupAvailable && state("gonedeleting") == "" && state("goneerror") == ""
	})
	if derr := r.agent.DeleteBackup(ctx, ids["both"]); !errors.Is(derr, ErrBusy) || !strings.Contains(derr.Error(), "restore job") {
		t.Errorf("delete what another host restores: %v", derr)
	}
	// When the next tidying is at work the first has ended.
	late := uuid.NewString()
	if err = gone.PutBackup(ctx, Backup{ID: late, Status: BackupDeleting}); err != nil {
		t.Fatal(err)
	}
	r.volume("v", 1<<20)
	r.backup(CreateBackup{Volume: "v"})
	r.until("the next tidying", func() bool { _, gerr := r.agent.Backup(ctx, late); return errors.Is(gerr, ErrNotFound) })
	for _, s := range []BackupStatus{BackupCreating, BackupRestoring, BackupDeleting, BackupError} {
		if got := state("up" + string(s)); got != s {
			t.Errorf("what a host that is up has %s is %q", s, got)
		}
	}
	if got := state("both"); got != BackupRestoring {
		t.Errorf("what another host restores is %q", got)
	}
}

// TestServiceList: all agents of the catalog are services.
func TestServiceList(t *testing.T) {
	where := pgtest.Database(t)
	r := hostRig(t, where, "b", nil)
	ctx := t.Context()
	h := newHub(Options{State: t.TempDir(), Host: "a", Catalog: where, Serve: r.serve})
	_, err := h.add(ctx, DefaultRepository, h.o.State)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if cerr := h.close(); cerr != nil {
			t.Error(cerr)
		}
	}()
	l, err := h.blockStorage().Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range l {
		state := "down"
		if x.Up {
			state = "up"
		}
		got = append(got, x.Binary+" "+x.Name+" "+state)
	}
	// The repository of a is not open, but its data plane answers.
	if want := "cinder-backup a down, cinder-volume a@cairn up, cinder-backup b up, cinder-volume b@cairn up"; strings.Join(got, ", ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// TestHostTaken: a name of a host has one agent. One that comes later is refused,
// and one whose name was taken over ends.
func TestHostTaken(t *testing.T) {
	where := pgtest.Database(t)
	r := hostRig(t, where, "a", nil)
	options := func(host string) Options {
		dir := t.TempDir()
		return Options{
			State: dir, Socket: filepath.Join(r.dir, host+"2"), NBDDir: filepath.Join(dir, "n"), Host: host, Catalog: where,
			Repository: r.repo, Serve: r.serve, KeepPriority: true, Logger: slog.New(slog.DiscardHandler),
		}
	}
	if err := Run(t.Context(), options("a"), nil); !errors.Is(err, catalog.ErrHostTaken) {
		t.Errorf("a second agent of host a: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*catalog.BeatEvery)
	defer cancel()
	started := time.Now()
	err := Run(ctx, options("b"), func() {
		db, derr := pgx.Connect(ctx, where)
		if derr != nil {
			t.Error(derr)
			return
		}
		_, derr = db.Exec(ctx, `UPDATE hosts SET id = 'another' WHERE name = 'b'`)
		if derr = errors.Join(derr, db.Close(ctx)); derr != nil {
			t.Error(derr)
		}
	})
	if !errors.Is(err, catalog.ErrHostTaken) {
		t.Errorf("whose name was taken: %v after %s", err, time.Since(started))
	}
}

// TestHostID: it stays with the state folder.
func TestHostID(t *testing.T) {
	dir := t.TempDir()
	first, err := hostID(dir)
	if err != nil || uuid.Validate(first) != nil {
		t.Fatal(first, err)
	}
	if again, aerr := hostID(dir); aerr != nil || again != first {
		t.Errorf("%s, %v", again, aerr)
	}
	if other, oerr := hostID(t.TempDir()); oerr != nil || other == first {
		t.Errorf("%s, %v", other, oerr)
	}
	if err = os.WriteFile(filepath.Join(dir, HostIDName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = hostID(dir); !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty file: %v", err)
	}
}
