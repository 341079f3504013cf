package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// TestPartMerge: pages that an older snapshot needs of a newer one's, or of a whole block
// beside pages of its own, go over to it when the newer one is deleted.
func TestPartMerge(t *testing.T) {
	for name, newer := range map[string]SnapshotOptions{"temporary": {Temporary: true}, "persistent": {}} {
		t.Run(name, func(t *testing.T) {
			v, old := filled(t, 4*bs+3*512)
			first := snap(t, v, SnapshotOptions{Temporary: true})
			must(t, overwritePages(v, 0, 1)) // pages of the older
			second := snap(t, v, newer)
			between := content(t, v, 4*bs+3*512)
			_, err := v.WriteAt(bytes.Repeat([]byte{7}, 3*pageSize), pageSize/2) // some of its own, some not
			must(t, err)
			_, err = v.WriteAt(bytes.Repeat([]byte{8}, bs), bs) // a whole block
			must(t, err)
			must(t, overwritePages(v, 2)) // pages of which the older has none
			_, err = v.WriteAt(bytes.Repeat([]byte{6}, 512), 4*bs+512)
			must(t, err)
			same(t, "first", content(t, first, first.Size()), old)
			same(t, "second", content(t, second, second.Size()), between)
			must(t, v.DeleteSnapshot(second.id))
			same(t, "first, after the merge", content(t, first, first.Size()), old)
			must(t, overwrite(v, 5, 4))
			same(t, "first, all overwritten", content(t, first, first.Size()), old)
			must(t, v.DeleteSnapshot(first.id))
			if used := v.space.used.Load(); used != 0 {
				t.Errorf("%d bytes remain", used)
			}
			must(t, v.Close())
		})
	}
}

// TestPartMergeShort merges what is saved of a volume's short last block twice.
func TestPartMergeShort(t *testing.T) {
	for name, c := range map[string]struct {
		pages  int64 // whole ones of the last block
		oldest int64 // page that the oldest snapshot has of it, -1: none
		newest SnapshotOptions
		large  bool // the last write is of all of it
	}{
		"nothing in the oldest": {pages: 1, oldest: -1},
		"a page in the oldest":  {pages: 1, oldest: 1},
		"temporary ones only":   {pages: 9, oldest: -1, newest: SnapshotOptions{Temporary: true}, large: true},
	} {
		t.Run(name, func(t *testing.T) {
			size := 3*bs + c.pages*pageSize + 512
			v, old := filled(t, int(size))
			write := func(p []byte, off int64) {
				t.Helper()
				_, err := v.WriteAt(p, off)
				must(t, err)
			}
			oldest := snap(t, v, SnapshotOptions{Temporary: true})
			if c.oldest >= 0 {
				write(make([]byte, 512), 3*bs+c.oldest*pageSize)
			}
			middle := snap(t, v, SnapshotOptions{Temporary: true})
			write(make([]byte, 512), 3*bs)
			newest := snap(t, v, c.newest)
			last := int64(512)
			if c.large {
				last = size - 3*bs
			}
			write(bytes.Repeat([]byte{7}, int(last)), 3*bs)
			must(t, v.DeleteSnapshot(newest.id))
			same(t, "once", content(t, oldest, size), old)
			for _, e := range v.snaps.set.Load().epochs {
				if beyond := e.idx.savedPages(e.idx.load(3)) &^ pagesOf(0, size, 3); beyond != 0 && isPart(e.idx.load(3)) {
					t.Errorf("epoch %d has pages %016b beyond the volume's end", e.number, beyond)
				}
			}
			must(t, v.DeleteSnapshot(middle.id))
			same(t, "twice", content(t, oldest, size), old)
			must(t, v.Close())
		})
	}
}

// TestPartShortNoRoom: a full disk breaks no snapshot that has all of the last block.
func TestPartShortNoRoom(t *testing.T) {
	const last = pageSize + 512
	o := memOptions(vfs.NewMem(), newHost())
	o.PreimageLimit = 8000
	v := newManaged(t, o, 3*bs+last)
	for i := range byte(3) {
		_, err := v.WriteAt(bytes.Repeat([]byte{i + 1}, int(last)), 3*bs)
		must(t, err)
		if i < 2 {
			snap(t, v, SnapshotOptions{Temporary: true})
		}
	}
	for i, s := range v.Snapshots() {
		if broken := s.Info().Broken; (broken != "") != (i == 1) {
			t.Errorf("snapshot %d: %q", i, broken)
		}
	}
	must(t, v.Close())
}

// TestPartMergeNoRoom: a merge that fails for want of room goes on where it was.
func TestPartMergeNoRoom(t *testing.T) {
	v, old := filled(t, 4*bs)
	oldest := snap(t, v, SnapshotOptions{Temporary: true})
	newest := snap(t, v, SnapshotOptions{Temporary: true})
	for i := range int64(3) {
		_, err := v.WriteAt(make([]byte, 512), 2*i*pageSize)
		must(t, err)
	}
	used := v.space.used.Load()
	v.space.limit = used + 2*(pageSize+sectorSize) // for two of three
	if err := v.DeleteSnapshot(newest.id); err == nil {
		t.Fatal("freed what there was no room to merge")
	}
	for range 3 {
		if err := v.reclaim(); err == nil {
			t.Fatal("merged where there is no room")
		}
	}
	if n := v.space.used.Load() - used; n > 2*(pageSize+sectorSize) {
		t.Errorf("%d bytes taken by merges that failed", n)
	}
	v.space.limit = 0
	must(t, v.reclaim())
	same(t, "oldest", content(t, oldest, 4*bs), old)
	must(t, v.DeleteSnapshot(oldest.id))
	must(t, v.Close())
}

// TestPartSequences does what a seed says to volumes of one or two blocks, of which the
// last is short, in every second one with a temporary log that is full at times.
func TestPartSequences(t *testing.T) {
	for seed := range uint64(400) {
		partSequence(t, seed)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

type sequenceSnap struct {
	*Snapshot
	want     []byte
	released int64
}

func partSequence(t *testing.T, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 5))
	m := vfs.NewMem()
	live := fill(r, r.IntN(2)*bs+(1+r.IntN(128))*512)
	v := newManaged(t, memOptions(m, newHost()), int64(len(live)))
	_, err := v.WriteAt(live, 0)
	must(t, err)
	faulty, full := seed%2 == 1, false
	m.FailOn(func(op, name string) error {
		if full && op == "write" && filepath.Ext(name) == tempSuffix && filepath.Base(filepath.Dir(name)) == preimagesDir {
			return syscall.ENOSPC
		}
		return nil
	})
	var snaps []sequenceSnap
	for range 60 {
		switch k := r.IntN(20); {
		case k < 10:
			off := r.Int64N(int64(len(live))/512) * 512
			p := fill(r, int(min((1+r.Int64N(1+r.Int64N(80)))*512, int64(len(live))-off)))
			_, err := v.WriteAt(p, off)
			must(t, err)
			copy(live[off:], p)
		case k < 14 && len(snaps) < 5:
			was := full
			full = false
			snaps = append(snaps, sequenceSnap{Snapshot: snap(t, v, SnapshotOptions{Temporary: r.IntN(3) != 0}), want: bytes.Clone(live)})
			full = was
		case k < 17 && len(snaps) > 0:
			i := r.IntN(len(snaps))
			if err := v.DeleteSnapshot(snaps[i].id); err != nil && !full {
				t.Errorf("delete: %v", err)
			}
			snaps = append(snaps[:i], snaps[i+1:]...)
		case k < 18 && len(snaps) > 0:
			if s := &snaps[r.IntN(len(snaps))]; s.temporary && s.Size() > bs {
				must(t, s.Release(bs))
				s.released = bs
			}
		case k == 18:
			full = faulty && !full
		case k == 19 && len(live) < 3*bs:
			live = append(live, make([]byte, (1+r.IntN(100))*512)...)
			must(t, v.Extend(int64(len(live))))
		}
		for i, s := range snaps {
			p := make([]byte, s.Size()-s.released)
			_, err := s.ReadAt(p, s.released)
			if faulty && s.temporary && errors.Is(err, ErrBroken) {
				continue
			}
			if err != nil || !bytes.Equal(p, s.want[s.released:]) {
				t.Errorf("snapshot %d: %v, the same: %v", i, err, bytes.Equal(p, s.want[s.released:]))
				return
			}
		}
	}
	full = false
	v.back.Wait()
	for _, s := range v.Snapshots() {
		must(t, v.DeleteSnapshot(s.id))
	}
	if used := v.space.used.Load(); used != 0 {
		t.Errorf("%d bytes remain", used)
	}
	must(t, v.Close())
}
