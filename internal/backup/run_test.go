package backup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// change writes n random bytes, or zeros, at off and notes the blocks.
func change(data []byte, dirty *blockmap.Bitmap, off, n int, seed uint64) {
	n = min(n, len(data)-off)
	if n <= 0 {
		return
	}
	r := rand.New(rand.NewPCG(seed, 1))
	for i := off; i < off+n; i++ {
		data[i] = byte(seed)
		if seed%3 == 0 {
			data[i] = byte(r.Uint32())
		}
	}
	g := blockmap.Geometry{Size: int64(len(data)), BlockSize: testBlock}
	dirty.Set(g.Span(int64(off), int64(n)))
}

// zeroExtents says where data is zeros, not always of all.
func zeroExtents(t *rapid.T, data []byte) []blockmap.Extent {
	if rapid.Bool().Draw(t, "no allocation") {
		return nil
	}
	var out []blockmap.Extent
	for off := 0; off < len(data); {
		n := min(rapid.IntRange(1, 3000).Draw(t, "run"), len(data)-off)
		if bytes.Equal(data[off:off+n], make([]byte, n)) {
			out = append(out, blockmap.Extent{Offset: int64(off), Length: int64(n), State: rapid.SampledFrom([]blockmap.State{blockmap.Zero, blockmap.Hole | blockmap.Zero}).Draw(t, "state")})
		} else if rapid.Bool().Draw(t, "told") {
			out = append(out, blockmap.Extent{Offset: int64(off), Length: int64(n), State: rapid.SampledFrom([]blockmap.State{blockmap.Data, blockmap.Hole}).Draw(t, "state")})
		}
		off += n
	}
	return out
}

// TestModel takes backup after backup of a volume that changes and is resized,
// and reads each back.
func TestModel(t *testing.T) {
	defer func(d time.Duration) { progressEvery = d }(progressEvery)
	progressEvery = 0 // so that much is known to be settled while it runs
	rapid.Check(t, func(rt *rapid.T) {
		v := newVault(t)
		data := make([]byte, rapid.IntRange(0, 200_000).Draw(rt, "size"))
		for gen := range rapid.IntRange(1, 5).Draw(rt, "generations") {
			if gen > 0 && rapid.IntRange(0, 2).Draw(rt, "resize") == 0 {
				n := rapid.IntRange(0, 200_000).Draw(rt, "size")
				data = append(slices.Clone(data[:min(n, len(data))]), make([]byte, max(n-len(data), 0))...)
			}
			vol := newVolume(data)
			dirty := blockmap.NewBitmap(vol.g.Blocks())
			for range rapid.IntRange(0, 6).Draw(rt, "changes") {
				off := rapid.IntRange(0, max(len(data)-1, 0)).Draw(rt, "offset")
				change(data, dirty, off, rapid.IntRange(0, 8000).Draw(rt, "bytes"), rapid.Uint64Range(0, 40).Draw(rt, "content"))
			}
			p := Plan{Geometry: vol.g, Allocated: zeroExtents(rt, data), AuditSeed: rapid.Uint64().Draw(rt, "seed"), Workers: rapid.IntRange(1, 4).Draw(rt, "workers")}
			if rapid.IntRange(0, 3).Draw(rt, "full") > 0 {
				p.Dirty = append([]blockmap.Extent{}, dirty.Extents(vol.g)...)
			}
			p.Compare = rapid.IntRange(0, 4).Draw(rt, "compare") == 0
			var bad map[chunk.ID]bool
			if v.parent != nil && rapid.IntRange(0, 2).Draw(rt, "bad") == 0 {
				bad = damageSome(rt, v)
				p.Bad = func(r chunk.Ref) bool { return bad[r.ID] }
			}
			checkRun(rt, v, vol, p, dirty, bad)
		}
	})
}

// damageSome loses some chunks that the parent names.
func damageSome(t *rapid.T, v *vault) map[chunk.ID]bool {
	bad := map[chunk.ID]bool{}
	err := v.parent.Walk(context.Background(), func(_ int64, l *manifest.Leaf) error {
		for i := range manifest.LeafBlocks {
			if r, ok := l.At(i); ok && rapid.IntRange(0, 9).Draw(t, "damaged") == 0 {
				bad[r.ID] = true
				delete(v.chunks, r.ID)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bad
}

func checkRun(t *rapid.T, v *vault, vol *volume, p Plan, dirty *blockmap.Bitmap, bad map[chunk.ID]bool) {
	parent := v.parent
	before := v.blocks
	var last Progress
	res, err := Run(context.Background(), vol, v, p, func(g Progress) {
		if g.Done < last.Done || g.Settled < last.Settled || g.Done > g.Total || g.New > g.Read+int64(len(vol.data)) {
			t.Fatalf("progress %+v after %+v", g, last)
		}
		last = g
		vol.settled.Store(g.Settled)
	})
	if err != nil {
		t.Fatal(err)
	}
	if last.Settled != vol.g.Size {
		t.Fatalf("settled are %d bytes of %d", last.Settled, vol.g.Size)
	}
	if last.Done != last.Total || last.Done != res.BytesRead+res.BytesAudited-zeroAudits(t, res, last) {
		t.Fatalf("progress ends with %+v, result %+v", last, res)
	}
	if v.open.Load() != v.closings.Load() || v.shipped.Load() != v.closings.Load() {
		t.Fatalf("%d workers, %d closed, %d shipped", v.open.Load(), v.closings.Load(), v.shipped.Load())
	}
	got, tree, err := v.restore(vol.g, res.Top)
	if err != nil || !bytes.Equal(got, vol.data) {
		t.Fatalf("restored differs: %v", err)
	}
	if res.Mismatches > 0 || len(res.AuditMismatch) > 0 {
		t.Fatalf("mismatch in blocks %v although all changes are known", res.AuditMismatch)
	}
	checkReads(t, vol, p, res, parent, dirty, bad)
	if (v.blocks-before)*testBlock < int(res.BytesNew)-testBlock || res.BytesRead < res.BytesNew-res.BytesAudited {
		t.Fatalf("%d blocks stored, %+v", v.blocks-before, res)
	}
	v.parent = tree
}

// zeroAudits returns the bytes that were audited without being read.
func zeroAudits(t *rapid.T, res Result, last Progress) int64 {
	n := res.BytesRead + res.BytesAudited - last.Done
	if n < 0 || n > res.BytesAudited {
		t.Fatalf("%d bytes done, %+v", last.Done, res)
	}
	return n
}

// checkReads makes sure that no block is read twice, and none but dirty,
// audited and damaged ones.
func checkReads(t *rapid.T, vol *volume, p Plan, res Result, parent *manifest.Tree, dirty *blockmap.Bitmap, bad map[chunk.ID]bool) {
	var read, audited int64
	zero := within(p.Geometry, p.Allocated, blockmap.Zero)
	for b, n := range vol.reads {
		if n != 1 {
			t.Fatalf("block %d is read %d times", b, n)
		}
		if z, ok := zero.next(b); ok && z == b {
			t.Fatalf("block %d is known to be zeros and read", b)
		}
		read += int64(vol.g.BlockLen(b))
		if dirty.Test(b) || p.Dirty == nil || p.Compare || parent == nil {
			continue
		}
		if s := resized(vol.g, parent.Geometry()); b >= s.first && b < s.end {
			continue
		}
		if b < parent.Geometry().Blocks() {
			if r, ok, err := parent.Lookup(context.Background(), b); err == nil && ok && bad[r.ID] {
				continue
			}
		}
		audited += int64(vol.g.BlockLen(b))
	}
	if audited > res.BytesAudited || read < res.BytesRead || read > res.BytesRead+res.BytesAudited {
		t.Fatalf("%d bytes read, %d of clean blocks, %+v", read, audited, res)
	}
	if most := max(auditLeast, dirty.Count()/auditShare+1000) * testBlock; res.BytesAudited > most {
		t.Fatalf("%d bytes audited", res.BytesAudited)
	}
}

func fullBackup(tb testing.TB, v *vault, vol *volume) {
	tb.Helper()
	res, err := Run(tb.Context(), vol, v, Plan{Geometry: vol.g}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	got, tree, err := v.restore(vol.g, res.Top)
	if err != nil || !bytes.Equal(got, vol.data) {
		tb.Fatalf("restored differs: %v", err)
	}
	v.parent = tree
	vol.reads = map[int64]int{}
}

// noiseVolume has n blocks that all differ.
func noiseVolume(n int) *volume {
	data := make([]byte, n*testBlock)
	change(data, blockmap.NewBitmap(int64(n)), 0, len(data), 3)
	return newVolume(data)
}

// TestAuditComesRound: seeds that count up find every missed change, in about
// as many runs as can be.
func TestAuditComesRound(t *testing.T) {
	const blocks = 3200
	for missed := 0; missed < blocks; missed += 709 {
		v, vol := newVault(t), noiseVolume(blocks)
		fullBackup(t, v, vol)
		vol.data[missed*testBlock] ^= 1
		found := false
		for seed := range uint64(3 * blocks / auditLeast) {
			clear(vol.reads)
			res, err := Run(t.Context(), vol, v, Plan{Geometry: vol.g, Dirty: []blockmap.Extent{}, AuditSeed: seed}, nil)
			if err != nil || res.BytesAudited != auditLeast*testBlock || len(vol.reads) != auditLeast || res.BytesRead != 0 {
				t.Fatalf("%d blocks read, %+v, %v", len(vol.reads), res, err)
			}
			if found = res.Mismatches > 0; found {
				if !slices.Equal(res.AuditMismatch, []int64{int64(missed)}) || res.BytesChanged != testBlock || res.BytesNew != testBlock {
					t.Fatalf("%+v", res)
				}
				if got, _, err := v.restore(vol.g, res.Top); err != nil || !bytes.Equal(got, vol.data) {
					t.Fatalf("not repaired: %v", err)
				}
				break
			}
		}
		if !found {
			t.Errorf("block %d is never audited", missed)
		}
	}
}

func TestAuditShare(t *testing.T) {
	v, vol := newVault(t), noiseVolume(20000)
	fullBackup(t, v, vol)
	dirty := []blockmap.Extent{{Offset: 0, Length: 10000 * testBlock, State: blockmap.Dirty}}
	res, err := Run(t.Context(), vol, v, Plan{Geometry: vol.g, Dirty: dirty}, nil)
	if err != nil || res.BytesAudited != 500*testBlock || res.BytesRead != 10000*testBlock || res.BytesNew != 0 || res.BytesChanged != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestCertain reads what is dirty and nothing else: clean blocks may be damaged in
// a source that is a backup itself.
func TestCertain(t *testing.T) {
	v, vol := newVault(t), noiseVolume(1000)
	fullBackup(t, v, vol)
	vol.data[7*testBlock] ^= 1
	clear(vol.reads)
	dirty := []blockmap.Extent{{Offset: 7 * testBlock, Length: testBlock, State: blockmap.Dirty}}
	res, err := Run(t.Context(), vol, v, Plan{Geometry: vol.g, Dirty: dirty, Certain: true}, nil)
	if err != nil || len(vol.reads) != 1 || res.BytesRead != testBlock || res.BytesAudited != 0 || res.BytesChanged != testBlock {
		t.Errorf("%d reads, %+v, %v", len(vol.reads), res, err)
	}
	if got, _, err := v.restore(vol.g, res.Top); err != nil || !bytes.Equal(got, vol.data) {
		t.Errorf("not backed up: %v", err)
	}
}

// TestCompare finds what the change map missed and says so.
func TestCompare(t *testing.T) {
	v, vol := newVault(t), noiseVolume(1000)
	fullBackup(t, v, vol)
	for _, b := range []int{7, 600, 601} {
		vol.data[b*testBlock] ^= 1
	}
	dirty := []blockmap.Extent{{Offset: 600 * testBlock, Length: testBlock, State: blockmap.Dirty}}
	res, err := Run(t.Context(), vol, v, Plan{Geometry: vol.g, Dirty: dirty, Compare: true}, nil)
	if err != nil || !slices.Equal(res.AuditMismatch, []int64{7, 601}) || res.BytesChanged != 3*testBlock || res.BytesRead != 1000*testBlock {
		t.Errorf("%+v, %v", res, err)
	}
	// Without a change map there is nothing that it could have missed.
	res, err = Run(t.Context(), vol, v, Plan{Geometry: vol.g, Compare: true}, nil)
	if err != nil || res.Mismatches != 0 || res.BytesChanged != 3*testBlock || res.BytesNew != 0 {
		t.Errorf("%+v, %v", res, err)
	}
}

// TestLostLeaf: a leaf of the parent that cannot be loaded is read from the
// source; one that nothing asks for is shared unseen.
func TestLostLeaf(t *testing.T) {
	v, vol := newVault(t), noiseVolume(1000)
	fullBackup(t, v, vol)
	err := v.parent.Nodes(t.Context(), func(level int, first int64, r chunk.Ref) error {
		if level == 0 && first == 2 {
			delete(v.nodes, r.ID)
		}
		return nil
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	dirty := []blockmap.Extent{{Offset: 2*128*testBlock + 5, Length: 1, State: blockmap.Dirty}}
	res, err := Run(t.Context(), vol, v, Plan{Geometry: vol.g, Dirty: dirty}, nil)
	if err != nil || res.Reread != 1 || res.BytesRead != 128*testBlock {
		t.Fatalf("%+v, %v", res, err)
	}
	if got, _, err := v.restore(vol.g, res.Top); err != nil || !bytes.Equal(got, vol.data) {
		t.Errorf("restored differs: %v", err)
	}
}

// TestFailures: whatever fails, Run says so, closes all workers without
// shipping, and leaves no goroutine.
func TestFailures(t *testing.T) {
	errBroken := errors.New("broken")
	goroutines := runtime.NumGoroutine()
	rapid.Check(t, func(rt *rapid.T) {
		v, vol := newVault(t), noiseVolume(rapid.IntRange(1, 3000).Draw(rt, "blocks"))
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		at := rapid.IntRange(0, len(vol.data)/testBlock-1).Draw(rt, "at")
		how := rapid.SampledFrom([]string{"read", "put", "cancel"}).Draw(rt, "how")
		want := errBroken
		puts := 0
		switch how {
		case "read":
			vol.fail = func(off int64) error {
				if off+1<<20 > int64(at)*testBlock {
					return errBroken
				}
				return nil
			}
		case "put":
			v.fail = func() error {
				if puts++; puts > at {
					return errBroken
				}
				return nil
			}
		case "cancel":
			v.fail = func() error {
				if puts++; puts > at {
					cancel(errBroken)
				}
				return nil
			}
		}
		_, err := Run(ctx, vol, v, Plan{Geometry: vol.g, Workers: rapid.IntRange(1, 4).Draw(rt, "workers")}, nil)
		if !errors.Is(err, want) && (how != "cancel" || at < len(vol.data)/testBlock-4) {
			rt.Fatalf("%s at %d of %d: %v", how, at, len(vol.data)/testBlock, err)
		}
		if v.open.Load() != v.closings.Load() || err != nil && v.shipped.Load() != 0 {
			rt.Fatalf("%d workers, %d closed, %d shipped", v.open.Load(), v.closings.Load(), v.shipped.Load())
		}
		if how == "cancel" && puts > at+5 {
			rt.Fatalf("%d blocks stored after %d", puts, at)
		}
	})
	// One that has done its last needs a moment to be gone.
	for range 500 {
		if runtime.NumGoroutine() <= goroutines {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
}

// holes reads as zeros everywhere, but for one block per TiB.
type holes struct{ n atomic.Int64 }

func (h *holes) ReadAt(_ context.Context, p []byte, off int64) error {
	h.n.Add(1)
	clear(p)
	p[0] = byte(off >> 40)
	return nil
}

// TestSparse: 64 TiB with 63 blocks of data cost 63 blocks.
func TestSparse(t *testing.T) {
	const tib = 1 << 40
	g := blockmap.Geometry{Size: 64 * tib, BlockSize: blockmap.DefaultBlockSize}
	var alloc, dirty []blockmap.Extent
	for i := range int64(64) {
		alloc = append(alloc, blockmap.Extent{Offset: i * tib, Length: 1 << 16, State: blockmap.Data},
			blockmap.Extent{Offset: i*tib + 1<<16, Length: tib - 1<<16, State: blockmap.Hole | blockmap.Zero})
		dirty = append(dirty, blockmap.Extent{Offset: i * tib, Length: 1 << 16, State: blockmap.Dirty})
	}
	v, src := newVault(t), new(holes)
	res, err := Run(t.Context(), src, v, Plan{Geometry: g, Allocated: alloc}, nil)
	if err != nil || src.n.Load() != 64 || res.BytesRead != 64<<16 || res.BytesNew != 63<<16 || res.BytesHole != 64*(tib-1<<16) {
		t.Fatalf("%d reads, %+v, %v", src.n.Load(), res, err)
	}
	if v.parent, err = manifest.Open(g, res.Top, v); err != nil {
		t.Fatal(err)
	}
	src.n.Store(0)
	res, err = Run(t.Context(), src, v, Plan{Geometry: g, Allocated: alloc, Dirty: dirty[:5]}, nil)
	if err != nil || src.n.Load() > 64 || res.BytesRead != 5<<16 || res.BytesAudited != 59<<16 {
		t.Errorf("%d reads, %+v, %v", src.n.Load(), res, err)
	}
}

// TestHeal: clean blocks that name a damaged chunk are read and stored again.
func TestHeal(t *testing.T) {
	v, vol := newVault(t), noiseVolume(1000)
	fullBackup(t, v, vol)
	bad := map[chunk.ID]bool{}
	for _, b := range []int{3, 500, 999} {
		id := v.d.ID(chunk.Data, vol.data[b*testBlock:(b+1)*testBlock])
		bad[id] = true
		delete(v.chunks, id)
	}
	p := Plan{Geometry: vol.g, Dirty: []blockmap.Extent{}, Bad: func(r chunk.Ref) bool { return bad[r.ID] }}
	res, err := Run(t.Context(), vol, v, p, nil)
	if err != nil || res.Healed != 3 || res.BytesRead != 3*testBlock || res.BytesNew != 3*testBlock || res.BytesChanged != 0 || res.Mismatches != 0 {
		t.Fatalf("%+v, %v", res, err)
	}
	got, tree, err := v.restore(vol.g, res.Top)
	if err != nil || !bytes.Equal(got, vol.data) {
		t.Errorf("restored differs: %v", err)
	}
	v.parent = tree
	// A session that answers with the damaged chunk heals nothing, and Run says so.
	if res, err = Run(t.Context(), vol, v, p, nil); err != nil || res.Healed != 0 || res.BytesRead != 3*testBlock {
		t.Errorf("%+v, %v", res, err)
	}
}

func TestRefusals(t *testing.T) {
	v, vol := newVault(t), noiseVolume(10)
	fullBackup(t, v, vol)
	for name, g := range map[string]blockmap.Geometry{
		"block size":  {Size: 5120, BlockSize: 1024},
		"too large":   {Size: 5120, BlockSize: 1 << 20},
		"no geometry": {},
	} {
		if _, err := Run(t.Context(), vol, v, Plan{Geometry: g}, nil); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// TestProgressRate: however fast blocks come, progress is told seldom.
func TestProgressRate(t *testing.T) {
	v, vol := newVault(t), noiseVolume(20000)
	calls, start := 0, time.Now()
	if _, err := Run(t.Context(), vol, v, Plan{Geometry: vol.g}, func(Progress) { calls++ }); err != nil {
		t.Fatal(err)
	}
	if most := int(time.Since(start)/progressEvery) + 3; calls > most {
		t.Errorf("%d calls, at most %d are due", calls, most)
	}
	if vol.big > readSize {
		t.Errorf("read of %d bytes", vol.big)
	}
}

func BenchmarkRun(b *testing.B) {
	vol := noiseVolume(64 << 20 / testBlock)
	vol.g.BlockSize = blockmap.DefaultBlockSize
	for _, name := range []string{"full", "unchanged"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(vol.data)))
			b.ReportAllocs()
			for b.Loop() {
				v := newVault(b)
				if _, err := Run(b.Context(), vol, v, Plan{Geometry: vol.g}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
