// Package restore copies an image – the read-only view of one backup – to a
// target: an NBD volume, a device or a file. Holes stay holes, pieces are
// copied in parallel with bounded memory, and into a target that has content
// only blocks that differ are written.
//
// The bytes are proven on their way in: an image checks the chunk ID of all
// that it returns. [Options.Verify] proves the way out as well, by reading back
// what was written: from the disk where the target takes direct I/O, else from
// what the NBD server or the operating system has of it. That doubles what the
// target's disk has to do.
package restore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cairnbackup/cairn/blockmap"
)

// Image is what is restored. Its methods are called concurrently. ReadAt
// fills p or fails, and verifies what it returns; Extents describes the range
// in order and without gaps (it may stop early, but not before one extent);
// Differs says whether plain, the whole content of one block, is other than
// the image's.
type Image interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error)
	Differs(ctx context.Context, block int64, plain []byte) (bool, error)
}

// Target is what is written. Its methods are called concurrently, for ranges
// that do not overlap. Zero makes a range read as zeros and frees its space
// where it can. Extents is as an image's; it describes what the target holds.
type Target interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	WriteAt(ctx context.Context, p []byte, off int64) error
	Zero(ctx context.Context, off, n int64) error
	Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error)
	Flush(ctx context.Context) error
}

// Errors of this package, wrapped with the place.
var (
	// ErrTooSmall: the target cannot hold the image.
	ErrTooSmall = errors.New("the target is smaller than the backup: take or make a larger one")
	// ErrMismatch: the target does not return what was written to it.
	ErrMismatch = errors.New("the target returned other bytes than were written to it: its disk, memory or file system is faulty, or something else writes to it")
)

// Options says how to restore. Zero values are the defaults.
type Options struct {
	// Fresh says that the target reads as zeros everywhere, so that holes
	// need not be written and nothing need be compared.
	Fresh bool
	// Verify reads back what was written and compares it with what was sent.
	Verify bool
	// BlockSize is the image's; [blockmap.DefaultBlockSize] if 0.
	BlockSize int
	// Workers is how many pieces are copied at once, each with two or
	// three buffers of 1 MiB, or one if the target is fresh and not verified; 8 if 0.
	Workers int
	// Skip, if not nil, says of an error of the image whether it is of data that
	// is lost. Such blocks are passed over: a fresh target reads as zeros there,
	// one with content keeps what it has. Skipped, which may be nil, is told each
	// range with its error, in no order and not concurrently.
	Skip    func(error) bool
	Skipped func(off, n int64, err error)
	// Progress, which may be nil, is called from several goroutines, but not
	// concurrently.
	Progress func(Progress)
}

// Progress is how far a restore has come, in bytes. Done counts up to Total,
// the size of the image.
type Progress struct {
	Total   int64
	Done    int64
	Read    int64 // from the image
	Written int64 // to the target; zeroed ranges do not count
	Zeroed  int64 // on a target with content: made zero
	Same    int64 // on a target with content: held the right bytes already
	Hole    int64 // neither read nor written
	Skipped int64 // could not be read, and was passed over (Options.Skip)
}

// Bytes that move at once, and that one worker takes as its piece: pieces are
// large and in order, so that the image's read-ahead sees sequential readers.
const (
	stepSize  = 1 << 20
	pieceSize = 8 << 20
	maxWindow = 16 << 30
)

// Copy makes the first img.Size() bytes of t those of the image, and flushes
// t. Bytes of the target beyond them stay as they are. On an error, and when
// ctx ends, the target holds a mixture of old and new; Copy may be repeated
// on it without Fresh, which costs only what is missing. The progress made is
// returned in every case. All of Copy's goroutines have ended when it returns.
func Copy(ctx context.Context, img Image, t Target, o Options) (Progress, error) {
	if o.BlockSize == 0 {
		o.BlockSize = blockmap.DefaultBlockSize
	}
	if o.Workers <= 0 {
		o.Workers = 8
	}
	if o.BlockSize < 0 || stepSize%o.BlockSize != 0 {
		return Progress{}, fmt.Errorf("restore: a block size of %d bytes does not divide 1 MiB", o.BlockSize)
	}
	if t.Size() < img.Size() {
		return Progress{}, fmt.Errorf("restore of %d bytes to %d: %w", img.Size(), t.Size(), ErrTooSmall)
	}
	r := &run{img: img, target: t, o: o, size: img.Size()}
	r.sum.Total = r.size
	err := r.copyAll(ctx)
	if err == nil {
		if err = t.Flush(ctx); err != nil {
			err = fmt.Errorf("restore: flush the target: %w", err)
		}
	}
	return r.sum, err
}

// run is one call of Copy.
type run struct {
	img    Image
	target Target
	o      Options
	size   int64

	claiming sync.Mutex
	next     int64 // first byte that no worker has taken
	window   int64 // how far ahead emptiness is asked for

	mu  sync.Mutex
	sum Progress
}

// copyAll lets the workers take pieces until all are done or one fails.
func (r *run) copyAll(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range min(int64(r.o.Workers), (r.size+pieceSize-1)/pieceSize) {
		wg.Go(func() {
			w := newWorker(r)
			for {
				off, n, err := r.claim(ctx)
				if err == nil && n > 0 {
					err = w.piece(ctx, off, n)
				}
				if err != nil {
					cancel(err)
				}
				if err != nil || n == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	// The first failure is the cause; the others only followed from it.
	return context.Cause(ctx)
}

// claim takes the next piece for a worker; its length is 0 when all are taken.
// Long empty stretches are passed over here, so that a sparse image costs its
// data and not its size: the more is empty, the farther the next question goes.
func (r *run) claim(ctx context.Context) (off, n int64, err error) {
	r.claiming.Lock()
	defer r.claiming.Unlock()
	for r.next < r.size {
		if ctx.Err() != nil {
			return 0, 0, context.Cause(ctx)
		}
		r.window = max(r.window, pieceSize)
		n, err := r.emptyAhead(ctx, min(r.window, r.size-r.next))
		if err != nil && !r.skips(err) {
			return 0, 0, err
		}
		if err != nil {
			n = 0 // the piece's worker finds out how much is lost
		}
		if n < pieceSize && r.next+n < r.size {
			// Pieces begin where the first one would have let them begin.
			off = r.next
			r.next = min(r.size, off-off%pieceSize+pieceSize)
			r.window = 0
			return off, r.next - off, nil
		}
		if n < r.size-r.next {
			n -= n % pieceSize
		}
		d := Progress{Done: n}
		if r.o.Fresh {
			d.Hole = n
		} else {
			d.Same = n
		}
		r.report(d)
		r.next += n
		r.window = min(4*r.window, maxWindow)
	}
	return 0, 0, nil
}

// emptyAhead is for how many of the next n bytes there is nothing to do.
func (r *run) emptyAhead(ctx context.Context, n int64) (int64, error) {
	empty, err := emptyFirst(ctx, r.img.Extents, r.next, n)
	if err != nil || r.o.Fresh {
		return empty, err
	}
	return emptyFirst(ctx, r.target.Extents, r.next, empty)
}

// report adds to the sum.
func (r *run) report(d Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sum.Done += d.Done
	r.sum.Read += d.Read
	r.sum.Written += d.Written
	r.sum.Zeroed += d.Zeroed
	r.sum.Same += d.Same
	r.sum.Hole += d.Hole
	r.sum.Skipped += d.Skipped
	if r.o.Progress != nil {
		r.o.Progress(r.sum)
	}
}
