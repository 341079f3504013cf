package volume

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// release releases a part of a snapshot, which only temporary ones allow.
func (m *model) release(t *rapid.T) {
	id := m.pick(t, func(uuid.UUID) bool { return true })
	s, _ := m.v.Snapshot(id)
	before := rapid.Int64Range(0, s.Size()+bs).Draw(t, "before")
	err := s.Release(before)
	if !m.temp[id] {
		if !errors.Is(err, ErrInvalid) {
			t.Fatalf("released a persistent snapshot: %v", err)
		}
		return
	}
	m.ok(t, err)
	blocks := before / bs
	if before >= s.Size() {
		blocks = s.blocks()
	}
	m.gone[id] = max(m.gone[id], blocks)
}

// checkGone checks that nothing is answered about what begins in a released block.
func (m *model) checkGone(t *rapid.T, s *Snapshot, from int64) {
	for off := int64(0); off < from; off = min(off+bs-1, max(from-1, off+1)) {
		n := s.Size() - off
		if _, err := s.ReadAt(make([]byte, n), off); !errors.Is(err, ErrReleased) {
			t.Fatalf("read at %d, released to %d: %v", off, from, err)
		}
		if _, err := s.Extents(off, n); !errors.Is(err, ErrReleased) {
			t.Fatalf("extents at %d, released to %d: %v", off, from, err)
		}
	}
}

// TestReleaseSaves counts the preimages that a released snapshot costs: none behind the
// watermark, and all that another snapshot needs.
func TestReleaseSaves(t *testing.T) {
	const blocks = 16
	const record = sectorSize + bs // bytes of a preimage in a log
	for name, c := range map[string]struct {
		older, newer *SnapshotOptions
		before       int64
		blocks       int64 // whose old content is saved when all is overwritten
	}{
		"nothing released":      {blocks: blocks},
		"a part":                {before: 6 * bs, blocks: blocks - 6},
		"not a whole block":     {before: 7*bs - 1, blocks: blocks - 6},
		"all":                   {before: blocks * bs, blocks: 0},
		"beyond the end":        {before: 1 << 62, blocks: 0},
		"an older temporary":    {older: &SnapshotOptions{Temporary: true}, before: blocks * bs, blocks: blocks},
		"an older persistent":   {older: &SnapshotOptions{}, before: blocks * bs, blocks: blocks},
		"a newer temporary":     {newer: &SnapshotOptions{Temporary: true}, before: blocks * bs, blocks: blocks},
		"a newer persistent":    {newer: &SnapshotOptions{}, before: blocks * bs, blocks: blocks},
		"on both sides of them": {older: &SnapshotOptions{}, newer: &SnapshotOptions{Temporary: true}, before: blocks * bs, blocks: blocks},
	} {
		t.Run(name, func(t *testing.T) {
			v := newManaged(t, memOptions(vfs.NewMem(), newHost()), blocks*bs)
			must(t, overwrite(v, 1, blocks))
			var others []*Snapshot
			if c.older != nil {
				others = append(others, snap(t, v, *c.older))
			}
			s := snap(t, v, SnapshotOptions{Temporary: true})
			if c.newer != nil {
				others = append(others, snap(t, v, *c.newer))
			}
			must(t, s.Release(c.before))
			must(t, s.Release(c.before/2)) // takes nothing back
			used := v.space.used.Load()
			must(t, overwrite(v, 2, 1))
			must(t, overwrite(v, 2, blocks))
			must(t, overwrite(v, 3, blocks))
			if got := v.space.used.Load() - used; got != c.blocks*record {
				t.Errorf("%d bytes saved, want %d records of %d", got, c.blocks, record)
			}
			want := bytes.Repeat([]byte{1}, blocks*bs)
			for _, o := range others {
				same(t, "another snapshot", content(t, o, o.Size()), want)
			}
			for b := range int64(blocks) {
				p := make([]byte, bs)
				_, err := s.ReadAt(p, b*bs)
				if b < min(c.before/bs, blocks) {
					if !errors.Is(err, ErrReleased) {
						t.Errorf("block %d, which was released: %v", b, err)
					}
					continue
				}
				must(t, err)
				same(t, "snapshot", p, want[:bs])
			}
			if i := s.Info(); i.Broken != "" {
				t.Errorf("broken: %s", i.Broken)
			}
			for _, o := range append(others, s) {
				must(t, v.DeleteSnapshot(o.id))
			}
			must(t, v.Close())
		})
	}
}

// overwrite fills the first blocks of a volume.
func overwrite(v *Volume, with byte, blocks int) error {
	_, err := v.WriteAt(bytes.Repeat([]byte{with}, blocks*bs), 0)
	return err
}

// interrupted is a file system that does something once in the middle of a look at a
// data file, before it looks.
type interrupted struct {
	vfs.FS
	by atomic.Pointer[func()]
}

type interruptedFile struct {
	vfs.File
	i *interrupted
}

func (i *interrupted) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := i.FS.OpenFile(name, flag, perm)
	if err != nil || !strings.HasSuffix(name, managedFile) {
		return f, err
	}
	return &interruptedFile{f, i}, nil
}

func (i *interrupted) now() {
	if by := i.by.Swap(nil); by != nil {
		(*by)()
	}
}

func (f *interruptedFile) Unwrap() vfs.File { return f.File }

func (f *interruptedFile) ReadAt(p []byte, off int64) (int, error) {
	f.i.now()
	return f.File.ReadAt(p, off)
}

func (f *interruptedFile) NextData(off int64) (from, to int64, err error) {
	f.i.now()
	return f.File.NextData(off)
}

// TestReleaseMeanwhile: who is looking when a block is released and overwritten has no
// answer, whatever it has seen, and the others have theirs.
func TestReleaseMeanwhile(t *testing.T) {
	look := map[string]func(s *Snapshot, off, n int64) error{
		"read": func(s *Snapshot, off, n int64) error {
			_, err := s.ReadAt(make([]byte, n), off)
			return err
		},
		"extents": func(s *Snapshot, off, n int64) error {
			_, err := s.Extents(off, n)
			return err
		},
	}
	for how, look := range look {
		for then, change := range map[string]func(v *Volume) error{
			"write": func(v *Volume) error { return overwrite(v, 2, 2) },
			"trim":  func(v *Volume) error { return v.Trim(0, 2*bs) },
			"write, with a newer snapshot": func(v *Volume) error {
				err := overwrite(v, 2, 2)
				_, serr := SnapshotGroup(testContext, []*Volume{v}, []SnapshotOptions{{Temporary: true}})
				return errors.Join(err, serr, overwrite(v, 3, 2))
			},
			"nothing": func(*Volume) error { return nil },
		} {
			t.Run(how+", "+then, func(t *testing.T) {
				fsys := &interrupted{FS: vfs.NewMem()}
				v := newManaged(t, Options{FS: fsys, Host: newHost()}, 4*bs)
				must(t, overwrite(v, 1, 4))
				s := snap(t, v, SnapshotOptions{Temporary: true})
				by := func() {
					must(t, s.Release(bs))
					must(t, change(v))
				}
				fsys.by.Store(&by)
				if err := look(s, 0, 4*bs); !errors.Is(err, ErrReleased) {
					t.Errorf("all: %v", err)
				}
				if fsys.by.Load() != nil {
					t.Fatal("nothing came between")
				}
				must(t, look(s, bs, 3*bs))
				same(t, "the rest", content(t, io.NewSectionReader(s, bs, 3*bs), 3*bs), bytes.Repeat([]byte{1}, 3*bs))
				must(t, v.Close())
			})
		}
	}
}

// TestReleaseDamage: what a reader finds damaged in a block that was released while it
// read is not the snapshot's, and does not break it.
func TestReleaseDamage(t *testing.T) {
	v := newManaged(t, memOptions(vfs.NewMem(), newHost()), 4*bs)
	must(t, overwrite(v, 1, 4))
	s := snap(t, v, SnapshotOptions{Temporary: true})
	must(t, overwrite(v, 2, 4))
	must(t, s.Release(bs))
	read := func(b int64) error { // where there is no record
		return s.readSaved(v.snaps.set.Load().newest(), (cellFirst+1)|cellTemp, b, allPages, make([]byte, bs), b*bs)
	}
	if err := read(0); !errors.Is(err, ErrReleased) || s.isBroken() {
		t.Errorf("released: %v, %v", err, s.sound())
	}
	if err := read(1); !errors.Is(err, ErrDamaged) || !s.isBroken() {
		t.Errorf("not released: %v, %v", err, s.sound())
	}
	must(t, v.Close())
}

// TestReleaseNoRoom: when there is no room for preimages, what is released breaks only the
// other snapshots that need it.
func TestReleaseNoRoom(t *testing.T) {
	o := memOptions(vfs.NewMem(), newHost())
	o.PreimageLimit = 1
	v := newManaged(t, o, 4*bs)
	must(t, overwrite(v, 1, 4))
	older := snap(t, v, SnapshotOptions{Temporary: true})
	s := snap(t, v, SnapshotOptions{Temporary: true})
	must(t, s.Release(2*bs))
	must(t, overwrite(v, 2, 2))
	if err := older.sound(); !errors.Is(err, ErrBroken) {
		t.Errorf("an older one lacks what the other has released: %v", err)
	}
	same(t, "the rest", content(t, io.NewSectionReader(s, 2*bs, 2*bs), 2*bs), bytes.Repeat([]byte{1}, 2*bs))
	must(t, overwrite(v, 2, 3))
	if err := s.sound(); !errors.Is(err, ErrBroken) {
		t.Errorf("what was not released is lost: %v", err)
	}
	must(t, v.Close())
}
