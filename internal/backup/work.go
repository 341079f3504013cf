package backup

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// progressEvery is how often progress is told at most. It is a variable for tests.
var progressEvery = 100 * time.Millisecond

var zeros [chunk.MaxPlain]byte

// run is the state that the workers of one run share.
type run struct {
	source  Source
	g       blockmap.Geometry
	parent  *manifest.Tree
	bad     func(chunk.Ref) bool
	plan    *planner
	builder *manifest.Builder

	count struct {
		done, total, read, audited, changed, fresh, stored, hole, zero, healed, reread atomic.Int64
	}

	mu         sync.Mutex
	mismatch   []int64
	mismatches int64

	progress func(Progress)
	telling  sync.Mutex
	told     time.Time
}

// work does leaves until there are no more. Reading runs ahead.
func (r *run) work(ctx context.Context, w Worker) error {
	ctx, cancel := context.WithCancel(ctx)
	free := make(chan []byte, buffers)
	for range buffers {
		free <- nil // allocated by the first read that needs it
	}
	ready := make(chan batch, buffers)
	var wg sync.WaitGroup
	wg.Go(func() { r.read(ctx, free, ready) })
	defer wg.Wait()
	defer cancel()
	for b := range ready {
		if err := r.process(ctx, w, b); err != nil {
			return err
		}
		free <- b.buf
		r.tell(false)
	}
	// The reader also stops, without a word, when the run is stopped.
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("back up: %w", err)
	}
	return nil
}

// process takes the blocks of a batch through all steps, and finishes the leaf
// with its last batch.
func (r *run) process(ctx context.Context, w Worker, b batch) error {
	if b.err != nil {
		return b.err
	}
	l := b.leaf
	pos := 0
	for _, i := range b.blocks {
		n := r.g.BlockLen(l.block(i))
		if err := r.block(ctx, w, l, i, b.buf[pos:pos+n]); err != nil {
			return err
		}
		pos += n
	}
	if !b.last {
		return nil
	}
	zero := l.read.or(l.audit).and(l.zero)
	for i := zero.next(0); i < manifest.LeafBlocks; i = zero.next(i + 1) {
		r.zero(l, i)
	}
	if l.changed {
		if err := r.builder.SetLeaf(ctx, nodeCounter{w, r}, l.index, l.refs); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
	}
	if err := r.builder.Settle(ctx, nodeCounter{w, r}, r.plan.done(l.index)); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	return nil
}

// block decides about one block that was read.
func (r *run) block(ctx context.Context, w Worker, l *leaf, i int, plain []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("back up block %d: %w", l.block(i), err)
	}
	n := int64(len(plain))
	r.count.done.Add(n)
	if l.audit.has(i) {
		r.count.audited.Add(n)
	} else {
		r.count.read.Add(n)
	}
	if bytes.Equal(plain, zeros[:n]) {
		r.count.zero.Add(n)
		r.vanish(l, i)
		return nil
	}
	old, had := l.refs.At(i)
	heal := false
	id := w.BlockID(plain)
	if had && id == old.ID {
		if heal = r.bad(old); !heal {
			return nil
		}
	}
	ref, stored, err := w.PutBlock(ctx, id, plain)
	if err != nil {
		return fmt.Errorf("store block %d: %w", l.block(i), err)
	}
	switch {
	case !heal:
		r.change(l, i)
	case ref.Location != old.Location: // else the session holds on to the damaged one
		r.count.healed.Add(1)
	}
	if stored > 0 {
		r.count.fresh.Add(n)
		r.count.stored.Add(int64(stored))
	}
	l.refs.Set(i, ref)
	l.changed = true
	return nil
}

// zero decides about one block that reads as zeros without being read.
func (r *run) zero(l *leaf, i int) {
	n := int64(r.g.BlockLen(l.block(i)))
	if l.audit.has(i) {
		r.count.audited.Add(n)
	}
	r.vanish(l, i)
}

// vanish makes a block a hole.
func (r *run) vanish(l *leaf, i int) {
	if _, had := l.refs.At(i); !had {
		return
	}
	r.change(l, i)
	l.refs.Clear(i)
	l.changed = true
}

// change counts a block that is not as it was in the parent.
func (r *run) change(l *leaf, i int) {
	r.count.changed.Add(int64(r.g.BlockLen(l.block(i))))
	if !l.audit.or(l.clean).has(i) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mismatches++
	if len(r.mismatch) < MaxMismatches {
		r.mismatch = append(r.mismatch, l.block(i))
	}
}

// tell calls the progress function, unless it was called a moment ago.
func (r *run) tell(always bool) {
	if r.progress == nil {
		return
	}
	if always {
		r.telling.Lock()
	} else if !r.telling.TryLock() {
		return
	}
	defer r.telling.Unlock()
	now := time.Now()
	if !always && now.Sub(r.told) < progressEvery {
		return
	}
	r.told = now
	c := &r.count
	r.progress(Progress{
		Done: c.done.Load(), Total: c.total.Load(), Read: c.read.Load(),
		Changed: c.changed.Load(), New: c.fresh.Load(), Stored: c.stored.Load(),
		Settled: r.plan.settled(),
	})
}

func (r *run) result(top []byte) Result {
	c := &r.count
	c.total.Store(c.done.Load()) // a short last block was counted as a whole one
	r.tell(true)
	slices.Sort(r.mismatch)
	return Result{
		Top: top, BytesRead: c.read.Load(), BytesAudited: c.audited.Load(), BytesChanged: c.changed.Load(),
		BytesNew: c.fresh.Load(), BytesStored: c.stored.Load(), BytesHole: c.hole.Load(), BytesZero: c.zero.Load(),
		AuditMismatch: r.mismatch, Mismatches: r.mismatches,
		Healed: c.healed.Load(), Reread: c.reread.Load(),
	}
}

// nodeCounter counts the sealed bytes of the nodes that it passes on.
type nodeCounter struct {
	w Worker
	r *run
}

// PutNode stores a node.
func (n nodeCounter) PutNode(ctx context.Context, plain []byte) (chunk.Ref, error) {
	ref, err := n.w.PutNode(ctx, plain)
	if err != nil {
		return chunk.Ref{}, err //nolint:wrapcheck // the manifest wraps it
	}
	n.r.count.stored.Add(int64(ref.Length))
	return ref, nil
}
