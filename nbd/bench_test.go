package nbd

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
)

// BenchmarkRead measures client and server together over a unix socket, on a
// cached file.
func BenchmarkRead(b *testing.B) {
	for _, shape := range []struct{ size, depth int }{{4 << 10, 1}, {4 << 10, 32}, {64 << 10, 8}, {1 << 20, 8}} {
		b.Run(fmt.Sprintf("%dk-%d", shape.size>>10, shape.depth), func(b *testing.B) {
			benchmark(b, shape.size, shape.depth, func(c *Client, p []byte, off int64) error {
				return c.ReadAt(b.Context(), p, off)
			})
		})
	}
}

// BenchmarkWrite is BenchmarkRead for writes.
func BenchmarkWrite(b *testing.B) {
	for _, shape := range []struct{ size, depth int }{{4 << 10, 1}, {4 << 10, 32}, {64 << 10, 8}, {1 << 20, 8}} {
		b.Run(fmt.Sprintf("%dk-%d", shape.size>>10, shape.depth), func(b *testing.B) {
			benchmark(b, shape.size, shape.depth, func(c *Client, p []byte, off int64) error {
				return c.WriteAt(b.Context(), p, off, false)
			})
		})
	}
}

func benchmark(b *testing.B, size, depth int, op func(c *Client, p []byte, off int64) error) {
	b.Helper()
	const total = 64 << 20
	d := newFileDisk(b, total, true)
	for off := int64(0); off < total; off += 1 << 20 {
		if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 1<<20), off); err != nil {
			b.Fatal(err)
		}
	}
	c := dial(b, serveDevice(b, "unix", d, d.memory), ClientOptions{})
	b.SetBytes(int64(size))
	b.ReportAllocs()
	var wg sync.WaitGroup
	b.ResetTimer()
	for g := range depth {
		wg.Go(func() {
			p := make([]byte, size)
			for i := g; i < b.N; i += depth {
				// Scattered, yet each block once before any comes again.
				off := int64(i) * 7919 * int64(size) % total
				if err := op(c, p, off); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
