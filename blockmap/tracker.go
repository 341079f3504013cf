package blockmap

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// Tracker remembers, across crashes and power failures, which blocks of a volume
// were written since each of a list of checkpoints. It may report too many,
// never too few.
//
// Its history is an ordered list of segments. Writes mark the newest; a
// checkpoint closes it and opens another. What changed since a checkpoint is in
// the segments after it, and dropping a checkpoint merges its two neighbors.
// The newest segment's bits are in memory, and exact on disk but for the
// regions that the activity log names. A closed segment is a file.
//
// All methods are safe for concurrent use, but for three that the caller keeps
// apart from Mark: AddCheckpoint, Resize and Close.
type Tracker struct {
	// Fixed while marks may come.
	size        int64
	blockShift  int
	regionShift int
	hotMax      int
	words       []uint64 // of the newest segment; changed atomically
	regions     *regions

	fsys vfs.FS
	dir  string

	// mu guards the list of segments. Whoever changes it holds io as well, so
	// that either suffices to read it. Order: mu, io, queue.
	mu    sync.Mutex
	list  *list
	saved []byte // the list as it is on disk

	// io guards the files of the newest segment and the regions.
	io     sync.Mutex
	bits   *bitsFile // nil while idle
	spare  *bitsFile // for the next segment, or nil
	log    *activityLog
	exact  bool    // the newest record says (or may say) that the bits on disk are exact
	unsure []int64 // pages of which a write has failed
	failed error   // why nothing more can be marked

	queue sync.Mutex
	next  *batch // of marks, that has not begun

	stats trackerCounters
}

// trackerCounters are behind TrackerStats.
type trackerCounters struct {
	logWrites, pageWrites, coldMarks atomic.Int64

	unclean bool
}

// CreateTracker makes the files of a new tracker in dir, which exists, and
// opens it. It has no checkpoints, and until the first remembers nothing. Files
// of an earlier tracker in dir are replaced.
func CreateTracker(fsys vfs.FS, dir string, o TrackerOptions) (*Tracker, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("create a change tracker: %w", err)
	}
	g := Geometry{Size: o.Size, BlockSize: o.BlockSize}
	t := newTracker(fsys, dir, o, &list{
		volume:     o.VolumeID,
		geometry:   g,
		regionSize: o.RegionSize,
		epoch:      1,
		nextID:     1,
		segments:   []segment{{blocks: g.Blocks()}},
	})
	if err := t.start(); err != nil {
		return nil, fmt.Errorf("create a change tracker: %w", err)
	}
	return t, nil
}

// newTracker returns a tracker of l without bits or open files.
func newTracker(fsys vfs.FS, dir string, o TrackerOptions, l *list) *Tracker {
	t := &Tracker{fsys: fsys, dir: dir, hotMax: o.HotRegions, list: l, log: newActivityLog(fsys, dir, l.volume)}
	t.adopt(l.geometry, l.regionSize)
	t.words = NewBitmap(l.newest().blocks).words
	t.regions = newRegions(t.regionCount(l.geometry.Size), t.hotMax)
	return t
}

// adopt takes over the sizes that marks use.
func (t *Tracker) adopt(g Geometry, regionSize int64) {
	t.size, t.blockShift, t.regionShift = g.Size, g.shift(), bits.TrailingZeros64(uint64(regionSize)) //nolint:gosec // Validated.
}

func (t *Tracker) regionCount(size int64) int64 {
	return (size + 1<<t.regionShift - 1) >> t.regionShift
}

// start writes the list, and a log that says that there is no activity.
func (t *Tracker) start() error {
	if err := t.save(t.list); err != nil {
		return err
	}
	if t.list.idle() {
		t.regions.setAll(true)
		if err := t.log.replace(activity{epoch: t.list.epoch}); err != nil {
			return err
		}
	} else {
		if err := t.log.replace(activity{epoch: t.list.epoch, exact: true, sum: t.sum()}); err != nil {
			return err
		}
		t.exact = true
	}
	t.sweep()
	return nil
}

// Flush makes the bits on disk exact, so that a crash after it costs nothing
// until the next mark. Marks go on meanwhile, as if into cold regions.
func (t *Tracker) Flush() error {
	t.io.Lock()
	defer t.io.Unlock()
	return t.flush()
}

func (t *Tracker) flush() error {
	if t.failed != nil {
		return t.failed
	}
	if t.bits == nil || t.exact && len(t.regions.logged)+len(t.unsure) == 0 {
		return nil
	}
	if err := t.settle(); err != nil {
		return err
	}
	return t.record(activity{epoch: t.list.epoch, exact: true, sum: t.sum()})
}

// sum is the checksum of the newest segment's bits on disk. A resize that failed
// may have left more pages than the segment has.
func (t *Tracker) sum() uint32 { return sumOf(t.bits.sums[:pagesOf(t.list.newest().blocks)]) }

// settle makes all bits durable and all regions cold that are not full.
func (t *Tracker) settle() error {
	if err := t.cool(slices.Clone(t.regions.logged)); err != nil {
		return err
	}
	return t.flushPages(nil) // Those that failed before.
}

// Close makes the bits on disk exact and closes the files. Every later mark
// fails with [ErrClosed]. After an error the next open treats the stop as
// unclean.
func (t *Tracker) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.io.Lock()
	defer t.io.Unlock()
	if errors.Is(t.failed, ErrClosed) {
		return nil
	}
	err := t.flush()
	t.fail(ErrClosed)
	for _, b := range []*bitsFile{t.bits, t.spare} {
		if b != nil {
			err = errors.Join(err, b.close())
		}
	}
	return errors.Join(err, t.log.close())
}

// Stats returns the figures of the tracker.
func (t *Tracker) Stats() TrackerStats {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.io.Lock()
	defer t.io.Unlock()
	s := TrackerStats{
		Segments:   len(t.list.segments),
		HotRegions: len(t.regions.logged),
		LogWrites:  t.stats.logWrites.Load(),
		PageWrites: t.stats.pageWrites.Load(),
		ColdMarks:  t.stats.coldMarks.Load(),
		Unclean:    t.stats.unclean,
	}
	if !t.list.idle() {
		s.DirtyBlocks = t.live().Count()
	}
	return s
}

// live returns a copy of the newest segment's bits. The mutex mu is held.
func (t *Tracker) live() *Bitmap {
	b := NewBitmap(t.list.newest().blocks)
	for i := range b.words {
		b.words[i] = atomic.LoadUint64(&t.words[i])
	}
	if n := len(b.words); n > 0 {
		b.words[n-1] &= wordMask(int64(n-1), 0, b.n)
	}
	return b
}
