package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

const testBlock = 512 // small blocks make large volumes cheap

// volume is a Source in memory that remembers what is read.
type volume struct {
	data []byte
	g    blockmap.Geometry

	mu    sync.Mutex
	reads map[int64]int // by block
	big   int           // longest read
	fail  func(off int64) error

	settled atomic.Int64 // what lies before it is not to be read
}

func newVolume(data []byte) *volume {
	return &volume{data: data, g: blockmap.Geometry{Size: int64(len(data)), BlockSize: testBlock}, reads: map[int64]int{}}
}

func (v *volume) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > int64(len(v.data)) || len(p) == 0 {
		return fmt.Errorf("read of %d at %d is outside", len(p), off)
	}
	if at := v.settled.Load(); off < at {
		return fmt.Errorf("read at %d, and all before %d was said to be settled", off, at)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fail != nil {
		if err := v.fail(off); err != nil {
			return err
		}
	}
	first, n := v.g.Span(off, int64(len(p)))
	for b := first; b < first+n; b++ {
		v.reads[b]++
	}
	v.big = max(v.big, len(p))
	copy(p, v.data[off:])
	return nil
}

// vault is a Session that stores in maps, and the Loader of what it stored.
type vault struct {
	d      *chunk.Domain
	parent *manifest.Tree

	mu       sync.Mutex
	chunks   map[chunk.ID][]byte
	nodes    map[chunk.ID][]byte
	places   map[chunk.ID]uint32
	blocks   int // stored anew
	fail     func() error
	open     atomic.Int64
	closings atomic.Int64
	shipped  atomic.Int64
}

func newVault(tb testing.TB) *vault {
	tb.Helper()
	d, err := chunk.NewDomain([32]byte{1}, [16]byte{2}, "p")
	if err != nil {
		tb.Fatal(err)
	}
	return &vault{d: d, chunks: map[chunk.ID][]byte{}, nodes: map[chunk.ID][]byte{}, places: map[chunk.ID]uint32{}}
}

func (v *vault) Parent() *manifest.Tree { return v.parent }

func (v *vault) Worker() (Worker, error) {
	v.open.Add(1)
	return &vaultWorker{v: v}, nil
}

var errNoNode = errors.New("no such node")

func (v *vault) LoadNode(_ context.Context, r chunk.Ref) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	b, ok := v.nodes[r.ID]
	if !ok {
		return nil, errNoNode
	}
	return b, nil
}

type vaultWorker struct {
	v    *vault
	busy atomic.Bool
	done bool
}

// alone fails the test if a worker is used by two goroutines at a time.
func (w *vaultWorker) alone() func() {
	if !w.busy.CompareAndSwap(false, true) || w.done {
		panic("worker used twice at a time, or after Close")
	}
	return func() { w.busy.Store(false) }
}

func (w *vaultWorker) ref(id chunk.ID) chunk.Ref {
	return chunk.Ref{ID: id, Location: chunk.Location{Pack: chunk.PackID{1}, Length: chunk.MinSealed}}
}

func (w *vaultWorker) PutBlock(ctx context.Context, id chunk.ID, plain []byte) (chunk.Ref, int, error) {
	defer w.alone()()
	if err := ctx.Err(); err != nil {
		return chunk.Ref{}, 0, err
	}
	if id != w.v.d.ID(chunk.Data, plain) {
		panic("block put under another's ID")
	}
	w.v.mu.Lock()
	defer w.v.mu.Unlock()
	if w.v.fail != nil {
		if err := w.v.fail(); err != nil {
			return chunk.Ref{}, 0, err
		}
	}
	_, old := w.v.chunks[id]
	if !old {
		w.v.chunks[id] = bytes.Clone(plain)
		w.v.blocks++
		w.v.places[id] = uint32(w.v.blocks)
	}
	r := w.ref(id)
	r.Offset = w.v.places[id]
	if old {
		return r, 0, nil
	}
	return r, 100, nil
}

func (w *vaultWorker) BlockID(plain []byte) chunk.ID {
	defer w.alone()()
	return w.v.d.ID(chunk.Data, plain)
}

func (w *vaultWorker) PutNode(ctx context.Context, plain []byte) (chunk.Ref, error) {
	defer w.alone()()
	id := w.v.d.ID(chunk.Node, plain)
	w.v.mu.Lock()
	defer w.v.mu.Unlock()
	w.v.nodes[id] = bytes.Clone(plain)
	return w.ref(id), ctx.Err()
}

func (w *vaultWorker) Close(ctx context.Context) error {
	defer w.alone()()
	w.done = true
	w.v.closings.Add(1)
	if ctx.Err() == nil {
		w.v.shipped.Add(1)
	}
	return ctx.Err()
}

// restore reads a whole backup back.
func (v *vault) restore(g blockmap.Geometry, top []byte) ([]byte, *manifest.Tree, error) {
	tree, err := manifest.Open(g, top, v)
	if err != nil {
		return nil, nil, err
	}
	out := make([]byte, g.Size)
	err = tree.Walk(context.Background(), func(leaf int64, l *manifest.Leaf) error {
		for i := range manifest.LeafBlocks {
			r, ok := l.At(i)
			if !ok {
				continue
			}
			b := leaf*manifest.LeafBlocks + int64(i)
			plain := v.chunks[r.ID]
			if len(plain) != g.BlockLen(b) || bytes.Equal(plain, make([]byte, len(plain))) {
				return fmt.Errorf("block %d has a chunk of %d bytes", b, len(plain))
			}
			copy(out[g.Offset(b):], plain)
		}
		return nil
	})
	return out, tree, err
}
