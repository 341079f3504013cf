package blockmap

import (
	"io/fs"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// watchedFS calls a function before each read of a segment's file.
type watchedFS struct {
	vfs.FS
	read func()
}

func (w *watchedFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := w.FS.OpenFile(name, flag, perm)
	if err == nil && strings.Contains(name, bitsPrefix) {
		f = watchedFile{f, w}
	}
	return f, err
}

type watchedFile struct {
	vfs.File
	w *watchedFS
}

func (f watchedFile) ReadAt(p []byte, off int64) (int, error) {
	f.w.read()
	return f.File.ReadAt(p, off)
}

// A snapshot, for which all guests wait, does not wait for those who read the
// record of changes; and they are told what it was when they asked, although all
// that they read is dropped meanwhile.
func TestReadersHoldNobodyUp(t *testing.T) {
	for name, read := range map[string]func(tr *Tracker) int64{
		"dirty": func(tr *Tracker) int64 {
			b, doubt, err := tr.Dirty("a", "")
			check(t, err)
			if doubt != "" {
				t.Errorf("doubt %q", doubt)
			}
			return b.Count()
		},
		"changes": func(tr *Tracker) int64 {
			c := tr.Changes()[0]
			if c.Doubt != "" || c.Name != "a" {
				t.Errorf("%+v", c)
			}
			return c.DirtyBlocks
		},
	} {
		w := &watchedFS{FS: vfs.NewMem(), read: func() {}}
		check(t, w.Mkdir("/t", 0o700))
		tr, err := CreateTracker(w, "/t", testOptions(1<<20))
		check(t, err)
		for i, c := range []string{"a", "b", "c"} {
			check(t, tr.AddCheckpoint(c))
			check(t, tr.Mark(int64(i)<<16, 1))
		}
		w.read = func() {
			w.read = func() {}
			check(t, tr.AddCheckpoint("d"))
			check(t, tr.Mark(1<<19, 1))
			for _, c := range []string{"a", "b", "c"} {
				check(t, tr.DropCheckpoint(c))
			}
		}
		if got := read(tr); got != 3 {
			t.Errorf("%s: %d blocks, want 3", name, got)
		}
		if got := tr.Changes(); len(got) != 1 || got[0].Name != "d" || got[0].DirtyBlocks != 1 {
			t.Errorf("%s: then %+v", name, got)
		}
		w.read = func() { t.Errorf("%s: names are read from the record of changes", name) }
		tr.Checkpoints()
		check(t, tr.Close())
	}
}
