package blockmap

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// TrackerOptions describe the volume of a tracker.
type TrackerOptions struct {
	VolumeID  [16]byte // whose changes they are; files of another volume are distrusted
	Size      int64    // bytes
	BlockSize int      // bytes; 0 = DefaultBlockSize, or what the files say

	RegionSize int64 // bytes that an activity entry covers, a power of two; 0 = 4 MiB. For Create only: Open takes what the files say
	HotRegions int   // the most regions hot at a time; 0 = 1024

	// Doubt is for Open only: the reason of a caller that distrusts the
	// files. Everything counts as changed since every checkpoint.
	Doubt string
}

// Checkpoint is a position in a volume's history of changes, under one of its names.
type Checkpoint struct {
	Name        string
	Created     time.Time
	Doubt       string // why all blocks count as changed since then; "" = exact
	DirtyBlocks int64  // blocks that may have changed since then
}

// TrackerStats are figures of a tracker since it was opened.
type TrackerStats struct {
	Segments    int   // pieces of history, one per position and one before the first
	HotRegions  int   // regions that may be written without any I/O
	DirtyBlocks int64 // in the newest segment
	LogWrites   int64 // records written to the activity log
	PageWrites  int64 // pages of exact bits written
	ColdMarks   int64 // marks that had to wait for a record
	Unclean     bool  // the last stop was not clean, so that whole regions were marked
}

var (
	// ErrCheckpoint says that there is no checkpoint of a name.
	ErrCheckpoint = errors.New("no such checkpoint")
	// ErrCheckpointExists says that a name is taken.
	ErrCheckpointExists = errors.New("a checkpoint of that name exists")
	// ErrClosed says that the tracker was closed.
	ErrClosed = errors.New("the change tracker is closed")

	errTooMany = errors.New("there are too many checkpoints: drop some")
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

const (
	defaultRegionSize = 4 << 20
	defaultHotRegions = 1024
	listName          = "checkpoints"
	listCopyName      = "checkpoints.copy"
)

// complete fills in the defaults and checks what is there.
func (o *TrackerOptions) complete() error {
	if o.BlockSize == 0 {
		o.BlockSize = DefaultBlockSize
	}
	if o.RegionSize == 0 {
		o.RegionSize = max(defaultRegionSize, int64(o.BlockSize))
	}
	if o.HotRegions == 0 {
		o.HotRegions = defaultHotRegions
	}
	g := Geometry{Size: o.Size, BlockSize: o.BlockSize}
	if err := g.Validate(); err != nil {
		return err
	}
	if o.HotRegions < 1 || o.HotRegions > maxHotRegions {
		return fmt.Errorf("%d hot regions: between 1 and %d are possible", o.HotRegions, maxHotRegions)
	}
	return checkRegions(g, o.RegionSize)
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
		sum := sumOf(t.bits.sums)
		if err := t.log.replace(activity{epoch: t.list.epoch, exact: true, sum: sum}); err != nil {
			return err
		}
		t.exact = true
	}
	t.sweep()
	return nil
}

// save makes l the durable list and the one in use. When that fails the old one
// remains in use, provided that it is the durable one without a doubt;
// otherwise the tracker takes no more marks, because nobody knows in which
// segment they would be looked for.
func (t *Tracker) save(l *list) error {
	if t.failed != nil {
		return t.failed
	}
	l.generation = t.list.generation + 1
	data := l.encode()
	if err := l.validate(); err != nil {
		return fmt.Errorf("save the list of checkpoints: %w", err)
	}
	if len(data) > maxListSize || len(l.segments) > maxSegments {
		return fmt.Errorf("save the list of checkpoints: %w", errTooMany)
	}
	name := filepath.Join(t.dir, listName)
	if err := vfs.WriteFile(t.fsys, name, data, 0o600); err != nil {
		err = fmt.Errorf("save the list of checkpoints: %w", err)
		if t.saved == nil {
			return err
		}
		seen, rerr := vfs.ReadFile(t.fsys, name, maxListSize)
		if rerr == nil && bytes.Equal(seen, t.saved) {
			return err
		}
		if werr := vfs.WriteFile(t.fsys, name, t.saved, 0o600); werr != nil {
			t.fail(fmt.Errorf("%w: reopen the volume", errors.Join(err, werr)))
		}
		return err
	}
	t.list, t.saved = l, data
	t.saveCopy(data)
	return nil
}

// saveCopy keeps a copy of the list's names, for the day that the list is
// damaged. Everything is distrusted then, so the copy need not be durable, nor
// even new.
func (t *Tracker) saveCopy(data []byte) {
	f, err := t.fsys.OpenFile(filepath.Join(t.dir, listCopyName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	_, _ = f.WriteAt(data, 0) // See above.
	_ = f.Close()
}

// fail makes every further mark an error. The io mutex is held.
func (t *Tracker) fail(err error) {
	t.failed = err
	t.regions.setAll(false)
}

// sweep removes files of segments that are not in the list. What it cannot
// remove it leaves for the next time.
func (t *Tracker) sweep() {
	entries, err := t.fsys.ReadDir(t.dir)
	if err != nil {
		return
	}
	keep := map[string]bool{}
	for _, s := range t.list.segments {
		if s.id != 0 {
			keep[filepath.Base(bitsName(t.dir, s.id))] = true
		}
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), bitsPrefix) && !keep[e.Name()] {
			_ = t.fsys.Remove(filepath.Join(t.dir, e.Name()))
		}
	}
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
	return t.record(activity{epoch: t.list.epoch, exact: true, sum: sumOf(t.bits.sums)})
}

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
	if t.bits != nil {
		err = errors.Join(err, t.bits.close())
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
