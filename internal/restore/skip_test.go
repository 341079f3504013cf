package restore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
)

var errLost = errors.New("lost")

// holedImage is an image of which some blocks, and the map of some pieces, are
// lost.
type holedImage struct {
	*mapImage
	lost   map[int64]bool // blocks
	unmaps map[int64]bool // pieces
}

func (h *holedImage) gone(off, n int64) bool {
	for b := off / testBlock; b*testBlock < off+n; b++ {
		if h.lost[b] && h.blocks[b] != nil || h.unmaps[b*testBlock/pieceSize] {
			return true
		}
	}
	return false
}

func (h *holedImage) ReadAt(ctx context.Context, p []byte, off int64) error {
	if h.gone(off, int64(len(p))) {
		return errLost
	}
	return h.mapImage.ReadAt(ctx, p, off)
}

func (h *holedImage) Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	if h.unmaps[off/pieceSize] {
		return nil, errLost
	}
	return h.mapImage.Extents(ctx, off, n)
}

func (h *holedImage) Differs(ctx context.Context, block int64, plain []byte) (bool, error) {
	if h.unmaps[block*testBlock/pieceSize] {
		return false, errLost
	}
	return h.mapImage.Differs(ctx, block, plain) // IDs are in the map
}

// Whatever is lost, all the rest is restored; what was lost is told exactly, reads
// as zeros in a fresh target, and stays as it was in another.
func TestCopySkips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		img := &holedImage{drawImage(t, r), map[int64]bool{}, map[int64]bool{}}
		for range rapid.IntRange(0, 12).Draw(t, "lost") {
			img.lost[r.Int64N(400)] = true
		}
		if rapid.Bool().Draw(t, "unmapped") {
			img.unmaps[r.Int64N(3)] = true
		}
		fresh := rapid.Bool().Draw(t, "fresh")
		target := &memTarget{data: make([]byte, img.size)}
		if !fresh {
			for i := range target.data {
				target.data[i] = byte(i >> 12)
			}
			for b, c := range img.blocks { // some are right already
				if r.IntN(2) == 0 {
					copy(target.data[b*testBlock:], c)
				}
			}
		}
		before := bytes.Clone(target.data)
		skipped := make([]bool, img.size)
		var sum int64
		p, err := Copy(context.Background(), img, target, Options{
			Fresh: fresh, Workers: rapid.IntRange(1, 4).Draw(t, "workers"), Verify: rapid.Bool().Draw(t, "verify"),
			Skip: func(err error) bool { return errors.Is(err, errLost) },
			Skipped: func(off, n int64, err error) {
				if !errors.Is(err, errLost) {
					t.Fatal(err)
				}
				for i := off; i < off+n; i++ {
					if skipped[i] {
						t.Fatalf("byte %d is told twice", i)
					}
					skipped[i] = true
				}
				sum += n
			},
		})
		if err != nil || p.Skipped != sum || p.Done != img.size {
			t.Fatalf("%+v, %d told, %v", p, sum, err)
		}
		want := img.content()
		for b := int64(0); b*testBlock < img.size; b++ {
			from, to := b*testBlock, min(img.size, (b+1)*testBlock)
			got := target.data[from:to]
			switch {
			case !skipped[from] && !bytes.Equal(got, want[from:to]):
				t.Fatalf("block %d is wrong and was not told", b)
			case skipped[from] && !img.gone(from, to-from):
				t.Fatalf("block %d was skipped and is not lost", b)
			case skipped[from] && !bytes.Equal(got, before[from:to]):
				t.Fatalf("block %d is lost, and the target was changed", b)
			}
		}
	})
}

// What Skip does not know ends the restore as ever.
func TestCopySkipsNothingElse(t *testing.T) {
	img := &holedImage{&mapImage{size: 1 << 20, blocks: map[int64][]byte{3: noise(rand.New(rand.NewPCG(1, 1)))}}, map[int64]bool{3: true}, nil}
	_, err := Copy(t.Context(), img, &memTarget{data: make([]byte, 1<<20)}, Options{Fresh: true, Skip: func(error) bool { return false }})
	if !errors.Is(err, errLost) {
		t.Fatal(err)
	}
}
