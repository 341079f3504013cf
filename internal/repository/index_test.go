package repository

import (
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/vfs"
)

func withIndex(dir string, fsys vfs.FS) func(*Options) {
	return func(o *Options) { o.CacheDir, o.FS, o.Cache.Index = dir, fsys, 1<<20 }
}

// newBytes runs a full backup and returns how much of it was stored anew.
func newBytes(t *testing.T, r *Repository, v *content, id string) int64 {
	t.Helper()
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := s.Commit(t.Context(), Root{BackupID: id, Geometry: v.geometry(), Top: top}); o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	return s.Stored().BytesStored
}

func TestIndexSavesASecondFullBackup(t *testing.T) {
	c, _ := fresh(t)
	dir := t.TempDir()
	v := randomContent(seeded(60), 200, 60)
	r, err := Open(t.Context(), func() Options {
		o := Options{Stores: c.stores(), Password: password, Timing: eager}
		withIndex(dir, nil)(&o)
		return o
	}())
	if err != nil {
		t.Fatal(err)
	}
	first := newBytes(t, r, v, "b1")
	if err = r.Close(); err != nil {
		t.Fatal(err)
	}
	r = c.open(t, withIndex(dir, nil))
	if again := newBytes(t, r, v, "b2"); again > first/10 {
		t.Errorf("%d bytes were stored, then %d", first, again)
	}
	mustVerify(t, v, r, "b2")
	// A second process gets no index, and works.
	second := c.open(t, withIndex(dir, nil))
	if second.index != nil {
		t.Error("two processes share the index")
	}
	newBytes(t, second, v, "b3")
}

func TestIndexIsRebuilt(t *testing.T) {
	c, r := fresh(t) // without an index
	v := randomContent(seeded(64), 200, 60)
	first := newBytes(t, r, v, "b1")
	other := c.open(t, withIndex(t.TempDir(), nil))
	if again := newBytes(t, other, v, "b2"); again > first/10 {
		t.Errorf("%d bytes were stored, then, by a host without an index, %d", first, again)
	}
	mustVerify(t, v, other, "b2")
}

func TestAbortedSessionsDoNotReachTheIndex(t *testing.T) {
	c, _ := fresh(t)
	r := c.open(t, withIndex(t.TempDir(), nil))
	v := randomContent(seeded(61), 100, 30)
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	if _, failed := v.write(t.Context(), s, nil); failed != nil {
		t.Fatal(failed)
	}
	if err = s.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	// What it wrote may be swept now.
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if _, ok := parsePackName(name); ok {
				if err = m.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	v.mustBackup(t, r, "b1", "", nil)
	mustVerify(t, v, r, "b1")
}

func TestStaleIndexIsDropped(t *testing.T) {
	// An index that missed a prune: its list is gone, only "done" is left.
	c, _ := fresh(t)
	r := c.open(t, withIndex(t.TempDir(), nil))
	v := randomContent(seeded(62), 100, 30)
	v.mustBackup(t, r, "b1", "", nil)
	id, err := newIdent()
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gone, err := parseIdent(list[0].Session)
	if err != nil {
		t.Fatal(err)
	}
	purged, err := r.keys.sealEnvelope(kindPurged, purgedName(gone), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.mem {
		m.Replace(purgedName(gone), purged)
		for _, name := range m.Names() {
			if _, ok := parsePackName(name); ok {
				if err = m.Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.Replace(prunePrefix+id.String()+"/"+doneLeaf, nil)
	}
	v.mustBackup(t, r, "b2", "", nil)
	mustVerify(t, v, c.open(t), "b2")
}

// Whatever happens to the files of the index, what a lookup returns was
// inserted.
func TestDamagedIndexIsNeverWrong(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "") //nolint:usetesting // one for each run
		if err != nil {
			rt.Fatal(err)
		}
		key := [32]byte{1}
		generation := ident{2}
		tab, err := openTable(vfs.OS(), dir, key, 8*pageSize, generation)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = tab.f.Close() }()
		inserted := make(map[chunk.ID]chunk.Location)
		for i := range rapid.IntRange(1, 1200).Draw(rt, "entries") {
			var ref chunk.Ref
			binary.BigEndian.PutUint64(ref.ID[:], uint64(i)*0x9e3779b97f4a7c15)
			ref.Pack[0], ref.Offset, ref.Length = byte(i%7), uint32(i), 100
			inserted[ref.ID] = ref.Location
			if err := tab.insertPage(tab.page(ref.ID), []chunk.Ref{ref}); err != nil {
				rt.Fatal(err)
			}
		}
		path := filepath.Join(dir, "table")
		for range rapid.IntRange(0, 20).Draw(rt, "damages") {
			damageFile(rt, path)
		}
		removed := rapid.Bool().Draw(rt, "remove")
		if removed {
			if err := tab.remove(func(p chunk.PackID) bool { return p[0] == 3 }); err != nil {
				rt.Fatal(err)
			}
		}
		dropped := rapid.Bool().Draw(rt, "drop")
		if dropped {
			if err := tab.drop(ident{3}); err != nil {
				rt.Fatal(err)
			}
		}
		for id, want := range inserted {
			got, ok, err := tab.lookup(id)
			if err != nil {
				rt.Fatal(err)
			}
			if ok && (got != want || dropped || removed && got.Pack[0] == 3) {
				rt.Fatalf("lookup = %+v, inserted %+v", got, want)
			}
		}
	})
}

func damageFile(rt *rapid.T, path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		rt.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, pageSize)
	from, to := rapid.Int64Range(0, 7).Draw(rt, "from"), rapid.Int64Range(0, 7).Draw(rt, "to")
	if _, err := f.ReadAt(buf, from*pageSize); err != nil {
		rt.Fatal(err)
	}
	switch rapid.IntRange(0, 2).Draw(rt, "how") {
	case 0: // a flipped bit
		buf[rapid.IntRange(0, pageSize-1).Draw(rt, "byte")] ^= 4
		to = from
	case 1: // a torn write
		clear(buf[512:])
		to = from
	default: // a page in the wrong place
	}
	if _, err := f.WriteAt(buf, to*pageSize); err != nil {
		rt.Fatal(err)
	}
}

func TestIndexSurvivesItsFolder(t *testing.T) {
	tests := []struct {
		name string
		harm func(t *testing.T, dir string)
	}{
		{"deleted", func(t *testing.T, dir string) {
			t.Helper()
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}},
		{"state damaged", func(t *testing.T, dir string) { t.Helper(); scribble(t, dir, "state") }},
		{"table damaged", func(t *testing.T, dir string) { t.Helper(); scribble(t, dir, "table") }},
		{"old journal", func(t *testing.T, dir string) {
			t.Helper()
			if err := os.Rename(filepath.Join(dir, "lock"), filepath.Join(dir, journalPrefix+"x")); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := fresh(t)
			dir := t.TempDir()
			v := randomContent(seeded(63), 100, 30)
			o := Options{Stores: c.stores(), Password: password, Timing: eager}
			withIndex(dir, nil)(&o)
			r, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			v.mustBackup(t, r, "b1", "", nil)
			inner := filepath.Join(dir, "index-"+r.id.String())
			if failed := r.Close(); failed != nil {
				t.Fatal(failed)
			}
			tt.harm(t, inner)
			r = c.open(t, withIndex(dir, nil))
			if r.index == nil {
				t.Error("no index")
			}
			v.mustBackup(t, r, "b2", "", nil)
			mustVerify(t, v, r, "b2")
			entries, err := os.ReadDir(inner)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() == journalPrefix+"x" {
					t.Error("an old journal is still there")
				}
			}
		})
	}
}

func scribble(t *testing.T, dir, name string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, fs.FileMode(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, failed := f.WriteAt([]byte("nonsense"), 10); failed != nil {
		t.Fatal(failed)
	}
	if err = f.Close(); err != nil {
		t.Fatal(err)
	}
}
