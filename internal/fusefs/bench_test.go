package fusefs

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// plain answers at the speed of memory, so that the way through the kernel is
// what is measured.
type plain struct{ mapImage }

func (p *plain) ReadAt(context.Context, []byte, int64) error { return nil }

type plainSource struct{ *mapSource }

func (p plainSource) Open(context.Context, string) (Image, error) {
	return &plain{mapImage{size: p.entries[0].Size}}, nil
}

func benchFile(b *testing.B, size int64) *os.File {
	b.Helper()
	m := mount(b, plainSource{one(func() *mapImage { return &mapImage{size: size} })}, nil)
	f, err := os.Open(m.disk())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return f
}

func BenchmarkSequential(b *testing.B) {
	const size = 1 << 30
	f := benchFile(b, size)
	buf := make([]byte, 1<<20)
	b.SetBytes(size)
	for b.Loop() {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
		for off := int64(0); off < size; off += int64(len(buf)) {
			if _, err := f.ReadAt(buf, off); err != nil && err != io.EOF {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkRandom4K(b *testing.B) {
	const size = 1 << 40
	f := benchFile(b, size)
	buf := make([]byte, 4096)
	for b.Loop() {
		if _, err := f.ReadAt(buf, rand.Int64N(size/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
}
