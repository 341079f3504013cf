package restore

import (
	"context"
	"math/rand/v2"
	"testing"
)

func BenchmarkCopyFresh(b *testing.B) {
	r := rand.New(rand.NewPCG(5, 5))
	img := &flatImage{mapImage{size: 64 << 20, blocks: map[int64][]byte{}}, noise(r)}
	for i := range int64(1024) {
		img.blocks[i] = img.one
	}
	b.SetBytes(img.size)
	for b.Loop() {
		if _, err := Copy(b.Context(), img, &memTarget{data: make([]byte, img.size)}, Options{Fresh: true}); err != nil {
			b.Fatal(err)
		}
	}
}

// flatImage is an image of one block again and again, read at the speed of memory.
type flatImage struct {
	mapImage
	one []byte
}

func (f *flatImage) ReadAt(_ context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := copy(p, f.one[off%testBlock:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}
