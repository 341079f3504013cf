// Package blockmap knows which blocks of a volume are where and which have
// changed: the geometry of a volume in blocks, extents of bytes with a state,
// bitmaps of blocks, and the [Tracker], which remembers across crashes and
// power failures what was written since each of a list of checkpoints.
//
// FORMAT.md describes the tracker's files.
package blockmap

import (
	"errors"
	"fmt"
	"math/bits"
)

const (
	// DefaultBlockSize is the unit of change tracking and storage.
	DefaultBlockSize = 64 << 10
	// MaxSize is the largest volume in bytes.
	MaxSize = 1 << 56

	minBlockSize = 512
	maxBlockSize = 64 << 20
)

// ErrGeometry says that a size or block size is out of range.
var ErrGeometry = errors.New("invalid volume geometry")

// Geometry is a volume cut into blocks. The last block may be short.
type Geometry struct {
	Size      int64 // bytes, 0 to MaxSize
	BlockSize int   // bytes, a power of two from 512 to 64 MiB
}

// Validate reports sizes that are out of range; the error is [ErrGeometry].
// The other methods require a valid geometry.
func (g Geometry) Validate() error {
	if g.Size < 0 || g.Size > MaxSize {
		return fmt.Errorf("%w: size %d is not between 0 and %d bytes", ErrGeometry, g.Size, int64(MaxSize))
	}
	if g.BlockSize < minBlockSize || g.BlockSize > maxBlockSize || g.BlockSize&(g.BlockSize-1) != 0 {
		return fmt.Errorf("%w: block size %d is not a power of two between %d and %d", ErrGeometry, g.BlockSize, minBlockSize, maxBlockSize)
	}
	return nil
}

func (g Geometry) shift() int { return bits.TrailingZeros(uint(g.BlockSize)) }

// Blocks returns the number of blocks.
func (g Geometry) Blocks() int64 { return (g.Size + int64(g.BlockSize) - 1) >> g.shift() }

// Block returns the block that the byte at off lies in.
func (g Geometry) Block(off int64) int64 { return off >> g.shift() }

// Offset returns the offset of a block's first byte.
func (g Geometry) Offset(block int64) int64 { return block << g.shift() }

// Span returns the first block and the number of blocks that the n bytes at
// off touch, cut at the end of the volume. No bytes touch no block.
func (g Geometry) Span(off, n int64) (first, count int64) {
	off = max(off, 0)
	if n <= 0 || off >= g.Size {
		return 0, 0
	}
	n = min(n, g.Size-off)
	first = off >> g.shift()
	return first, (off+n-1)>>g.shift() - first + 1
}

// BlockLen returns the length in bytes of a block: the block size, less for the
// last one, 0 for a block outside the volume.
func (g Geometry) BlockLen(block int64) int {
	if block < 0 || block >= g.Blocks() {
		return 0
	}
	return int(min(int64(g.BlockSize), g.Size-g.Offset(block)))
}
