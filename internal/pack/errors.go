package pack

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Errors of this package. Use errors.Is.
var (
	// ErrFull means that a chunk does not fit: finish the pack, start another.
	ErrFull = errors.New("pack is full")
	// ErrCorrupt means that bytes of a shard or container are not what was
	// written under that name.
	ErrCorrupt = errors.New("pack is damaged")
	// ErrVersion means that a newer version of the format was met.
	ErrVersion = errors.New("pack is of a newer format: upgrade this program")
	// ErrLost means that fewer shards can be read than are needed.
	ErrLost = errors.New("too few shards can be read")
	// ErrRange means that bytes past the end of a container were asked for.
	ErrRange = errors.New("range ends past the end of the pack")
)

// BadShard is a shard that could not be read, or not wholly, and why.
type BadShard struct {
	Shard int
	Err   error
}

// Report says what an operation on shards met, also when it succeeded.
type Report struct {
	Bad     []BadShard // in order of shards
	Late    []int      // shards that ReadAt did not wait for, in order
	Rebuilt int64      // bytes of container that had to be computed from other shards
}

// LostError is the error when too few shards are left; it is ErrLost.
type LostError struct {
	Pack chunk.PackID
	Need int // shards needed
	Bad  []BadShard
}

func (e *LostError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "pack %s: %v: %d are needed", e.Pack, ErrLost, e.Need)
	for _, s := range e.Bad {
		fmt.Fprintf(&b, "; shard %d: %v", s.Shard, s.Err)
	}
	return b.String()
}

// Is makes a LostError match ErrLost.
func (e *LostError) Is(target error) bool { return target == ErrLost }
