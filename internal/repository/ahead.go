package repository

import (
	"context"
	"fmt"
	"sync"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Read-ahead. A reader that goes through an image in order is noticed by its
// third read, and from then on a window behind its position is read into the
// block cache: as much again as it has read so far, up to aheadWindow, in steps
// and in parallel, across packs. Several readers at once, as the requests of a
// kernel or the workers of a restore are, are several streams. Reads of a step
// or more are left alone: they are parallel in themselves.
const (
	aheadStep    = 1 << 20
	aheadWindow  = 8 << 20
	aheadStreams = 8 // followed at once
	aheadWorkers = 4 // of one image
	aheadHits    = 3
	aheadSlack   = 256 << 10 // how far requests of one reader overtake each other
)

// stream is one sequential reader.
type stream struct {
	from int64 // where it began
	next int64 // where its next read is expected
	read int64 // up to where the data is here, or on its way
	hits int
	used uint64
}

// readAhead belongs to one image.
type readAhead struct {
	i      *Image
	spawn  func(func(context.Context)) // runs in a goroutine that ends with the image
	cancel context.CancelFunc
	slots  chan struct{}
	wg     sync.WaitGroup

	mu      sync.Mutex
	streams []*stream
	clock   uint64
	flying  map[chunk.Location]chan struct{} // closed when the step that reads it ended
	closed  bool
}

func newReadAhead(i *Image) *readAhead {
	a := &readAhead{i: i, slots: make(chan struct{}, aheadWorkers), flying: make(map[chunk.Location]chan struct{})}
	// The work outlives the read that started it, and ends with the image.
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.spawn = func(fn func(context.Context)) { a.wg.Go(func() { fn(ctx) }) }
	return a
}

// note follows a read of n bytes at off, and starts what it makes worthwhile.
func (a *readAhead) note(off, n int64) {
	if n >= aheadStep {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	a.clock++
	s := a.matchLocked(off)
	s.used = a.clock
	s.next = max(s.next, off+n)
	s.read = max(s.read, s.next)
	if s.hits++; s.hits < aheadHits {
		return
	}
	end := min(s.next+min(aheadWindow, 2*(s.next-s.from)), a.i.Size())
	for s.read < end {
		length := min(aheadStep-s.read%aheadStep, a.i.Size()-s.read)
		if !a.startLocked(s.read, length) {
			return
		}
		s.read += length
	}
}

// matchLocked returns the stream that a read continues, or a new one in the
// place of the one unused for longest.
func (a *readAhead) matchLocked(off int64) *stream {
	var oldest *stream
	for _, s := range a.streams {
		if off >= s.next-aheadSlack && off <= s.next+aheadSlack {
			return s
		}
		if oldest == nil || s.used < oldest.used {
			oldest = s
		}
	}
	s := stream{from: off, next: off}
	if len(a.streams) < aheadStreams {
		a.streams = append(a.streams, &s)
		return &s
	}
	*oldest = s
	return oldest
}

// startLocked begins to read a step, if there is a free worker.
func (a *readAhead) startLocked(off, n int64) bool {
	select {
	case a.slots <- struct{}{}:
	default:
		return false
	}
	a.spawn(func(ctx context.Context) {
		a.step(ctx, off, n)
		<-a.slots
	})
	return true
}

// step reads the blocks of a range that are not in the cache.
func (a *readAhead) step(ctx context.Context, off, n int64) {
	g := a.i.tree.Geometry()
	first, count := g.Span(off, n)
	var pieces []piece
	done := make(chan struct{})
	defer close(done)
	for block := first; block < first+count; block++ {
		ref, ok, err := a.i.lookup(ctx, block)
		if err != nil || !ok || checkLocation(ref.Location) != nil {
			continue // the read itself will tell
		}
		if _, ok := a.i.r.cells.get(ref.Location); ok {
			continue
		}
		a.mu.Lock()
		if a.flying[ref.Location] == nil {
			a.flying[ref.Location] = done
			pieces = append(pieces, piece{ref: ref})
		}
		a.mu.Unlock()
	}
	for _, r := range runs(pieces) {
		// What fails here fails again, and is told, when it is asked for.
		if a.i.readRun(ctx, r, true) != nil {
			break
		}
	}
	a.mu.Lock()
	for _, c := range pieces {
		delete(a.flying, c.ref.Location)
	}
	a.mu.Unlock()
}

// wait returns a block from the cache, waiting for it if it is being read.
func (a *readAhead) wait(ctx context.Context, ref chunk.Ref) ([]byte, bool, error) {
	if plain, ok := a.i.r.cells.get(ref.Location); ok {
		return plain, true, nil
	}
	a.mu.Lock()
	flying := a.flying[ref.Location]
	a.mu.Unlock()
	if flying == nil {
		return nil, false, nil
	}
	select {
	case <-flying:
	case <-ctx.Done():
		return nil, false, fmt.Errorf("wait for the read-ahead: %w", ctx.Err())
	}
	plain, ok := a.i.r.cells.get(ref.Location)
	return plain, ok, nil
}

func (a *readAhead) close() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.cancel()
	a.wg.Wait()
}
