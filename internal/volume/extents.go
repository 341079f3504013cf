package volume

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/cairnbackup/cairn/blockmap"
)

// maxExtents bounds one answer.
const maxExtents = 8192

// Extents tells where the volume has data and where holes, which read as zeros,
// from off on, in order and without gaps: at least one and at most n bytes in all;
// it may stop early. A concurrent write may or may not show.
func (v *Volume) Extents(off, n int64) ([]blockmap.Extent, error) {
	if size := v.size.Load(); off < 0 || n <= 0 || off >= size || n > size-off {
		return nil, fmt.Errorf("extents of %d bytes at %d of volume %s of %d bytes: %w", n, off, v.name, size, syscall.EINVAL)
	}
	return v.liveExtents(off, n)
}

func (v *Volume) liveExtents(off, n int64) ([]blockmap.Extent, error) {
	const hole = blockmap.Hole | blockmap.Zero
	var l []blockmap.Extent
	end := off + n
	for at := off; at < end && len(l) < maxExtents; {
		from, to, err := v.data.NextData(at)
		if errors.Is(err, io.EOF) {
			from, to = end, end
		} else if err != nil {
			return nil, fmt.Errorf("extents of volume %s at %d: %w", v.name, at, err)
		}
		from, to = min(max(from, at), end), min(to, end)
		if from > at {
			l = blockmap.Append(l, blockmap.Extent{Offset: at, Length: from - at, State: hole})
		}
		if to > from {
			l = blockmap.Append(l, blockmap.Extent{Offset: from, Length: to - from, State: blockmap.Data})
		}
		if to <= at { // nothing can be said about at: call it data rather than look for ever
			l = blockmap.Append(l, blockmap.Extent{Offset: at, Length: end - at, State: blockmap.Data})
			to = end
		}
		at = to
	}
	return l, nil
}
