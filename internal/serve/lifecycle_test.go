package serve_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

const (
	mib   = 1 << 20
	block = blockmap.DefaultBlockSize
)

func TestVolumeLifecycle(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", 8*mib)
	want := serve.Volume{
		ID: v.ID, Name: "db", Path: filepath.Join(p.o.State, "volumes", v.ID, "data.raw"), Kind: serve.KindFile, Managed: true, Size: 8 * mib,
		Socket: filepath.Join(p.o.NBDDir, "db.sock"), URI: nbd.URI(filepath.Join(p.o.NBDDir, "db.sock"), "db"), Status: serve.StatusAvailable,
	}
	if v.Name != want.Name || v.Path != want.Path || v.Kind != want.Kind || !v.Managed || v.Size != want.Size || v.Socket != want.Socket ||
		v.URI != want.URI || v.Status != want.Status || v.InUse || v.Created.IsZero() {
		t.Errorf("created %+v, want %+v", v, want)
	}

	c := dial(t, v.URI)
	old := random(1, 3*block)
	write(t, c, old, 2*block)
	if got, err := p.Volume(t.Context(), "db"); err != nil || !got.InUse || got.Status != serve.StatusInUse || got.Writers != 1 || got.Writer == "" || got.BytesWritten != int64(len(old)) {
		t.Errorf("connected: %+v, %v", got, err)
	}

	// A snapshot of a volume in use needs force.
	req := serve.CreateSnapshots{Volumes: []string{"db"}, Name: "before", Checkpoints: []string{"b1"}}
	if _, err := p.CreateSnapshots(t.Context(), req); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("snapshot of a volume in use: %v, want busy", err)
	}
	req.Force = true
	s := p.snapshot(t, req)[0]
	if s.Volume != "db" || s.VolumeID != v.ID || s.Size != v.Size || s.Status != serve.StatusAvailable || s.Socket != filepath.Join(p.o.NBDDir, "db@before.sock") {
		t.Errorf("snapshot %+v", s)
	}
	write(t, c, random(2, block), 3*block)
	sc := dial(t, s.URI)
	same(t, "snapshot", read(t, sc, 2*block, 3*block), old)
	if !sc.ReadOnly() {
		t.Error("the snapshot's export is not read-only")
	}
	if err := p.DeleteSnapshot(t.Context(), "before"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("deleting a snapshot that is read: %v, want busy", err)
	}
	closeClient(t, sc)

	if err := p.RevertVolume(t.Context(), s.ID); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("reverting a volume in use: %v, want busy", err)
	}
	grown, err := p.ExtendVolume(t.Context(), "db", 9*mib)
	if err != nil || grown.Size != 9*mib {
		t.Fatalf("extend: %+v, %v", grown, err)
	}
	if got := dial(t, v.URI).Size(); got != 9*mib {
		t.Errorf("a new connection sees %d bytes", got)
	}
	closeClient(t, c)
}

func TestRevertAndDelete(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", 4*mib)
	c := dial(t, v.URI)
	old := random(1, mib)
	write(t, c, old, 0)
	closeClient(t, c)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{v.ID}, Name: "s"})[0]

	c = dial(t, v.URI)
	write(t, c, random(2, mib), mib/2)
	closeClient(t, c)
	if err := p.RevertVolume(t.Context(), "db@s"); err != nil {
		t.Fatalf("revert: %v", err)
	}
	c = dial(t, v.URI)
	same(t, "reverted", read(t, c, 0, 4*mib), append(bytes.Clone(old), make([]byte, 3*mib)...))

	if err := p.DeleteVolume(t.Context(), "db"); !errors.Is(err, serve.ErrConflict) {
		t.Errorf("deleting a volume with a snapshot: %v, want conflict", err)
	}
	if err := p.DeleteSnapshot(t.Context(), "s"); err != nil {
		t.Fatalf("delete snapshot: %v", err)
	}
	if _, err := os.Lstat(s.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket of a deleted snapshot: %v", err)
	}
	if err := p.DeleteVolume(t.Context(), "db"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("deleting a volume in use: %v, want busy", err)
	}
	closeClient(t, c)
	// The connection has only just ended: that is not busy.
	if err := p.DeleteVolume(t.Context(), "db"); err != nil {
		t.Fatalf("delete: %v", err)
	}
	for _, gone := range []string{v.Socket, v.Path, filepath.Dir(v.Path)} {
		if _, err := os.Lstat(gone); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}
	if _, err := p.Volume(t.Context(), "db"); !errors.Is(err, serve.ErrNotFound) {
		t.Errorf("deleted volume: %v, want not found", err)
	}
	if _, err := p.Volume(t.Context(), p.create(t, "db", mib).ID); err != nil {
		t.Errorf("the name cannot be used again: %v", err)
	}
}

func TestDirtyMapOfSnapshot(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", 4*mib)
	c := dial(t, v.URI)
	write(t, c, random(1, 4*mib), 0)
	first := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Temporary: true, Checkpoints: []string{"b1"}, Force: true})[0]
	write(t, c, []byte{1}, 7*block)
	write(t, c, random(2, block), 10*block+100)
	second := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Temporary: true, Checkpoints: []string{"b2"}, Force: true})[0]
	write(t, c, []byte{1}, 20*block)

	for _, tt := range []struct {
		name, uri, since string
		want             []int64
	}{
		{"first snapshot since itself", first.URI, "b1", nil},
		{"second since first", second.URI, "b1", []int64{7, 10, 11}},
		{"first since second", first.URI, "b2", []int64{7, 10, 11}},
		{"volume since first", v.URI, "b1", []int64{7, 10, 11, 20}},
		{"volume since second", nbd.URI(v.Socket, "db@ro"), "b2", []int64{20}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := dirtyOf(t, tt.uri, tt.since); !slices.Equal(got, tt.want) {
				t.Errorf("dirty blocks %v, want %v", got, tt.want)
			}
		})
	}
	got, err := p.Volume(t.Context(), "db")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Checkpoints) != 2 || got.Checkpoints[0].Name != "b1" || *got.Checkpoints[0].DirtyBytes != 4*block || *got.Checkpoints[1].DirtyBytes != block {
		t.Errorf("checkpoints %+v", got.Checkpoints)
	}
	if err := p.DropCheckpoint(t.Context(), "db", "b1"); err != nil {
		t.Fatalf("drop: %v", err)
	}
	if err := p.DropCheckpoint(t.Context(), "db", "b1"); !errors.Is(err, serve.ErrNotFound) {
		t.Errorf("dropping again: %v, want not found", err)
	}
	if err := p.DropCheckpoint(t.Context(), "db", "snapshot:"+second.ID); !errors.Is(err, serve.ErrInvalid) {
		t.Errorf("dropping a snapshot's position: %v, want invalid", err)
	}
}

// A checkpoint that is given to a snapshot later is where the snapshot is, and
// stays when that goes and when the data plane restarts.
func TestCheckpointAtSnapshot(t *testing.T) {
	o := options(t)
	p := start(t, o)
	v := p.create(t, "db", 4*mib)
	c := dial(t, v.URI)
	write(t, c, random(1, 4*mib), 0)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s", Force: true})[0]
	write(t, c, []byte{1}, 7*block)
	later := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "later", Force: true})[0]
	write(t, c, []byte{1}, 20*block)
	if err := p.AliasCheckpoint(t.Context(), "db@s", "b1"); err != nil {
		t.Fatal(err)
	}
	if err := p.AliasCheckpoint(t.Context(), later.ID, "b1"); !errors.Is(err, serve.ErrConflict) {
		t.Errorf("the same name again: %v, want conflict", err)
	}
	for uri, want := range map[string][]int64{s.URI: nil, later.URI: {7}, v.URI: {7, 20}} {
		if got := dirtyOf(t, uri, "b1"); !slices.Equal(got, want) {
			t.Errorf("%s since b1: %v, want %v", uri, got, want)
		}
	}
	closeClient(t, c)
	if err := p.DeleteSnapshot(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p = start(t, o)
	if got := dirtyOf(t, v.URI, "b1"); !slices.Equal(got, []int64{7, 20}) {
		t.Errorf("after a restart: %v", got)
	}
	if err := p.DropCheckpoint(t.Context(), "db", "b1"); err != nil {
		t.Error(err)
	}
}

// A map is kept between requests, and must never be older than the last change
// that was answered, whoever made it and however.
func TestDirtyMapIsCurrent(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", 4*mib)
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s", Checkpoints: []string{"b1"}})
	c := dial(t, v.URI)
	m := dial(t, nbd.URI(v.Socket, "db@ro"), nbd.ContextDirtyBitmap+"b1")
	dirty := func() (blocks []int64) {
		t.Helper()
		es, err := m.Map(t.Context(), nbd.ContextDirtyBitmap+"b1", 0, m.Size())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			for off := e.Offset; e.State == blockmap.Dirty && off < e.End(); off += block {
				blocks = append(blocks, off/block)
			}
		}
		return blocks
	}
	for i, do := range []func(off int64) error{
		func(off int64) error { return c.WriteAt(t.Context(), []byte{1}, off, false) },
		func(off int64) error { return c.WriteAt(t.Context(), random(1, 4096), off, true) },
		func(off int64) error { return c.Zero(t.Context(), off, 4096, true) },
		func(off int64) error { return c.Zero(t.Context(), off, 4096, false) },
		func(off int64) error { return c.WriteAt(t.Context(), random(1, mib), off, false) },
	} {
		if got := dirty(); len(got) != i {
			t.Fatalf("before change %d: dirty %v", i, got)
		}
		if err := do(int64(i) * block); err != nil {
			t.Fatal(err)
		}
	}
	if got := dirty(); len(got) != 4+mib/block {
		t.Errorf("in the end: dirty %v", got)
	}
	closeClient(t, c)

	// The same name at another position.
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}})[0]
	if got := dirtyOf(t, s.URI, "b1"); len(got) != 4+mib/block {
		t.Errorf("snapshot since b1: %v", got)
	}
	keep := dial(t, s.URI, nbd.ContextDirtyBitmap+"b1")
	if _, err := keep.Map(t.Context(), nbd.ContextDirtyBitmap+"b1", 0, block); err != nil {
		t.Fatal(err)
	}
	if err := p.DropCheckpoint(t.Context(), "db", "b1"); err != nil {
		t.Fatal(err)
	}
	c = dial(t, v.URI)
	write(t, c, []byte{9}, 60*block)
	closeClient(t, c)
	p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Temporary: true, Checkpoints: []string{"b1"}})
	if got := dirtyOf(t, s.URI, "b1"); !slices.Equal(got, []int64{60}) {
		t.Errorf("snapshot against the new b1: %v, want [60]", got)
	}
	if got := dirty(); len(got) != 0 {
		t.Errorf("volume since the new b1: %v", got)
	}
	// A revert is a change too.
	if err := p.RevertVolume(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if got := dirty(); !slices.Contains(got, 60) {
		t.Errorf("after a revert: dirty %v", got)
	}
}

func TestRestartKeepsAll(t *testing.T) {
	p := start(t, options(t))
	file := filepath.Join(t.TempDir(), "disk.img")
	content := random(3, 2*mib)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	v := p.create(t, "db", 4*mib)
	f, err := p.CreateVolume(t.Context(), serve.CreateVolume{Name: "img", File: file})
	if err != nil {
		t.Fatal(err)
	}
	if f.Size != 2*mib || f.Managed || f.Path != file {
		t.Errorf("volume of a file: %+v", f)
	}
	c := dial(t, v.URI)
	old := random(4, block)
	write(t, c, old, 0)
	closeClient(t, c)
	kept := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db", "img"}, Name: "kept"})
	temp := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Temporary: true, Checkpoints: []string{"b1"}})[0]
	c = dial(t, v.URI)
	write(t, c, random(5, block), 0)
	closeClient(t, c)

	p = p.restart(t)
	if _, err = os.Lstat(temp.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket of a temporary snapshot: %v", err)
	}
	ss, err := p.Snapshots(t.Context(), "")
	if err != nil || len(ss) != 2 || ss[0].ID != kept[0].ID || ss[1].ID != kept[1].ID {
		t.Fatalf("snapshots after a restart: %+v, %v", ss, err)
	}
	same(t, "snapshot after a restart", read(t, dial(t, ss[0].URI), 0, block), old)
	same(t, "file after a restart", read(t, dial(t, f.URI), 0, 2*mib), content)
	got, err := p.Volume(t.Context(), v.ID)
	if err != nil || len(got.Checkpoints) != 1 || got.Checkpoints[0].Name != "b1" || got.Checkpoints[0].Doubt != "" {
		t.Errorf("volume after a restart: %+v, %v", got, err)
	}
	if got := dirtyOf(t, v.URI, "b1"); !slices.Equal(got, []int64{0}) {
		t.Errorf("dirty after a restart: %v, want [0]", got)
	}

	// The file is not ours: it outlives its volume.
	if err = p.DeleteSnapshot(t.Context(), "img@kept"); err != nil {
		t.Fatal(err)
	}
	if err = p.DeleteVolume(t.Context(), "img"); !errors.Is(err, serve.ErrBusy) {
		t.Errorf("delete while connected: %v", err)
	}
	st, err := p.Status(t.Context())
	if err != nil || st.Volumes != 2 || st.VolumesError != 0 || st.Snapshots != 1 || st.Connections != 2 || st.Version != "test" || st.PID != os.Getpid() || st.ResidentBytes == 0 || st.HeapBytes == 0 {
		t.Errorf("status %+v, %v", st, err)
	}
}

func TestStopLeavesNoSocket(t *testing.T) {
	p := start(t, options(t))
	v := p.create(t, "db", mib)
	s := p.snapshot(t, serve.CreateSnapshots{Volumes: []string{"db"}, Name: "s"})[0]
	c := dial(t, v.URI) // a guest that does not leave
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	for _, sock := range []string{v.Socket, s.Socket, p.o.Control} {
		if _, err := os.Lstat(sock); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after a stop: %v", sock, err)
		}
	}
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err == nil {
		t.Error("the connection outlived the data plane")
	}
	if _, err := p.Status(t.Context()); !errors.Is(err, serve.ErrUnreachable) {
		t.Errorf("status of a stopped data plane: %v", err)
	}
}
