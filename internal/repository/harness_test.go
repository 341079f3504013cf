package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// cheapKDF keeps tests fast.
var cheapKDF = &KDF{Time: 1, MemoryKiB: 8, Threads: 1}

var password = []byte("correct horse")

// eager never waits for stores that are not needed.
var eager = Timing{Call: 5 * time.Second, Grace: 2 * time.Second, Read: time.Second, Aside: time.Nanosecond}

// cluster is a set of memory stores that can be made to misbehave.
type cluster struct {
	mem    []*memstore.Store
	faulty []*memstore.Faulty
}

func newCluster(n int) *cluster {
	c := &cluster{}
	for i := range n {
		m := memstore.New(strconv.Itoa(i))
		c.mem = append(c.mem, m)
		c.faulty = append(c.faulty, memstore.WithFaults(m, memstore.Faults{}))
	}
	return c
}

func (c *cluster) stores() []objstore.Store {
	out := make([]objstore.Store, len(c.faulty))
	for i, f := range c.faulty {
		out[i] = f
	}
	return out
}

// clone returns a copy of what is stored, without faults.
func (c *cluster) clone() *cluster {
	out := &cluster{}
	for _, m := range c.mem {
		m = m.Clone()
		out.mem = append(out.mem, m)
		out.faulty = append(out.faulty, memstore.WithFaults(m, memstore.Faults{}))
	}
	return out
}

func (c *cluster) heal() {
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{})
		f.SetDown(false)
		f.Settle()
	}
}

func (c *cluster) init(tb testing.TB, data, parity int) {
	tb.Helper()
	_, err := Init(tb.Context(), InitOptions{Stores: c.stores(), Data: data, Parity: parity, Password: password, KDF: cheapKDF})
	if err != nil {
		tb.Fatal(err)
	}
}

func (c *cluster) open(tb testing.TB, change ...func(*Options)) *Repository {
	tb.Helper()
	o := Options{Stores: c.stores(), Password: password, Timing: eager}
	for _, f := range change {
		f(&o)
	}
	r, err := Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err = r.Close(); err != nil {
			tb.Error(err)
		}
	})
	return r
}

// fresh returns an initialized 4+2 cluster and its repository.
func fresh(tb testing.TB) (*cluster, *Repository) {
	tb.Helper()
	c := newCluster(6)
	c.init(tb, 4, 2)
	return c, c.open(tb)
}

const testBlock = 64 << 10

// content is a volume in a test: some blocks of it, the others are holes.
type content struct {
	size   int64
	blocks map[int64][]byte
}

func randomContent(r *rand.Rand, blocks int64, filled int) *content {
	c := &content{size: blocks*testBlock - int64(r.IntN(2))*777, blocks: make(map[int64][]byte)}
	c.change(r, filled)
	return c
}

// change writes random blocks: some compress, some do not, some repeat.
func (c *content) change(r *rand.Rand, n int) []int64 {
	g := c.geometry()
	var changed []int64
	for range n {
		b := r.Int64N(g.Blocks())
		plain := make([]byte, g.BlockLen(b))
		switch r.IntN(3) {
		case 0:
			for i := range plain {
				plain[i] = byte(r.Uint32())
			}
		case 1:
			for i := range plain {
				plain[i] = byte(i/64) ^ byte(b)
			}
		default:
			for i := range plain {
				plain[i] = byte(1 + i%5)
			}
		}
		c.blocks[b] = plain
		changed = append(changed, b)
	}
	return changed
}

func (c *content) clone() *content {
	out := &content{size: c.size, blocks: make(map[int64][]byte)}
	maps.Copy(out.blocks, c.blocks) // blocks are never changed in place
	return out
}

func (c *content) geometry() blockmap.Geometry {
	return blockmap.Geometry{Size: c.size, BlockSize: testBlock}
}

func (c *content) bytes() []byte {
	out := make([]byte, c.size)
	for b, p := range c.blocks {
		copy(out[b*testBlock:], p)
	}
	return out
}

// write runs the data part of a backup: all blocks, or those changed since the
// session's parent.
func (c *content) write(ctx context.Context, s *Session, changed []int64) (top []byte, err error) {
	w, err := s.Worker()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close(ctx)) }()
	g := c.geometry()
	leaves := make(map[int64]*manifest.Leaf)
	put := func(b int64) error {
		n := b / manifest.LeafBlocks
		l := leaves[n]
		if l == nil {
			l = &manifest.Leaf{}
			if s.Parent() != nil {
				if l, err = s.Parent().Leaf(ctx, n); err != nil {
					return err
				}
			}
			leaves[n] = l
		}
		ref, _, failed := w.PutBlock(ctx, w.BlockID(c.blocks[b]), c.blocks[b])
		l.Set(int(b%manifest.LeafBlocks), ref)
		return failed
	}
	if s.Parent() == nil {
		changed = nil
		for b := range c.blocks {
			changed = append(changed, b)
		}
	}
	for _, b := range changed {
		if err = put(b); err != nil {
			return nil, err
		}
	}
	b := manifest.NewBuilder(s.Parent(), g)
	for n, l := range leaves {
		if err = b.SetLeaf(ctx, w, n, l); err != nil {
			return nil, err
		}
	}
	return b.Finish(ctx, w)
}

// backup runs a whole session.
func (c *content) backup(ctx context.Context, r *Repository, id, parent string, changed []int64) (Outcome, error) {
	s, err := r.Begin(ctx, SessionOptions{Project: "p", VolumeID: "v", Volume: "disk", ParentBackup: parent})
	if err != nil {
		return OutcomeFailed, err
	}
	top, err := c.write(ctx, s, changed)
	if err != nil {
		return OutcomeFailed, errors.Join(err, s.Abort(ctx))
	}
	return s.Commit(ctx, Root{BackupID: id, Name: "name-" + id, Created: time.Unix(1_760_000_000, 0), Geometry: c.geometry(), Top: top})
}

func (c *content) mustBackup(tb testing.TB, r *Repository, id, parent string, changed []int64) {
	tb.Helper()
	if o, err := c.backup(tb.Context(), r, id, parent, changed); err != nil || o != OutcomeCommitted {
		tb.Fatalf("backup %s: %v, %v", id, o, err)
	}
}

// verify compares a backup with what it has to hold.
func (c *content) verify(ctx context.Context, r *Repository, id string) error {
	img, err := r.Image(ctx, id)
	if err != nil {
		return err
	}
	defer func() { _ = img.Close() }()
	want := c.bytes()
	if img.Size() != c.size {
		return fmt.Errorf("size %d, want %d", img.Size(), c.size)
	}
	got := make([]byte, c.size)
	if err = img.ReadAt(ctx, got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("backup %s differs", id)
	}
	return nil
}

func mustVerify(tb testing.TB, c *content, r *Repository, id string) {
	tb.Helper()
	if err := c.verify(tb.Context(), r, id); err != nil {
		tb.Fatalf("backup %s: %v", id, err)
	}
}

func seeded(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 1)) }

func ids(bs []Backup, state State) map[string]bool {
	out := make(map[string]bool)
	for _, b := range bs {
		if b.State == state {
			out[b.ID] = true
		}
	}
	return out
}
