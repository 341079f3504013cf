package pack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Stat returns the length of the container and which shards have no genuine
// header; it reads the headers of all shards. The error is a *LostError when
// none has.
func (c *Coder) Stat(ctx context.Context, f Fetcher, id chunk.PackID) (int64, Report, error) {
	s := c.newStripes(f, id, cellRange{})
	var length int64
	for shard := range c.g.Total() {
		n, err := c.fetchHeader(ctx, f, id, shard)
		if err != nil {
			s.fault(shard, err)
			continue
		}
		length = n
	}
	switch {
	case ctx.Err() != nil:
		return 0, Report{}, fmt.Errorf("read pack %s: %w", id, ctx.Err())
	case length == 0:
		return 0, s.report(), &LostError{Pack: id, Need: 1, Bad: s.report().Bad}
	}
	return length, s.report(), nil
}

// Verify reads the whole object of one shard and checks every byte of it.
// The error is ErrCorrupt, ErrVersion, the Fetcher's or the context's.
func (c *Coder) Verify(ctx context.Context, f Fetcher, id chunk.PackID, shard int) error {
	if shard < 0 || shard >= c.g.Total() {
		return fmt.Errorf("pack %s: there is no shard %d with geometry %s", id, shard, c.g)
	}
	fail := func(err error) error { return fmt.Errorf("pack %s, shard %d: %w", id, shard, err) }
	b, err := f.Fetch(ctx, shard, 0, -1)
	if err != nil {
		return fail(err)
	}
	length, err := c.decodeHeader(b, id, shard)
	if err != nil {
		return fail(err)
	}
	if want := c.g.ShardSize(length, shard); int64(len(b)) != want {
		return fail(fmt.Errorf("object of %d bytes instead of %d: %w", len(b), want, ErrCorrupt))
	}
	all := cellRange{0, c.g.cells(length, shard)}
	s := c.newStripes(inMemory(b), id, all)
	if !all.empty() {
		s.land(s.fly(ctx, shard, all))
	}
	if s.bad[shard] != nil {
		return fail(s.bad[shard])
	}
	return nil
}

// inMemory is the Fetcher of one shard that was read already.
type inMemory []byte

// Fetch returns a part of it.
func (b inMemory) Fetch(_ context.Context, _ int, off, n int64) ([]byte, error) {
	if off+n > int64(len(b)) {
		return nil, errors.New("shard ends before")
	}
	return b[off : off+n], nil
}

// Patience is of no use here.
func (inMemory) Patience(int64) time.Duration { return 0 }

// Rebuild computes the missing shards of a pack from k others and returns
// their complete objects, in the order of missing, equal byte for byte to
// those that Encode made. Shards named missing are not read. Other shards
// that turn out bad are worked around while k are good, and reported.
func (c *Coder) Rebuild(ctx context.Context, f Fetcher, id chunk.PackID, missing []int) ([][]byte, Report, error) {
	gone := make([]bool, c.g.Total())
	for _, shard := range missing {
		if shard < 0 || shard >= c.g.Total() {
			return nil, Report{}, fmt.Errorf("pack %s: there is no shard %d with geometry %s", id, shard, c.g)
		}
		gone[shard] = true
	}
	probe := c.newStripes(f, id, cellRange{})
	for shard, is := range gone {
		if is {
			probe.fault(shard, errMissing)
		}
	}
	length, err := probe.length(ctx)
	if err != nil {
		return nil, probe.report(), err
	}
	all := cellRange{0, c.g.cells(length, 0)}
	s := c.newStripes(f, id, all)
	wanted := make([]cellRange, c.g.Total())
	for shard, is := range gone {
		if !is {
			continue
		}
		s.bad[shard] = errMissing
		wanted[shard] = all
		for cell := range all.end {
			s.tried[s.index(shard, cell)] = true
		}
	}
	defer s.drain()
	if err := s.complete(ctx, wanted, true); err != nil {
		return nil, s.report(), err
	}
	out := make([][]byte, len(missing))
	t := borrow(&c.cellTags)
	defer c.cellTags.Put(t)
	for i, shard := range missing {
		size := c.g.ShardSize(length, shard)
		b := c.appendHeader(aligned(nil, size)[:0], id, shard, length)
		for cell := range c.g.cells(length, shard) {
			b = append(b, s.cell(shard, cell)...)
			b = append(b, t.tag(s.cell(shard, cell), id, shard, cell)...)
		}
		out[i] = b
	}
	return out, s.report(), nil
}

var errMissing = errors.New("shard is missing")
