package serve_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// lun is an empty LUN of a size, as two hosts have it.
func lun(t *testing.T, size int64) (here, there string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lun")
	must(t, os.WriteFile(file, make([]byte, size), 0o600))
	return needs.LUN(t, file)
}

// Two hosts have one LUN, and a data plane each. A fresh snapshot and the next writer at
// one of them see what was written at the other, also where the old content was read.
func TestFreshContent(t *testing.T) {
	here, there := lun(t, 2*mib)
	a, b := start(t, options(t)), start(t, options(t))
	v, err := a.CreateVolume(t.Context(), serve.CreateVolume{Name: "lun", Device: here})
	must(t, err)
	w, err := b.CreateVolume(t.Context(), serve.CreateVolume{Name: "lun", Device: there, ID: v.ID})
	must(t, err)
	readAll := func(uri string) []byte {
		t.Helper()
		c := dial(t, uri)
		defer closeClient(t, c)
		return read(t, c, 0, 2*mib)
	}
	put := func(p *plane, uri string, data []byte) {
		t.Helper()
		c := dial(t, uri)
		write(t, c, data, 0)
		closeClient(t, c) // who does not flush is not forgotten
		p.settled(t, "lun")
	}
	content := make([]byte, 2*mib)
	for round := range uint64(3) {
		old := content
		same(t, "the LUN at the beginning of a round", readAll(nbd.URI(v.Socket, "lun@ro")), old)
		content = random(2*round+1, 2*mib)
		put(b, w.URI, content)
		same(t, "what is read without a look at the medium", readAll(nbd.URI(v.Socket, "lun@ro")), old)
		s := a.snapshot(t, serve.CreateSnapshots{Volumes: []string{"lun"}, Name: "s", Temporary: true, Fresh: true})[0]
		same(t, "a fresh snapshot", readAll(s.URI), content)
		must(t, a.DeleteSnapshot(t.Context(), s.ID))

		content = random(2*round+2, 2*mib)
		put(b, w.URI, content)
		same(t, "the volume for a new writer", readAll(v.URI), content)
		a.settled(t, "lun")
		copy(content, random(100+round, mib))
		put(a, v.URI, content[:mib])
		same(t, "the volume for a writer at the other host", readAll(w.URI), content)
		b.settled(t, "lun")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A file that two hosts have, and whose locks reach both, is held by one data plane at a
// time. The other has it by a reopen, once the first was stopped.
func TestOneDataPlaneHoldsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk.img")
	must(t, os.WriteFile(file, random(8, mib), 0o600))
	a, b := start(t, options(t)), start(t, options(t))
	v, err := a.CreateVolume(t.Context(), serve.CreateVolume{Name: "db", File: file})
	must(t, err)
	there := serve.CreateVolume{Name: "db", File: file, ID: v.ID}
	if _, err = b.CreateVolume(t.Context(), there); !errors.Is(err, serve.ErrBusy) {
		t.Fatalf("made at the other: %v", err)
	}
	must(t, a.stop())
	_, err = b.CreateVolume(t.Context(), there)
	must(t, err)
	b.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s"})
	must(t, b.stop())
	a = start(t, a.o)
	c := dial(t, v.URI)
	write(t, c, random(9, block), 0)
	closeClient(t, c)
	b = start(t, b.o)
	got, err := b.Volume(t.Context(), "db")
	if err != nil || got.Status != serve.StatusError || !strings.Contains(got.Error, "in use by another process") {
		t.Fatalf("held by the other: %+v, %v", got, err)
	}
	if _, err = b.ReopenVolume(t.Context(), "db"); err == nil {
		t.Fatal("both hold it")
	}
	must(t, a.stop())
	if got, err = b.ReopenVolume(t.Context(), "db"); err != nil || got.Status != serve.StatusAvailable {
		t.Fatalf("the other was stopped: %+v, %v", got, err)
	}
	if s, err := b.Snapshot(t.Context(), "db@s"); err != nil || s.Status != serve.StatusBroken {
		t.Errorf("a snapshot of before the other wrote: %+v, %v", s, err)
	}
}
