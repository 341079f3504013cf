package volume

import (
	"path/filepath"
	"sync/atomic"
	"testing"
)

const benchSize = 256 << 20

// benchVolume makes a volume on the real file system whose blocks are all
// allocated and whose tracker is warm.
func benchVolume(b *testing.B) *Volume {
	b.Helper()
	v, err := Create(Options{}, filepath.Join(b.TempDir(), "vol"), Spec{Name: "vol", Size: benchSize, Managed: true})
	must(b, err)
	b.Cleanup(func() { must(b, v.Close()) })
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i * 7)
	}
	for off := int64(0); off < benchSize; off += int64(len(p)) {
		_, err := v.WriteAt(p, off)
		must(b, err)
	}
	must(b, v.Flush())
	return v
}

// scatter calls write with 4 KiB at offsets all over the volume.
func scatter(b *testing.B, write func(p []byte, off int64) error) {
	b.Helper()
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		n++
		if err := write(p, n*7919%(benchSize/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite4k(b *testing.B) {
	b.Run("bare", func(b *testing.B) {
		v := benchVolume(b)
		scatter(b, func(p []byte, off int64) error { _, err := v.data.WriteAt(p, off); return err })
	})
	b.Run("tracked", func(b *testing.B) {
		v := benchVolume(b)
		scatter(b, func(p []byte, off int64) error { _, err := v.WriteAt(p, off); return err })
	})
	b.Run("overhead", func(b *testing.B) { // what a write costs besides the write
		v := benchVolume(b)
		scatter(b, func(p []byte, off int64) error {
			if err := v.BeginWrite(off, int64(len(p))); err != nil {
				return err
			}
			return v.EndWrite(off, int64(len(p)), nil)
		})
	})
	for name, o := range map[string]SnapshotOptions{"temporary": {Temporary: true}, "persistent": {}} {
		b.Run("snapshot="+name+"/saved", func(b *testing.B) {
			v := benchVolume(b)
			snap(b, v, o)
			for off := int64(0); off < benchSize; off += bs {
				must(b, v.BeginWrite(off, bs))
				must(b, v.EndWrite(off, bs, nil))
			}
			scatter(b, func(p []byte, off int64) error { _, err := v.WriteAt(p, off); return err })
		})
	}
	b.Run("snapshot=temporary/first", func(b *testing.B) {
		v := benchVolume(b)
		var n int64
		s := snap(b, v, SnapshotOptions{Temporary: true})
		scatter(b, func(p []byte, _ int64) error {
			if n == benchSize {
				b.StopTimer()
				must(b, v.DeleteSnapshot(s.id))
				s, n = snap(b, v, SnapshotOptions{Temporary: true}), 0
				b.StartTimer()
			}
			_, err := v.WriteAt(p, n)
			n += bs
			return err
		})
	})
	b.Run("snapshot=persistent/first/writers=16", func(b *testing.B) {
		v := benchVolume(b)
		snap(b, v, SnapshotOptions{})
		b.SetParallelism(8)
		benchFirstWrites(b, v)
	})
}

// benchFirstWrites writes once to each block, so that each write waits for a
// preimage on stable storage, shared by the writers of the moment.
func benchFirstWrites(b *testing.B, v *Volume) {
	b.Helper()
	var next atomic.Int64
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := v.WriteAt(p, (next.Add(1)-1)*bs%benchSize); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkOpenForWriting is what the first writer of a volume waits for.
func BenchmarkOpenForWriting(b *testing.B) {
	open := func(b *testing.B, v *Volume) {
		b.Helper()
		for b.Loop() {
			must(b, v.OpenForWriting())
			must(b, v.CloseForWriting())
		}
	}
	b.Run("file", func(b *testing.B) { open(b, benchVolume(b)) })
	b.Run("shared", func(b *testing.B) { // what a device or a file of several hosts takes more
		v := benchVolume(b)
		v.data.shared = true
		open(b, v)
	})
	b.Run("shared/cached", func(b *testing.B) { // with 256 MiB to be dropped each time
		v := benchVolume(b)
		v.data.shared = true
		p := make([]byte, benchSize)
		for b.Loop() {
			b.StopTimer()
			_, err := v.ReadAt(p, 0)
			must(b, err)
			b.StartTimer()
			must(b, v.OpenForWriting())
			must(b, v.CloseForWriting())
		}
	})
}
