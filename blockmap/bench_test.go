package blockmap

import (
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

func benchTracker(b *testing.B) *Tracker {
	b.Helper()
	tr, err := CreateTracker(vfs.OS(), b.TempDir(), TrackerOptions{Size: 1 << 40})
	check(b, err)
	check(b, tr.AddCheckpoint("a"))
	b.Cleanup(func() { check(b, tr.Close()) })
	return tr
}

func BenchmarkMarkHot(b *testing.B) {
	tr := benchTracker(b)
	const span = 1 << 30
	for off := int64(0); off < span; off += 1 << 20 {
		check(b, tr.Mark(off, 4096))
	}
	b.ReportAllocs()
	rng := rand.New(rand.NewPCG(1, 1))
	for b.Loop() {
		if err := tr.Mark(rng.Int64N(span-4096), 4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarkParallel(b *testing.B) {
	tr := benchTracker(b)
	const span = 1 << 30
	for off := int64(0); off < span; off += 1 << 20 {
		check(b, tr.Mark(off, 4096))
	}
	var seed atomic.Uint64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		rng := rand.New(rand.NewPCG(seed.Add(1), 1))
		for pb.Next() {
			if err := tr.Mark(rng.Int64N(span-4096), 4096); err != nil {
				b.Error(err)
			}
		}
	})
}

// Random writes over a sparse TiB, from one writer and from 32.
func BenchmarkMarkCold(b *testing.B) {
	for _, writers := range []int{1, 32} {
		b.Run(map[int]string{1: "qd1", 32: "qd32"}[writers], func(b *testing.B) {
			tr := benchTracker(b)
			var seed atomic.Uint64
			b.SetParallelism(writers)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				rng := rand.New(rand.NewPCG(seed.Add(1), 1))
				for pb.Next() {
					if err := tr.Mark(rng.Int64N(1<<40-4096), 4096); err != nil {
						b.Error(err)
					}
				}
			})
			s := tr.Stats()
			b.ReportMetric(float64(s.LogWrites)/float64(b.N), "records/op")
			b.ReportMetric(float64(s.PageWrites)/float64(b.N), "pages/op")
		})
	}
}

// One MiB after the other through a sparse TiB.
func BenchmarkMarkSequential(b *testing.B) {
	tr := benchTracker(b)
	b.SetBytes(1 << 20)
	off := int64(0)
	for b.Loop() {
		if err := tr.Mark(off, 1<<20); err != nil {
			b.Fatal(err)
		}
		off = (off + 1<<20) % (1 << 40)
	}
	b.ReportMetric(float64(tr.Stats().LogWrites)/float64(b.N), "records/op")
}

// A backup: a checkpoint, and the one before the last is dropped.
func BenchmarkAddDropCheckpoint(b *testing.B) {
	tr := benchTracker(b)
	check(b, tr.AddCheckpoint("0"))
	i := 0
	for b.Loop() {
		check(b, tr.Mark(int64(i%1000)<<20, 1))
		i++
		check(b, tr.AddCheckpoint(strconv.Itoa(i)))
		check(b, tr.DropCheckpoint(strconv.Itoa(i-1)))
	}
}

func BenchmarkBitmapRuns(b *testing.B) {
	m := NewBitmap(1 << 24)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1 << 17 {
		m.Set(rng.Int64N(1<<24), 1)
	}
	for b.Loop() {
		n := 0
		for range m.Runs() {
			n++
		}
	}
}
