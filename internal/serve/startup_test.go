package serve_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

func TestStateIsLocked(t *testing.T) {
	p := start(t, options(t))
	o := options(t)
	o.State = p.o.State
	err := serve.Run(t.Context(), o, func() { t.Error("two data planes share a state folder") })
	if !errors.Is(err, serve.ErrConflict) || !strings.Contains(err.Error(), o.State) {
		t.Errorf("second data plane: %v", err)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	start(t, o)
}

func TestControlSocketIsTaken(t *testing.T) {
	p := start(t, options(t))
	o := options(t)
	o.Control = p.o.Control
	if err := serve.Run(t.Context(), o, nil); !errors.Is(err, serve.ErrConflict) {
		t.Errorf("second data plane on a control socket: %v", err)
	}
	if _, err := p.Status(t.Context()); err != nil {
		t.Errorf("the first one: %v", err)
	}
}

func TestCanceledStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := start(t, options(t))
	p.create(t, "db", mib)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if err := serve.Run(ctx, p.o, nil); err != nil {
		t.Errorf("a start that was stopped: %v", err)
	}
	start(t, p.o)
}

func TestLeftovers(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	const id = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
	volumes := filepath.Join(p.o.State, "volumes")
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{id + ".new", id + ".deleted", "something"} {
		sub := filepath.Join(volumes, dir, "tracker")
		if err := os.MkdirAll(sub, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, "f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Dir(outside), filepath.Join(sub, "link")); err != nil {
			t.Fatal(err)
		}
	}
	p = start(t, p.o)
	for dir, want := range map[string]error{id + ".new": fs.ErrNotExist, id + ".deleted": fs.ErrNotExist, "something": nil, v.ID: nil} {
		if _, err := os.Lstat(filepath.Join(volumes, dir)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", dir, err, want)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("what a link pointed to: %v", err)
	}
	if vs, err := p.Volumes(t.Context()); err != nil || len(vs) != 1 {
		t.Errorf("volumes %+v, %v", vs, err)
	}
}

func TestUnopenableVolume(t *testing.T) {
	p := start(t, options(t))
	file := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(file, random(1, mib), 0o600); err != nil {
		t.Fatal(err)
	}
	bad, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "bad", File: file})
	if err != nil {
		t.Fatal(err)
	}
	lost := p.create(t, "lost", mib)
	good := p.create(t, "good", mib)
	if err = p.stop(); err != nil {
		t.Fatal(err)
	}
	if err = os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err = os.Rename(lost.Path, lost.Path+".away"); err != nil {
		t.Fatal(err)
	}

	p = start(t, p.o)
	closeClient(t, dial(t, good.URI))
	for name, path := range map[string]string{"bad": file, "lost": lost.Path} {
		v, showErr := p.Volume(t.Context(), name)
		if showErr != nil || v.Status != serve.StatusError || v.Error == "" || v.Path != path {
			t.Errorf("volume without its data: %+v, %v", v, showErr)
		}
	}
	if st, stErr := p.Status(t.Context()); stErr != nil || st.Volumes != 3 || st.VolumesError != 2 {
		t.Errorf("status %+v, %v", st, stErr)
	}
	if _, err = p.CreateSnapshots(t.Context(), serve.CreateSnapshots{Volumes: []string{"good", "bad"}}); !errors.Is(err, serve.ErrConflict) || !strings.Contains(err.Error(), "volume bad is not served") {
		t.Errorf("snapshot: %v", err)
	}
	if _, err = p.CreateVolume(t.Context(), serve.CreateVolume{Name: "bad", Size: mib}); !errors.Is(err, serve.ErrConflict) {
		t.Errorf("its name is free: %v", err)
	}
	if _, err = p.ReopenVolume(t.Context(), "bad"); err == nil {
		t.Error("reopened without data")
	}
	if err = p.DeleteVolume(t.Context(), "lost"); !errors.Is(err, serve.ErrConflict) || !strings.Contains(err.Error(), lost.ID) {
		t.Errorf("deleting data that cannot be looked at: %v", err)
	}

	if err = os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	v, err := p.ReopenVolume(t.Context(), bad.ID)
	if err != nil || v.Status != serve.StatusAvailable {
		t.Fatalf("reopen: %+v, %v", v, err)
	}
	same(t, "reopened volume", read(t, dial(t, v.URI), 0, mib), random(1, mib))
	if _, err = p.ReopenVolume(t.Context(), "bad"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("reopening a volume in use: %v", err)
	}
}

func TestReopenKeepsSnapshots(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s"})[0]
	c := dial(t, v.URI)
	write(t, c, random(1, mib), 0)
	closeClient(t, c)
	if _, err := p.ReopenVolume(t.Context(), "db"); err != nil {
		t.Fatal(err)
	}
	same(t, "snapshot", read(t, dial(t, s.URI), 0, mib), make([]byte, mib))
	same(t, "volume", read(t, dial(t, v.URI), 0, mib), random(1, mib))
}

func TestCopiedStateFolder(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	const id = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
	volumes := filepath.Join(p.o.State, "volumes")
	if err := os.CopyFS(filepath.Join(volumes, id), os.DirFS(filepath.Join(volumes, v.ID))); err != nil {
		t.Fatal(err)
	}
	p = start(t, p.o)
	if got, err := p.Volume(t.Context(), id); err != nil || got.Status != serve.StatusError || !strings.Contains(got.Error, "copied") {
		t.Errorf("the copy: %+v, %v", got, err)
	}
	if _, err := p.Volume(t.Context(), "db"); !errors.Is(err, serve.ErrConflict) {
		t.Errorf("an ambiguous name: %v, want conflict", err)
	}
	got, err := p.Volume(t.Context(), v.ID)
	if err != nil || got.Status != serve.StatusAvailable {
		t.Errorf("the original: %+v, %v", got, err)
	}
	closeClient(t, dial(t, nbd.URI(got.Socket, "db")))
}
