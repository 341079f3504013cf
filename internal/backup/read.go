package backup

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/internal/manifest"
)

const (
	readSize = 1 << 20 // bytes of one buffer, and of one read at most
	buffers  = 3       // of a worker: one is worked on, the others filled ahead
	readers  = 4       // reads at a time for the scattered blocks of one buffer
)

// leaf is a leaf being worked on.
type leaf struct {
	task
	refs    *manifest.Leaf // the parent's, then this backup's
	changed bool
}

// block returns the number of the i-th block in the volume.
func (l *leaf) block(i int) int64 { return l.index*manifest.LeafBlocks + int64(i) }

// batch is what one buffer holds: blocks of one leaf, one after the other.
type batch struct {
	leaf   *leaf
	blocks []int
	buf    []byte
	last   bool // nothing more comes for the leaf
	err    error
}

// read fills buffers for one worker, leaf after leaf, until there are no more
// leaves or the context ends. It closes ready.
func (r *run) read(ctx context.Context, free <-chan []byte, ready chan<- batch) {
	defer close(ready)
	send := func(b batch) bool {
		select {
		case ready <- b:
			return b.err == nil
		case <-ctx.Done():
			return false
		}
	}
	for {
		t, ok, err := r.plan.next(ctx)
		if err != nil {
			send(batch{err: err})
			return
		}
		if !ok {
			return
		}
		l, err := r.open(ctx, t)
		if err != nil {
			send(batch{err: err})
			return
		}
		todo := l.read.or(l.audit).not(l.zero)
		for at, more := 0, true; more; {
			b := batch{leaf: l}
			select {
			case b.buf = <-free:
			case <-ctx.Done():
				return
			}
			b, at = r.fill(ctx, b, todo, at)
			more = !b.last
			if !send(b) {
				return
			}
		}
	}
}

// open loads the parent's leaf and settles what is to be done with it.
func (r *run) open(ctx context.Context, t task) (*leaf, error) {
	l := &leaf{task: t, refs: new(manifest.Leaf)}
	if r.parent != nil && t.index < r.parent.Leaves() {
		old, err := r.parent.Leaf(ctx, t.index)
		switch {
		case ctx.Err() != nil:
			return nil, fmt.Errorf("load the parent's manifest: %w", ctx.Err())
		case err != nil:
			// What the parent has here is lost; the source has it all.
			r.count.reread.Add(1)
			r.more(l, t.in)
			l.audit, l.clean, l.changed = mask{}, mask{}, true
		default:
			l.refs = old
		}
	}
	var damaged mask
	for i := range manifest.LeafBlocks {
		if ref, ok := l.refs.At(i); ok && t.in.has(i) && r.bad(ref) {
			damaged = damaged.with(i)
		}
	}
	r.more(l, damaged)
	l.audit = l.audit.not(damaged)
	if r.plan.full {
		return l, nil // holes are counted already
	}
	hole := l.read.and(l.zero)
	for i := hole.next(0); i < manifest.LeafBlocks; i = hole.next(i + 1) {
		r.count.hole.Add(int64(r.g.BlockLen(l.block(i))))
	}
	return l, nil
}

// more adds blocks to those that are read.
func (r *run) more(l *leaf, m mask) {
	m = m.not(l.read)
	extra := m.not(l.zero).not(l.audit)
	r.count.total.Add(int64(extra.count()) * int64(r.g.BlockSize))
	l.read = l.read.or(m)
}

// fill reads into a batch's buffer the next blocks of todo from the i-th on,
// and returns where to go on.
func (r *run) fill(ctx context.Context, b batch, todo mask, at int) (batch, int) {
	at = todo.next(at)
	if at < manifest.LeafBlocks && b.buf == nil {
		b.buf = make([]byte, readSize)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	pos := 0
	for at < manifest.LeafBlocks && pos+r.g.BlockSize <= len(b.buf) {
		off, start := r.g.Offset(b.leaf.block(at)), pos
		for at < manifest.LeafBlocks && todo.has(at) && pos+r.g.BlockSize <= len(b.buf) {
			b.blocks = append(b.blocks, at)
			pos += r.g.BlockLen(b.leaf.block(at))
			at++
		}
		p := b.buf[start:pos]
		at = todo.next(at)
		if start == 0 && (at == manifest.LeafBlocks || pos+r.g.BlockSize > len(b.buf)) {
			b.err = r.readAt(ctx, p, off) // the only one: no goroutine for it
			break
		}
		g.Go(func() error { return r.readAt(gctx, p, off) })
	}
	if err := g.Wait(); err != nil {
		b.err = err
	}
	b.last = at == manifest.LeafBlocks
	return b, at
}

func (r *run) readAt(ctx context.Context, p []byte, off int64) error {
	if err := r.source.ReadAt(ctx, p, off); err != nil {
		return fmt.Errorf("read %d bytes at offset %d of the volume: %w", len(p), off, err)
	}
	return nil
}
