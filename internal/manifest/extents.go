package manifest

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/blockmap"
)

// Extents returns what the n bytes at off are: extents in order, without gaps,
// blockmap.Data where there are chunks and Hole|Zero elsewhere, all of the
// range that lies in the volume. The cost is that of the leaves in the range
// that are not holes; the caller bounds the range.
func (t *Tree) Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	if off < 0 || n < 0 || off > t.g.Size {
		return nil, fmt.Errorf("manifest: extents of %d bytes at %d of a volume of %d", n, off, t.g.Size)
	}
	end := off + min(n, t.g.Size-off)
	var out []blockmap.Extent
	pos := off
	err := t.walkFrom(ctx, t.g.Block(off)/LeafBlocks, func(leaf int64, l *Leaf) error {
		for i := range LeafBlocks {
			start := t.g.Offset(leaf*LeafBlocks + int64(i))
			if start >= end {
				return errStop
			}
			stop := min(start+int64(t.g.BlockSize), end)
			if _, ok := l.At(i); !ok || stop <= off {
				continue
			}
			start = max(start, off)
			out = blockmap.Append(out, hole(pos, start))
			out = blockmap.Append(out, blockmap.Extent{Offset: start, Length: stop - start, State: blockmap.Data})
			pos = stop
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return nil, err
	}
	return blockmap.Append(out, hole(pos, end)), nil
}

func hole(from, to int64) blockmap.Extent {
	return blockmap.Extent{Offset: from, Length: to - from, State: blockmap.Hole | blockmap.Zero}
}
