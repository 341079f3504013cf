package pack

import (
	"fmt"
	"unsafe"

	"github.com/cairnbackup/cairn/internal/chunk"
)

var zeroCell [cellSize]byte

// Encode returns the k+m shards of a container, each a complete object. The
// buffers of dst are reused where they are large enough and aligned; the
// result has them, or new ones, in their place. Every shard begins on a
// multiple of 4096 in memory and its capacity reaches to one, so that it can
// be written with direct I/O. The container is only read.
func (c *Coder) Encode(id chunk.PackID, container []byte, dst [][]byte) ([][]byte, error) {
	length := int64(len(container))
	if length == 0 || length > MaxContainer {
		return nil, fmt.Errorf("pack %s: %d bytes: %w", id, length, errContainer)
	}
	n := c.g.Total()
	shards := make([][]byte, n)
	for i := range shards {
		var b []byte
		if i < len(dst) {
			b = dst[i]
		}
		b = aligned(b, c.g.ShardSize(length, i))
		shards[i] = c.appendHeader(b[:0], id, i, length)[:len(b)]
	}
	t := borrow(&c.cellTags)
	defer c.cellTags.Put(t)
	stripe := make([][]byte, n)
	rows := c.g.cells(length, 0) // no shard has more
	for cell := range rows {
		if err := c.encodeCells(shards, stripe, container, cell); err != nil {
			return nil, fmt.Errorf("pack %s: %w", id, err)
		}
		for i, s := range shards {
			if at := cellOffset(cell); at < int64(len(s)) {
				copy(s[at+cellSize:], t.tag(stripe[i], id, i, cell))
			}
		}
	}
	return shards, nil
}

// encodeCells fills the payload of one cell of every shard, cell after cell,
// so that parity and tags find it in the core's cache. stripe is scratch and
// has the payloads afterwards.
func (c *Coder) encodeCells(shards, stripe [][]byte, container []byte, cell int64) error {
	k := int64(c.g.Data)
	for i := range shards {
		stripe[i] = zeroCell[:]
		at := cellOffset(cell)
		if at >= int64(len(shards[i])) {
			continue // past the end of the container: zeros that are not stored
		}
		stripe[i] = shards[i][at : at+cellSize]
		if int64(i) >= k {
			continue
		}
		from := (cell/unitCells*k+int64(i))*unit + cell%unitCells*cellSize
		clear(stripe[i][copy(stripe[i], container[from:]):])
	}
	if c.rs == nil {
		return nil
	}
	if err := c.rs.Encode(stripe); err != nil {
		return fmt.Errorf("compute parity: %w", err)
	}
	return nil
}

// aligned returns a buffer of n bytes that begins on a multiple of alignment
// and has capacity up to the next: b, if it can be that.
func aligned(b []byte, n int64) []byte {
	room := (n + alignment - 1) / alignment * alignment
	if int64(cap(b)) >= room && misaligned(b) == 0 {
		return b[:n]
	}
	b = make([]byte, room+alignment)
	if off := misaligned(b); off != 0 {
		b = b[alignment-off:]
	}
	return b[:n:room]
}

func misaligned(b []byte) uintptr {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b))) % alignment
}
