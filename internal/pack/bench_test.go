package pack

import (
	"os"
	"testing"

	"github.com/cairnbackup/cairn/internal/chunk"
)

func BenchmarkEncode(b *testing.B) {
	container := bytesOf(1, TargetSize)
	for _, g := range []Geometry{{1, 0}, {4, 2}} {
		b.Run(g.String(), func(b *testing.B) {
			c := testCoder(b, g)
			var dst [][]byte
			b.SetBytes(int64(len(container)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if dst, err = c.Encode(testPack, container, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReadAt(b *testing.B) {
	c := testCoder(b, Geometry{4, 2})
	f := encode(b, c, bytesOf(1, TargetSize))
	degraded := &shards{objects: append([][]byte{nil, nil}, f.objects[2:]...)}
	for _, x := range []struct {
		name string
		f    Fetcher
		n    int
	}{{"chunk", f, 20 << 10}, {"1MiB", f, 1 << 20}, {"chunk-degraded", degraded, 20 << 10}, {"1MiB-degraded", degraded, 1 << 20}} {
		b.Run(x.name, func(b *testing.B) {
			p := make([]byte, x.n)
			b.SetBytes(int64(x.n))
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				if _, err := c.ReadAt(b.Context(), x.f, testPack, p, off); err != nil {
					b.Fatal(err)
				}
				off = (off + int64(x.n)) % (TargetSize - 1<<20)
			}
		})
	}
}

// BenchmarkPipeline is what one worker does with blocks that are new: ID,
// seal, pack, shards. CAIRN_BENCH_IMAGE names a disk image to take.
func BenchmarkPipeline(b *testing.B) {
	name := os.Getenv("CAIRN_BENCH_IMAGE")
	if name == "" {
		b.Skip("CAIRN_BENCH_IMAGE names no file")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		b.Fatal(err)
	}
	data = data[:len(data)/chunk.MaxPlain*chunk.MaxPlain]
	d, c := testDomain(b), testCoder(b, Geometry{4, 2})
	var buf []byte
	var dst [][]byte
	stored := 0
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		stored = 0
		var p *Builder
		ship := func() {
			container, ferr := p.Finish()
			if ferr != nil {
				b.Fatal(ferr)
			}
			if dst, err = c.Encode(p.ID(), container, dst); err != nil {
				b.Fatal(err)
			}
			buf, p = container, nil
			stored += len(container)
		}
		for at := 0; at < len(data); at += chunk.MaxPlain {
			plain := data[at : at+chunk.MaxPlain]
			id := d.ID(chunk.Data, plain)
			for p == nil || func() bool { _, full := p.Add(chunk.Data, id, plain); return full != nil }() {
				if p != nil {
					ship()
				}
				if p, err = NewBuilder(d, chunk.PackID{1, byte(at), byte(at >> 8), byte(at >> 16), byte(at >> 24)}, buf); err != nil {
					b.Fatal(err)
				}
			}
		}
		ship()
	}
	b.ReportMetric(float64(len(data))/float64(stored), "ratio")
	b.ReportMetric(float64(len(data)/chunk.MaxPlain), "chunks/op")
}
