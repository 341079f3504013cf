package pack

import (
	"fmt"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Sizes of the format; FORMAT.md says why.
const (
	// TargetSize is the most bytes that a container made by Builder has.
	TargetSize = 16 << 20
	// MaxContainer is the longest container that a reader accepts.
	MaxContainer = 64 << 20
	// MaxShards is the most shards, data and parity together, of a pack.
	MaxShards = 32

	unit       = 128 << 10 // bytes of a container that lie together in one shard
	cellSize   = 8 << 10   // payload of a cell
	tagSize    = 16
	storedCell = cellSize + tagSize
	unitCells  = unit / cellSize
	headerSize = 96
	alignment  = 4096 // of shard buffers, for direct I/O
)

// Geometry is how many shards a pack has: any Data of the Data+Parity shards
// give the whole pack back. {1, 0} is one plain copy.
type Geometry struct{ Data, Parity int }

// Validate says what is wrong with a geometry that cannot be used.
func (g Geometry) Validate() error {
	switch {
	case g.Data < 1:
		return fmt.Errorf("geometry %s: at least one data shard is needed", g)
	case g.Parity < 0:
		return fmt.Errorf("geometry %s: the number of parity shards cannot be negative", g)
	case g.Data > MaxShards || g.Parity > MaxShards || g.Total() > MaxShards:
		return fmt.Errorf("geometry %s: at most %d shards in all", g, MaxShards)
	}
	return nil
}

// Total returns the number of shards.
func (g Geometry) Total() int { return g.Data + g.Parity }

func (g Geometry) String() string { return fmt.Sprintf("%d+%d", g.Data, g.Parity) }

// ShardSize returns the length in bytes of the object that holds a shard of a
// container of length bytes.
func (g Geometry) ShardSize(length int64, shard int) int64 {
	return headerSize + g.cells(length, shard)*storedCell
}

// cells returns how many cells a shard of a container of length bytes has. A
// short last row leaves later data shards shorter; parity is as long as the
// longest of them.
func (g Geometry) cells(length int64, shard int) int64 {
	row := int64(g.Data) * unit
	tail := length % row
	if shard < g.Data {
		tail -= int64(shard) * unit
	}
	tail = min(max(tail, 0), unit)
	return length/row*unitCells + (tail+cellSize-1)/cellSize
}

// piece is the part of a range of a container that lies in one unit.
type piece struct {
	shard  int
	offset int64 // in the shard's payload
	length int
}

// pieces calls fn for each piece of the n bytes at off of a container, in
// order.
func (g Geometry) pieces(off int64, n int, fn func(piece)) {
	for n > 0 {
		u := off / unit
		in := off % unit
		length := min(n, int(unit-in))
		fn(piece{
			shard:  int(u % int64(g.Data)),
			offset: u/int64(g.Data)*unit + in,
			length: length,
		})
		off += int64(length)
		n -= length
	}
}

// cellOffset is where a cell begins in the object of its shard.
func cellOffset(cell int64) int64 { return headerSize + cell*storedCell }

// Entry is one chunk of a pack's table of contents.
type Entry struct {
	Kind           chunk.Kind
	ID             chunk.ID
	Offset, Length uint32 // of the sealed bytes in the container
}
