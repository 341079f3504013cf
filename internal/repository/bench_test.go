package repository

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
)

// benchBlocks is a volume of 128 MiB.
const benchBlocks = 2048

// benchRepository returns a repository on six folders, with a backup in it of
// blocks that compress to about half.
func benchRepository(b *testing.B) *Repository {
	b.Helper()
	dir := b.TempDir()
	var stores []objstore.Store
	for i := range 6 {
		s, err := dirstore.Create(fmt.Sprintf("%s/%d", dir, i), dirstore.Options{})
		if err != nil {
			b.Fatal(err)
		}
		stores = append(stores, s)
	}
	if _, err := Init(b.Context(), InitOptions{Stores: stores, Data: 4, Parity: 2, Password: password, KDF: cheapKDF}); err != nil {
		b.Fatal(err)
	}
	r, err := Open(b.Context(), Options{Stores: stores, Password: password})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err = r.Close(); err != nil {
			b.Error(err)
		}
	})
	return r
}

func benchBlock(r *rand.Rand) []byte {
	p := make([]byte, testBlock)
	for i := range p {
		if i%64 < 32 {
			p[i] = byte(r.Uint32())
		}
	}
	return p
}

func benchContent() *content {
	r := rand.New(rand.NewPCG(1, 2))
	c := &content{size: benchBlocks * testBlock, blocks: make(map[int64][]byte)}
	for i := range int64(benchBlocks) {
		c.blocks[i] = benchBlock(r)
	}
	return c
}

// writeInOrder stores a volume with one worker, as a backup does.
func (c *content) writeInOrder(b *testing.B, s *Session) []byte {
	b.Helper()
	w, err := s.Worker()
	if err != nil {
		b.Fatal(err)
	}
	tree := manifest.NewBuilder(nil, c.geometry())
	leaf := &manifest.Leaf{}
	for i := range c.geometry().Blocks() {
		ref, _, failed := w.PutBlock(b.Context(), w.BlockID(c.blocks[i]), c.blocks[i])
		if failed != nil {
			b.Fatal(failed)
		}
		leaf.Set(int(i%manifest.LeafBlocks), ref)
		if (i+1)%manifest.LeafBlocks == 0 {
			if failed = tree.SetLeaf(b.Context(), w, i/manifest.LeafBlocks, leaf); failed != nil {
				b.Fatal(failed)
			}
			leaf = &manifest.Leaf{}
		}
	}
	top, err := tree.Finish(b.Context(), w)
	if err != nil {
		b.Fatal(err)
	}
	if err = w.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	return top
}

func (c *content) benchBackup(b *testing.B, r *Repository, id string) {
	b.Helper()
	s, err := r.Begin(b.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		b.Fatal(err)
	}
	top := c.writeInOrder(b, s)
	if o, err := s.Commit(b.Context(), Root{BackupID: id, Geometry: c.geometry(), Top: top}); o != OutcomeCommitted {
		b.Fatal(o, err)
	}
}

// BenchmarkSessionPut stores 128 MiB with one worker on six folders, commit
// included.
func BenchmarkSessionPut(b *testing.B) {
	r := benchRepository(b)
	v := benchContent()
	b.SetBytes(v.size)
	n := 0
	for b.Loop() {
		n++
		v.benchBackup(b, r, strconv.Itoa(n))
	}
}

// BenchmarkSessionEmpty is what a backup of nothing costs: the protocol alone.
func BenchmarkSessionEmpty(b *testing.B) {
	r := benchRepository(b)
	v := &content{size: 1 << 30}
	n := 0
	for b.Loop() {
		n++
		if o, err := v.backup(b.Context(), r, strconv.Itoa(n), "", nil); o != OutcomeCommitted {
			b.Fatal(o, err)
		}
	}
}

func benchImage(b *testing.B) *Image {
	b.Helper()
	r := benchRepository(b)
	v := benchContent()
	v.benchBackup(b, r, "b")
	img, err := r.Image(b.Context(), "b")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err = img.Close(); err != nil {
			b.Error(err)
		}
	})
	return img
}

// BenchmarkImageSequential reads an image from beginning to end, in requests as
// FUSE and NBD make them, and in the large ones of a restore.
func BenchmarkImageSequential(b *testing.B) {
	for _, n := range []int{128 << 10, 1 << 20, 8 << 20} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			img := benchImage(b)
			p := make([]byte, n)
			b.SetBytes(img.Size())
			for b.Loop() {
				for off := int64(0); off < img.Size(); off += int64(n) {
					if err := img.ReadAt(b.Context(), p, off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkImageRandom reads 4 KiB at random places of an image larger than the
// block cache.
func BenchmarkImageRandom(b *testing.B) {
	img := benchImage(b)
	r := rand.New(rand.NewPCG(3, 4))
	p := make([]byte, 4096)
	for b.Loop() {
		if err := img.ReadAt(b.Context(), p, r.Int64N(img.Size()/4096)*4096); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkImageDegraded reads sequentially with two of six stores away.
func BenchmarkImageDegraded(b *testing.B) {
	img := benchImage(b)
	ms := img.r.current()
	ms[0].health.failed(img.r.o.Now(), 1<<60)
	ms[1].health.failed(img.r.o.Now(), 1<<60)
	p := make([]byte, 8<<20)
	b.SetBytes(img.Size())
	for b.Loop() {
		for off := int64(0); off < img.Size(); off += int64(len(p)) {
			if err := img.ReadAt(b.Context(), p, off); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkIndexLookup looks up chunks that are not in a full table.
func BenchmarkIndexLookup(b *testing.B) {
	r := benchRepository(b)
	r.o.CacheDir = b.TempDir()
	x := openIndex(b.Context(), r)
	if x == nil {
		b.Fatal("no index")
	}
	defer func() {
		if err := x.close(); err != nil {
			b.Error(err)
		}
	}()
	d, err := r.domain("p")
	if err != nil {
		b.Fatal(err)
	}
	plain := make([]byte, 8)
	for b.Loop() {
		plain[0]++
		if _, _, err := x.table.lookup(d.ID(1, plain)); err != nil {
			b.Fatal(err)
		}
	}
}
