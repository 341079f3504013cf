package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

func TestPageSets(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		off, n := rapid.Int64Range(0, 4*bs).Draw(t, "off"), rapid.Int64Range(1, 2*bs).Draw(t, "n")
		b := rapid.Int64Range(0, 5).Draw(t, "block")
		got := pagesOf(off, n, b)
		for i := range int64(blockPages) {
			at := b*bs + i*pageSize
			if in := at < off+n && at+pageSize > off; in != (got>>i&1 == 1) {
				t.Fatalf("page %d of block %d: %v of %016b", i, b, in, got)
			}
		}
		rest := pageSet(rapid.Uint16().Draw(t, "set"))
		for last := -1; rest != 0; {
			first, end := rest.first()
			run := pageRun(first, end)
			if first <= last || rest&run != run || rest&^run&pageRun(0, min(end+1, blockPages)) != 0 {
				t.Fatalf("run of %d to %d in %016b", first, end, rest)
			}
			last, rest = end, rest&^run
		}
	})
}

// filled makes a volume full of random bytes.
func filled(t *testing.T, size int) (*Volume, []byte) {
	t.Helper()
	v := newManaged(t, memOptions(vfs.NewMem(), newHost()), int64(size))
	p := fill(rand.New(rand.NewPCG(3, 3)), size)
	_, err := v.WriteAt(p, 0)
	must(t, err)
	return v, p
}

// TestPartSaves counts what a write has saved for a temporary snapshot.
func TestPartSaves(t *testing.T) {
	const whole = sectorSize + bs
	type write struct{ off, n, saved int64 }
	record := func(pages int64) int64 { return sectorSize + pages*pageSize }
	for name, c := range map[string]struct {
		persistent bool
		writes     []write
	}{
		"a page":              {writes: []write{{bs, pageSize, record(1)}}},
		"within a page":       {writes: []write{{bs + 100, 50, record(1)}}},
		"across a page's end": {writes: []write{{bs + pageSize - 1, 2, record(2)}}},
		"the same again":      {writes: []write{{bs, pageSize, record(1)}, {bs, pageSize, 0}, {bs + 512, 512, 0}}},
		"more of it":          {writes: []write{{bs, pageSize, record(1)}, {bs, 3 * pageSize, record(2)}}},
		"around it":           {writes: []write{{bs + pageSize, pageSize, record(1)}, {bs, 3 * pageSize, 2 * record(1)}}},
		"two blocks":          {writes: []write{{2*bs - pageSize, 2 * pageSize, 2 * record(1)}}},
		"half a block":        {writes: []write{{bs, bs / 2, record(8)}}},
		"more than half":      {writes: []write{{bs, bs/2 + 1, whole}}},
		"a block":             {writes: []write{{bs, bs, whole}, {bs, bs, 0}}},
		"page by page":        {writes: []write{{bs, pageSize, record(1)}, {bs + pageSize, pageSize, record(1)}, {bs + 2*pageSize, pageSize, record(14)}, {bs + 3*pageSize, pageSize, 0}, {bs, bs, 0}}},
		"backwards":           {writes: []write{{bs + 2*pageSize, pageSize, record(1)}, {bs + pageSize, pageSize, record(1)}, {bs, pageSize, record(1)}}},
		"the rest":            {writes: []write{{bs + 15*pageSize, pageSize, record(1)}, {bs, bs, record(15)}}},
		"the short last":      {writes: []write{{3*bs + pageSize, 512, sectorSize + 512}, {3 * bs, pageSize + 512, record(1)}}},
		"kept":                {persistent: true, writes: []write{{bs, pageSize, whole}, {bs + pageSize, pageSize, 0}}},
	} {
		t.Run(name, func(t *testing.T) {
			v, old := filled(t, 3*bs+pageSize+512)
			s := snap(t, v, SnapshotOptions{Temporary: !c.persistent})
			for i, w := range c.writes {
				used := v.space.used.Load()
				_, err := v.WriteAt(bytes.Repeat([]byte{byte(i)}, int(w.n)), w.off)
				must(t, err)
				if got := v.space.used.Load() - used; got != w.saved {
					t.Errorf("write %d saved %d bytes, want %d", i, got, w.saved)
				}
				same(t, "snapshot", content(t, s, s.Size()), old)
			}
			must(t, v.DeleteSnapshot(s.id))
			if used := v.space.used.Load(); used != 0 {
				t.Errorf("%d bytes remain", used)
			}
			must(t, v.Close())
		})
	}
}

// TestPartLimit: where there are too many parts in the process, blocks are saved whole,
// until there are fewer again.
func TestPartLimit(t *testing.T) {
	v := newManaged(t, memOptions(vfs.NewMem(), newHost()), 4*bs)
	must(t, overwrite(v, 1, 4))
	part := func(b int64) bool {
		t.Helper()
		s := snap(t, v, SnapshotOptions{Temporary: true})
		must(t, overwritePages(v, b))
		c := v.snaps.set.Load().newest().idx.load(b)
		if !isSaved(c) {
			t.Errorf("block %d is %#x", b, c)
		}
		must(t, v.DeleteSnapshot(s.id))
		return isPart(c)
	}
	was := partChunks.Add(maxPartChunks)
	if part(1) {
		t.Error("there are too many parts, and one more")
	}
	partChunks.Add(-maxPartChunks)
	if !part(2) {
		t.Error("there is room for a part, and none")
	}
	for i := 0; partChunks.Load() > was-maxPartChunks; i++ { // those of snapshots that are gone
		if i == 100 {
			t.Fatalf("%d chunks remain, there were %d before", partChunks.Load(), was-maxPartChunks)
		}
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	must(t, v.Close())
}

// overwritePages writes one page to each of some blocks.
func overwritePages(v *Volume, blocks ...int64) error {
	for _, b := range blocks {
		if _, err := v.WriteAt(bytes.Repeat([]byte{9}, pageSize), b*bs+b%blockPages*pageSize); err != nil {
			return err
		}
	}
	return nil
}

// TestPartNoRoom: what was saved before the disk was full can be read; the first page that
// cannot be saved breaks the snapshot, and no guest's write.
func TestPartNoRoom(t *testing.T) {
	const blocks = 64
	m := vfs.NewMem()
	v := newManaged(t, memOptions(m, newHost()), blocks*bs)
	must(t, overwrite(v, 1, blocks))
	s := snap(t, v, SnapshotOptions{Temporary: true})
	hits := failOn(m, "write", ".tmp", syscall.ENOSPC)
	var b int64
	for ; hits.Load() == 0; b++ {
		same(t, "snapshot", content(t, s, blocks*bs), bytes.Repeat([]byte{1}, blocks*bs))
		must(t, overwritePages(v, b))
	}
	if b < tailSize/(pageSize+sectorSize) {
		t.Errorf("only %d pages were kept in memory", b)
	}
	if _, err := s.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrBroken) {
		t.Errorf("read of a snapshot that lacks a page: %v", err)
	}
	m.FailOn(nil)
	must(t, v.DeleteSnapshot(s.id))
	must(t, v.Close())
}

// TestPartTrim: the trim of a block of which single pages are saved waits until nobody
// needs the others.
func TestPartTrim(t *testing.T) {
	v := newManaged(t, memOptions(vfs.NewMem(), newHost()), 4*bs)
	must(t, overwrite(v, 1, 4))
	s := snap(t, v, SnapshotOptions{Temporary: true})
	must(t, overwritePages(v, 1, 2))
	must(t, v.Trim(bs, bs))
	must(t, v.Trim(2*bs, 8*pageSize)) // not a whole block: not remembered
	same(t, "snapshot", content(t, s, 4*bs), bytes.Repeat([]byte{1}, 4*bs))
	must(t, v.DeleteSnapshot(s.id))
	same(t, "trimmed", content(t, v, 2*bs)[bs:], make([]byte, bs))
	must(t, v.Close())
}
