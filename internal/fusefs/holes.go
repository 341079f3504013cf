package fusefs

import (
	"context"
	"fmt"
	"sync"

	"github.com/cairnbackup/cairn/blockmap"
)

// Extents are asked for in windows: small enough that one answer stays small
// on a fragmented disk, doubled as long as there is nothing in them, so that a
// sparse image of many TiB takes few questions.
const (
	firstWindow = 64 << 20
	maxWindow   = 1 << 40
)

// run is a stretch of data or of zeros.
type run struct {
	off, end int64
	data     bool
}

// runsOf asks for the runs of one window. The result starts at off, has no
// gaps, alternates between data and zeros, and is not empty when off < size.
func runsOf(ctx context.Context, img Image, off, n int64) ([]run, error) {
	size := img.Size()
	n = min(n, size-off)
	if n <= 0 {
		return nil, nil
	}
	extents, err := img.Extents(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("ask for the extents at %d: %w", off, err)
	}
	var runs []run
	at := off
	for _, e := range extents {
		if e.Offset != at || e.Length <= 0 || e.Length > size-at {
			return nil, fmt.Errorf("ask for the extents at %d: an extent at %d of %d bytes follows one that ends at %d", off, e.Offset, e.Length, at)
		}
		data := e.State&(blockmap.Hole|blockmap.Zero) == 0
		at += e.Length
		if k := len(runs); k > 0 && runs[k-1].data == data {
			runs[k-1].end = at
		} else {
			runs = append(runs, run{off: e.Offset, end: at, data: data})
		}
	}
	if at == off {
		return nil, fmt.Errorf("ask for the extents at %d: none in the answer", off)
	}
	return runs, nil
}

// holeCache remembers the last window, because cp asks for the end of every
// run and then for the beginning of the next.
type holeCache struct {
	mu   sync.Mutex
	runs []run
}

// at returns the run that contains off, as far as it is known: more of the
// same kind may follow behind its end.
func (h *holeCache) at(ctx context.Context, img Image, off, window int64) (run, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, r := range h.runs {
		if r.off <= off && off < r.end {
			return r, nil
		}
	}
	runs, err := runsOf(ctx, img, off, window)
	if err != nil {
		return run{}, err
	}
	h.runs = runs
	return runs[0], nil
}

// seek returns the first offset at or behind off that is data (or a hole).
// There is a hole at the end of every file; ok is false when no data follows.
func (h *holeCache) seek(ctx context.Context, img Image, off int64, data bool) (at int64, ok bool, err error) {
	size := img.Size()
	window := int64(firstWindow)
	for off < size {
		r, err := h.at(ctx, img, off, window)
		if err != nil {
			return 0, false, err
		}
		if r.data == data {
			return off, true, nil
		}
		off = r.end
		window = min(window*2, maxWindow)
	}
	return size, !data, nil
}

// allocated counts the bytes of data in an image.
func allocated(ctx context.Context, img Image) (int64, error) {
	var sum int64
	window := int64(firstWindow)
	for off := int64(0); off < img.Size(); {
		runs, err := runsOf(ctx, img, off, window)
		if err != nil {
			return 0, err
		}
		for _, r := range runs {
			if r.data {
				sum += r.end - r.off
			}
		}
		off = runs[len(runs)-1].end
		if len(runs) == 1 {
			window = min(window*2, maxWindow)
		} else {
			window = firstWindow
		}
	}
	return sum, nil
}
