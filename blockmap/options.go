package blockmap

import (
	"errors"
	"fmt"
	"time"
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
	// Resizing is for Open only: the size that an interrupted Resize was to give
	// the files, which may have it, or Size. The caller does the Resize again.
	Resizing int64
}

// Checkpoint is a position in a volume's history of changes, under one of its names.
type Checkpoint struct {
	Name    string
	Created time.Time
	Doubt   string // why all blocks count as changed since then; "" = exact
}

// Change is what happened since a checkpoint.
type Change struct {
	Checkpoint
	DirtyBlocks int64 // that may have changed
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

const (
	defaultRegionSize = 4 << 20
	defaultHotRegions = 1024
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
