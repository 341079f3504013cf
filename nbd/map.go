package nbd

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/blockmap"
)

const (
	// maxMap bounds what Map collects.
	maxMap = 1 << 24
	// maxMapRange is the most that one request of Map is about, where the header
	// has 32 bits for it: what those can say, in whole MiB.
	maxMapRange = 1<<32 - 1<<20
	// mapPending is how many requests Map has on their way: where a large volume is
	// many requests, waiting for each alone would take its size and not what is on
	// it.
	mapPending = 16
)

// Map returns what nbdContext says of exactly the range: extents in order and
// without gaps, neighbors of one state joined. nbdContext must be one of
// Contexts, else the error wraps errors.ErrUnsupported. A range of more than 16
// Mi extents is refused: ask for it in parts.
func (c *Client) Map(ctx context.Context, nbdContext string, off, n int64) ([]blockmap.Extent, error) {
	if !c.session.has(nbdContext) {
		return nil, c.unsupported("the metadata context " + nbdContext)
	}
	most := int64(maxMapRange)
	if c.session.framing == extendedHeaders {
		most = math.MaxInt64
	}
	var parts []*[]blockmap.Extent // in order, one for each request
	var room atomic.Int64
	room.Store(maxMap)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(mapPending)
	err := c.each("map", off, n, most, func(at, n int64) error {
		part := new([]blockmap.Extent)
		parts = append(parts, part)
		group.Go(func() (err error) {
			if *part, err = c.status(gctx, nbdContext, at, n, &room); err != nil {
				err = fmt.Errorf("nbd: map %d bytes at %d: %w", n, at, err)
			}
			return err
		})
		return nil
	})
	if err = cmp.Or(err, group.Wait()); err != nil {
		return nil, err //nolint:wrapcheck // wrapped where it arose
	}
	var found []blockmap.Extent
	for _, part := range parts {
		for _, e := range *part {
			found = blockmap.Append(found, e)
		}
	}
	return found, nil
}

// status is Map for a range that one request can name, if one answer is enough:
// it goes on where that ends. What it finds is taken off the room.
func (c *Client) status(ctx context.Context, nbdContext string, at, n int64, room *atomic.Int64) ([]blockmap.Extent, error) {
	var found []blockmap.Extent
	for end := at + n; at < end; {
		if room.Load() <= 0 {
			return nil, fmt.Errorf("more than %d extents: ask for a smaller range", maxMap)
		}
		k := &call{command: cmdBlockStatus, off: at, n: end - at, context: nbdContext, room: room}
		if err := c.do(ctx, k); err != nil {
			return nil, err
		}
		for _, e := range blockmap.Clip(k.extents, at, end-at) {
			found = blockmap.Append(found, e)
			at = e.End() // a status has at least one extent, so this moves on
		}
	}
	return found, nil
}
