package backup

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/pack"
)

// packSession is a Session that does all the work of a repository's and keeps
// nothing.
type packSession struct {
	d      *chunk.Domain
	c      *pack.Coder
	stored atomic.Int64
}

func (s *packSession) Parent() *manifest.Tree { return nil }

func (s *packSession) Worker() (Worker, error) { return &packWorker{s: s}, nil }

type packWorker struct {
	s      *packSession
	b      *pack.Builder
	buf    []byte
	shards [][]byte
}

func (w *packWorker) BlockID(plain []byte) chunk.ID { return w.s.d.ID(chunk.Data, plain) }

func (w *packWorker) put(k chunk.Kind, id chunk.ID, plain []byte) (chunk.Ref, error) {
	for {
		if w.b == nil {
			var random [14]byte
			if _, err := rand.Read(random[:]); err != nil {
				return chunk.Ref{}, err
			}
			var err error
			if w.b, err = pack.NewBuilder(w.s.d, chunk.NewPackID([16]byte{1}, 0, random), w.buf); err != nil {
				return chunk.Ref{}, err
			}
		}
		r, err := w.b.Add(k, id, plain)
		if !errors.Is(err, pack.ErrFull) {
			return r, err
		}
		if err := w.ship(); err != nil {
			return chunk.Ref{}, err
		}
	}
}

func (w *packWorker) ship() error {
	container, err := w.b.Finish()
	if err != nil {
		return err
	}
	w.shards, err = w.s.c.Encode(w.b.ID(), container, w.shards)
	w.s.stored.Add(int64(len(container)))
	w.b, w.buf = nil, container
	return err
}

func (w *packWorker) PutBlock(_ context.Context, id chunk.ID, plain []byte) (chunk.Ref, int, error) {
	r, err := w.put(chunk.Data, id, plain)
	return r, int(r.Length), err
}

func (w *packWorker) PutNode(_ context.Context, plain []byte) (chunk.Ref, error) {
	return w.put(chunk.Node, w.s.d.ID(chunk.Node, plain), plain)
}

func (w *packWorker) Close(context.Context) error {
	if w.b == nil {
		return nil
	}
	return w.ship()
}

// image is a file as a Source.
type image struct{ f *os.File }

func (i image) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := i.f.ReadAt(p, off)
	return err
}

// BenchmarkPipeline is a full backup of the file that CAIRN_BENCH_IMAGE names,
// up to the shards, which go nowhere.
func BenchmarkPipeline(b *testing.B) {
	name := os.Getenv("CAIRN_BENCH_IMAGE")
	if name == "" {
		b.Skip("CAIRN_BENCH_IMAGE names no file")
	}
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	d, err := chunk.NewDomain([32]byte{1}, [16]byte{2}, "p")
	if err != nil {
		b.Fatal(err)
	}
	c, err := pack.NewCoder(pack.Geometry{Data: 4, Parity: 2}, [16]byte{2}, [32]byte{3})
	if err != nil {
		b.Fatal(err)
	}
	g := blockmap.Geometry{Size: fi.Size(), BlockSize: blockmap.DefaultBlockSize}
	b.SetBytes(g.Size)
	b.ReportAllocs()
	for b.Loop() {
		s := &packSession{d: d, c: c}
		if _, err := Run(b.Context(), image{f}, s, Plan{Geometry: g}, nil); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(g.Size)/float64(s.stored.Load()), "ratio")
	}
	b.ReportMetric(float64(g.Blocks()), "chunks/op")
}
