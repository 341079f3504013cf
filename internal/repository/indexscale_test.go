package repository

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"unsafe"

	"github.com/zeebo/blake3"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// simulated is the n-th chunk of a volume that nobody has: its ID, and a place that
// only it can have.
func simulated(n int64) chunk.Ref {
	sum := blake3.Sum256(binary.BigEndian.AppendUint64(nil, uint64(n)))
	var ref chunk.Ref
	copy(ref.ID[:], sum[:])
	binary.BigEndian.PutUint64(ref.Pack[:], uint64(n/256))
	copy(ref.Pack[8:], sum[20:])
	ref.Offset, ref.Length = uint32(n%256)<<16, 1+uint32(n%65000)
	return ref
}

// The index of 10 TiB of chunks, 168 million, in the 512 MiB that are its default:
// it holds its budget of memory and disk, remembers what came last, forgets the
// rest, and is never wrong. Without CAIRN_ROUNDS all is 256 times smaller.
func TestIndexOf10TiB(t *testing.T) {
	scale := int64(256)
	if os.Getenv("CAIRN_ROUNDS") != "" {
		scale = 1
	}
	chunks, budget := (10<<40)/int64(blockSize)/scale, (512<<20)/scale
	c, _ := fresh(t)
	dir := t.TempDir()
	r := c.open(t, func(o *Options) { o.CacheDir, o.Cache.Index = dir, budget })
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	batch := make([]chunk.Ref, 0, (1<<20)/scale)
	for n := range chunks {
		batch = append(batch, simulated(n))
		if len(batch) == cap(batch) || n == chunks-1 {
			if more, err := r.index.insert(r.index.epoch, batch); err != nil || !more {
				t.Fatal(more, err)
			}
			batch = batch[:0]
		}
	}
	if grown := heap() - before - int64(cap(batch))*int64(unsafe.Sizeof(chunk.Ref{})); grown > 4<<20 {
		t.Errorf("%d bytes of memory behind %d chunks", grown, chunks)
	}
	var size int64
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if err == nil {
			size += fi.Size()
		}
		return err
	})
	if err != nil || size > budget+64<<10 {
		t.Errorf("%d bytes of disk, %d are the budget: %v", size, budget, err)
	}
	// right counts hits among chunks from..to, and fails on a wrong one.
	right := func(from, to, step int64) (hits, asked int64) {
		for n := from; n < to; n += step {
			want := simulated(n)
			at, ok, err := r.index.table.lookup(want.ID)
			if err != nil || ok && at != want.Location {
				t.Fatalf("chunk %d: %+v, %v, want %+v", n, at, err, want.Location)
			}
			asked++
			if ok {
				hits++
			}
		}
		return hits, asked
	}
	capacity := r.index.capacity()
	step := max(1, capacity/100_000)
	last, asked := right(chunks-capacity/2, chunks, step)
	old, _ := right(0, chunks-capacity*2, max(1, chunks/100_000))
	if last < asked*9/10 {
		t.Errorf("of the newest chunks it knows %d of %d", last, asked)
	}
	if chunks > 4*capacity && old*10 > asked {
		t.Errorf("of the oldest chunks it knows %d", old)
	}
	if at, ok, err := r.index.table.lookup(chunk.ID{1}); ok || err != nil {
		t.Errorf("a chunk that was never there is at %+v, %v", at, err)
	}
	// What a prune condemns is forgotten, in one pass.
	gone := newCondemned()
	for n := chunks - 1000; n < chunks; n++ {
		gone.packs[simulated(n).Pack] = struct{}{}
	}
	gone.lists[ident{1}] = struct{}{}
	if err := r.index.apply(gone, nil); err != nil {
		t.Fatal(err)
	}
	for n := chunks - 1000; n < chunks; n++ {
		if _, ok, err := r.index.table.lookup(simulated(n).ID); ok || err != nil {
			t.Fatalf("chunk %d is still known: %v", n, err)
		}
	}
	t.Logf("%d chunks, %d bytes on disk, room for %d; of the newest %d of %d are known", chunks, size, capacity, last, asked)
}
