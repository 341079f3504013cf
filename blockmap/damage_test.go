package blockmap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// damageState builds a tracker with some history and returns what it must know,
// after a clean stop or a power failure.
func damageState(t *testing.T, seed uint64, clean bool) (*vfs.Mem, *model) {
	t.Helper()
	h := newHistory(seed, historySize)
	m, tr := newMemTracker(t, testOptions(historySize))
	h.tracker = tr
	check(t, tr.AddCheckpoint("first"))
	h.model.add("first")
	for range 40 {
		check(t, h.step())
	}
	if !clean {
		off := h.rng.Int64N(h.model.size + 1)
		n := min(100, h.model.size-off)
		check(t, tr.Mark(off, n)) // So that the log names a region.
		h.model.mark(off, n)
		return m.Crash(h.rng), h.model
	}
	check(t, tr.Close())
	return m, h.model
}

// overwrite replaces a file.
func overwrite(t *testing.T, m *vfs.Mem, name string, data []byte) {
	t.Helper()
	check(t, vfs.WriteFile(m, name, data, 0o600))
}

// Whatever happens to one file, nothing that changed is missing and nothing
// panics. It may be that everything counts as changed.
func TestDamagedFiles(t *testing.T) {
	damages := []struct {
		name string
		do   func(data []byte, at int, mask byte) []byte // nil = the file is gone
	}{
		{"flip", func(data []byte, at int, mask byte) []byte {
			if len(data) > 0 {
				data[at%len(data)] ^= mask
			}
			return data
		}},
		{"truncate", func(data []byte, at int, _ byte) []byte { return data[:at%(len(data)+1)] }},
		{"extend", func(data []byte, at int, mask byte) []byte { return append(data, make([]byte, at%8192+int(mask))...) }},
		{"zero a sector", func(data []byte, at int, _ byte) []byte {
			start := at % (len(data) + 1) &^ 511
			clear(data[start:min(start+512, len(data))])
			return data
		}},
		{"remove", func([]byte, int, byte) []byte { return nil }},
	}
	for _, clean := range []bool{true, false} {
		for _, d := range damages {
			t.Run(fmt.Sprintf("%s, clean %v", d.name, clean), func(t *testing.T) {
				for seed := range uint64(6) {
					base, want := damageState(t, seed, clean)
					entries, err := base.ReadDir("/t")
					check(t, err)
					r := source(seed)
					for _, e := range entries {
						for range 4 {
							m := base.Crash(r) // A copy: all is durable.
							name := filepath.Join("/t", e.Name())
							data, err := vfs.ReadFile(m, name, 1<<30)
							check(t, err)
							if data = d.do(data, int(r.Int32()), byte(1<<r.IntN(8))); data == nil {
								check(t, m.Remove(name))
							} else {
								overwrite(t, m, name, data)
							}
							verifyDamaged(t, m, want, e.Name())
						}
					}
				}
			})
		}
	}
}

// verifyDamaged opens twice, because the first open mends what it finds.
func verifyDamaged(t *testing.T, m *vfs.Mem, want *model, file string) {
	t.Helper()
	for range 2 {
		tr, err := OpenTracker(m, "/t", testOptions(want.size))
		check(t, err)
		for _, from := range want.names() {
			b, doubt, err := tr.Dirty(from, "")
			if errors.Is(err, ErrCheckpoint) && file == listName {
				continue // The copy of the list was older: the caller compares all.
			}
			check(t, err)
			if doubt != "" && b.Count() != b.Len() {
				t.Fatalf("%s: in doubt (%s), but only %d of %d blocks", file, doubt, b.Count(), b.Len())
			}
			if err := covers(b, want.dirty(from, "")); err != nil {
				t.Fatalf("%s damaged: since %s: %v", file, from, err)
			}
		}
		tr.Changes()
		for _, from := range checkpointNames(tr) { // Merging reads damaged files, too.
			if len(checkpointNames(tr)) > 2 && slices.Contains(want.names(), from) && from[len(from)-1]%2 == 0 {
				check(t, tr.DropCheckpoint(from))
				want = want.clone()
				want.drop(from)
			}
		}
		m = m.Crash(source(9))
	}
}

// A sector of bits that was damaged puts its own blocks in doubt, no others.
func TestDamagedSectorIsBounded(t *testing.T) {
	const size = 20 << 20
	m, tr := newMemTracker(t, testOptions(size))
	check(t, tr.AddCheckpoint("a"))
	check(t, tr.Mark(0, 1))
	check(t, tr.AddCheckpoint("b"))
	check(t, tr.Mark(size-1, 1))
	id, closed := tr.list.newest().id, tr.list.segments[0].id
	check(t, tr.Close())
	for _, name := range []string{bitsName("/t", id), bitsName("/t", closed)} {
		f, err := m.OpenFile(name, os.O_RDWR, 0)
		check(t, err)
		_, err = f.WriteAt([]byte{0xff}, 512*3+7)
		check(t, err)
	}
	tr, err := OpenTracker(m, "/t", testOptions(size))
	check(t, err)
	for from, want := range map[string]int64{"a": sectorBlocks + 2, "b": sectorBlocks + 1} {
		b, doubt, err := tr.Dirty(from, "")
		if err != nil || doubt != "" || b.Count() != want {
			t.Errorf("since %s: %d blocks, want %d, doubt %q, %v", from, b.Count(), want, doubt, err)
		}
		if !b.Test(3*sectorBlocks) || !b.Test(4*sectorBlocks-1) || b.Test(4*sectorBlocks) {
			t.Errorf("since %s: not the blocks of the sector", from)
		}
	}
}

// Without the list and its copy there are no names, and no error.
func TestAllNamesLost(t *testing.T) {
	m, want := damageState(t, 1, true)
	check(t, m.Remove(filepath.Join("/t", listName)))
	check(t, m.Remove(filepath.Join("/t", listCopyName)))
	tr, err := OpenTracker(m, "/t", testOptions(want.size))
	check(t, err)
	if got := tr.Checkpoints(); len(got) != 0 {
		t.Fatalf("checkpoints %v", got)
	}
	check(t, tr.AddCheckpoint("new"))
	check(t, tr.Mark(0, 1))
	if b, doubt, err := tr.Dirty("new", ""); err != nil || doubt != "" || b.Count() != 1 {
		t.Fatalf("new history: %d blocks, doubt %q, %v", b.Count(), doubt, err)
	}
}
