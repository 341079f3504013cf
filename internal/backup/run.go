// Package backup does one backup run: it reads from a volume what may differ
// from the parent backup, stores what does, and makes the manifest.
//
// # How it goes
//
// A planner deals out leaves of the manifest that have something to do, in
// ascending order. One fat worker per core takes a leaf, loads it from the
// parent, and takes every block through all steps itself: read, zero?, ID, same
// as the parent's?, store. Beside each worker one goroutine reads ahead by two
// buffers of 1 MiB, so that reading overlaps hashing. Nothing is read but dirty
// blocks, in runs, and the audit's; a hole that the source knows of costs
// nothing, whatever its size.
//
// # Memory
//
// Per worker three read buffers of 1 MiB and three leaves of 8 KiB; 16 bytes for
// each run of dirty or zero blocks of the plan; the manifest's inner nodes in
// the making, 60 bytes per 2 GiB of the volume that changed, and 16 KiB for
// each of the few that are not settled. What a Worker holds comes on top.
package backup

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// Source is the volume as it stood at one instant.
type Source interface {
	// ReadAt fills p with the bytes at off. It is called concurrently.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Session is where the backup goes.
type Session interface {
	// Worker returns a worker for one goroutine. It is called once for each
	// worker of the run.
	Worker() (Worker, error)
	// Parent returns the manifest to compare with, nil if there is none.
	Parent() *manifest.Tree
}

// Worker stores blocks and nodes. It is used by one goroutine at a time.
type Worker interface {
	// BlockID returns the ID of a block.
	BlockID(plain []byte) chunk.ID
	// PutBlock stores a block or finds it stored; id is its BlockID. It does not
	// keep plain. stored is the sealed length of a block that was stored now,
	// and 0 of one that was there.
	PutBlock(ctx context.Context, id chunk.ID, plain []byte) (ref chunk.Ref, stored int, err error)
	// PutNode stores a node of the manifest.
	PutNode(ctx context.Context, plain []byte) (chunk.Ref, error)
	// Close ships what the worker holds. It is called exactly once; after an
	// error with a context that has ended, so that nothing more is shipped.
	Close(ctx context.Context) error
}

// Plan says what to read.
type Plan struct {
	Geometry blockmap.Geometry

	// Dirty lists, in the states of a dirty bitmap, what may differ from the
	// parent; what it does not cover is clean. Nil means that nobody knows:
	// everything is read. An empty list that is not nil means that nothing
	// changed. What the volume has grown by, and a short last block that it
	// grew or shrank at, are dirty without being listed. Without a parent
	// it is ignored.
	Dirty []blockmap.Extent

	// Allocated lists, in the states of base:allocation, what reads as zeros
	// (blockmap.Zero): it is not read. What it does not cover is data.
	Allocated []blockmap.Extent

	// Certain says that Dirty is no change map but what two manifests of the
	// source say: no clean block is audited.
	Certain bool

	// Compare reads everything, whatever Dirty says. Blocks that differ from
	// the parent's but are clean in Dirty are reported like those that an
	// audit finds.
	Compare bool

	// AuditSeed chooses the clean blocks that an incremental run audits. Seeds
	// that count up bring the whole volume round soonest; random ones do too.
	AuditSeed uint64

	// Bad reports whether a chunk is known to be damaged where it is. Blocks that
	// name such a chunk count as dirty and are put again; the session must not
	// answer with the damaged chunk. Nil: none is. Not nil costs
	// a walk through the parent's whole manifest. It is called concurrently.
	Bad func(chunk.Ref) bool

	// Workers is the number of workers; zero means one per core.
	Workers int
}

// Progress says how far a run is.
type Progress struct {
	Done, Total int64 // bytes to be read, blocks that name damaged chunks added as they are found

	Read, Changed, New, Stored int64 // as in Result

	// Settled is an offset: what lies before it in the volume is not read any more,
	// by this run. It only grows, and is the volume's size in the end.
	Settled int64
}

// Result says what a run did. Bytes are of the volume unless they say otherwise.
type Result struct {
	Top []byte // top node of the manifest, for the root record

	BytesRead    int64 // read in order to back them up, the audit's not among them
	BytesAudited int64 // clean blocks read or looked up to check the change map
	BytesChanged int64 // differ from the parent's
	BytesNew     int64 // stored by this run, as nobody had stored them before
	BytesStored  int64 // sealed bytes of new blocks and of manifest nodes
	BytesHole    int64 // known to be zeros without being read
	BytesZero    int64 // read and found to be zeros

	// AuditMismatch lists clean blocks that differed all the same, in order, at
	// most MaxMismatches of them; Mismatches counts all. They are right in
	// this backup, but the change map cannot be trusted.
	AuditMismatch []int64
	Mismatches    int64

	Healed int64 // blocks that named a damaged chunk and name a sound one now
	Reread int64 // leaves of the parent that could not be loaded and were read from the source
}

// MaxMismatches bounds Result.AuditMismatch.
const MaxMismatches = 1024

// Run backs up a source into a session and returns what the root record needs.
// It does not commit. progress may be nil; it is called from one goroutine at
// a time, at most ten times a second, and once more each when all is read and at
// the end of a run that succeeds. A context that ends stops the run before the next chunk; then, as
// after any other error, nothing of the Result counts and the caller aborts
// the session. No goroutine outlives the call.
func Run(ctx context.Context, s Source, sess Session, p Plan, progress func(Progress)) (Result, error) {
	r, err := newRun(ctx, s, sess, p, progress)
	if err != nil {
		return Result{}, err
	}
	n := p.Workers
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	workers := make([]Worker, 0, n)
	for range n {
		w, werr := sess.Worker()
		if werr != nil {
			return Result{}, errors.Join(fmt.Errorf("start a backup worker: %w", werr), closeAll(ended(ctx), workers))
		}
		workers = append(workers, w)
	}
	top, err := r.drive(ctx, workers)
	if err != nil {
		// What the workers say about being dropped adds nothing.
		_ = closeAll(ended(ctx), workers)
		if cause := context.Cause(ctx); cause != nil {
			err = fmt.Errorf("backup stopped: %w", cause)
		}
		return Result{}, err
	}
	if err := closeAll(ctx, workers); err != nil {
		return Result{}, fmt.Errorf("ship the last packs: %w", err)
	}
	return r.result(top), nil
}

// drive lets the workers work and makes the top node.
func (r *run) drive(ctx context.Context, workers []Worker) ([]byte, error) {
	g, gctx := errgroup.WithContext(ctx)
	for _, w := range workers {
		g.Go(func() error { return r.work(gctx, w) })
	}
	if err := g.Wait(); err != nil {
		return nil, err //nolint:wrapcheck // our own, wrapped where it arose
	}
	if err := r.plan.finished(); err != nil {
		return nil, err
	}
	r.tell(true)
	top, err := r.builder.Finish(ctx, nodeCounter{workers[0], r})
	if err != nil {
		return nil, fmt.Errorf("finish the manifest: %w", err)
	}
	return top, nil
}

// ended returns a context that has ended already.
func ended(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

func closeAll(ctx context.Context, workers []Worker) error {
	var err error
	for _, w := range workers {
		err = errors.Join(err, w.Close(ctx))
	}
	return err
}

// newRun checks the plan and decides what is to be done.
func newRun(ctx context.Context, s Source, sess Session, p Plan, progress func(Progress)) (*run, error) {
	if err := p.Geometry.Validate(); err != nil {
		return nil, fmt.Errorf("plan a backup: %w", err)
	}
	if p.Geometry.BlockSize > chunk.MaxPlain {
		return nil, fmt.Errorf("plan a backup: blocks of %d bytes do not fit into chunks: %w", p.Geometry.BlockSize, blockmap.ErrGeometry)
	}
	parent := sess.Parent()
	if parent != nil && parent.Geometry().BlockSize != p.Geometry.BlockSize {
		return nil, fmt.Errorf("plan a backup: its blocks have %d bytes, the parent's %d: make a full backup without a parent", p.Geometry.BlockSize, parent.Geometry().BlockSize)
	}
	r := &run{
		source: s, g: p.Geometry, parent: parent, bad: p.Bad,
		builder:  manifest.NewBuilder(parent, p.Geometry),
		progress: progress,
	}
	if r.bad == nil || parent == nil {
		r.bad = func(chunk.Ref) bool { return false }
	}
	pl, err := newPlanner(ctx, p, parent)
	if err != nil {
		return nil, fmt.Errorf("plan a backup: %w", err)
	}
	r.plan = pl
	r.count.total.Store(pl.bytes())
	if pl.full {
		for _, z := range pl.zero {
			r.count.hole.Add(min(r.g.Offset(z.end), r.g.Size) - r.g.Offset(z.first))
		}
	}
	return r, nil
}
