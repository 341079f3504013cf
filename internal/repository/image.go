package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// Image is the content of one backup, read-only. Its methods may be called
// concurrently. It has to be closed.
type Image struct {
	r      *Repository
	backup Backup
	d      *chunk.Domain
	tree   *manifest.Tree
	leaves *lru[int64, *manifest.Leaf]
	ahead  *readAhead

	sealers sealerCache
}

// cachedLeaves is how many decoded leaves an image keeps: 8 MiB of a volume and
// 8 KiB of memory each.
const cachedLeaves = 64

// Image opens a backup for reading by its ID. One that is unconfirmed can be
// read as far as its data is there; one that was deleted cannot.
func (r *Repository) Image(ctx context.Context, id string) (*Image, error) {
	st, err := r.find(ctx, id)
	if err != nil {
		return nil, err
	}
	rt := st.root
	if rt.top == nil {
		names, err := r.union(ctx, rt.name)
		if err != nil {
			return nil, err
		}
		if rt, err = r.readRoot(ctx, names[rt.name], rt.name); err != nil {
			return nil, err
		}
	}
	return r.image(rt, st.state) //nolint:contextcheck // its read-ahead ends with Close
}

// image opens a root record that was read with its tree.
func (r *Repository) image(rt *root, state State) (*Image, error) {
	d, err := r.domain(rt.rec.Project)
	if err != nil {
		return nil, err
	}
	tree, err := manifest.Open(rt.geometry(), rt.top, r.loader(d))
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w: %w", rt.rec.BackupID, ErrDamaged, err)
	}
	i := &Image{
		r: r, backup: rt.backup(state), d: d, tree: tree,
		leaves: newLRU[int64, *manifest.Leaf](cachedLeaves),
	}
	i.sealers.d = d
	i.ahead = newReadAhead(i)
	return i, nil
}

// Backup returns what the image is of.
func (i *Image) Backup() Backup { return i.backup }

// Size returns the volume's size in bytes.
func (i *Image) Size() int64 { return i.tree.Geometry().Size }

// Geometry returns the volume's geometry.
func (i *Image) Geometry() blockmap.Geometry { return i.tree.Geometry() }

// Tree returns the backup's manifest.
func (i *Image) Tree() *manifest.Tree { return i.tree }

// Extents returns what of the n bytes from off is data and what is a hole that
// reads as zeros: in order, without gaps, to the end of the range or of the
// volume.
func (i *Image) Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	exts, err := i.tree.Extents(ctx, off, n)
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", i.backup.ID, err)
	}
	return exts, nil
}

// Differs reports whether a block's content is not plain, without reading it:
// by the chunk's ID. plain is the whole block, for the last one as much as the
// volume has.
func (i *Image) Differs(ctx context.Context, block int64, plain []byte) (bool, error) {
	g := i.tree.Geometry()
	if block < 0 || block >= g.Blocks() || len(plain) != g.BlockLen(block) {
		return false, fmt.Errorf("compare %d bytes with block %d of %d: %w", len(plain), block, g.Blocks(), ErrInvalid)
	}
	ref, ok, err := i.lookup(ctx, block)
	if err != nil {
		return false, err
	}
	if !ok {
		return !isZero(plain), nil
	}
	if i.d.ID(chunk.Data, plain) == ref.ID {
		return false, nil
	}
	if len(plain) == g.BlockSize {
		return true, nil
	}
	// The last block's chunk may be longer or shorter than the block, when the
	// volume was resized: then only the bytes tell.
	have := make([]byte, len(plain))
	if err := i.ReadAt(ctx, have, g.Offset(block)); err != nil {
		return false, err
	}
	return string(have) != string(plain), nil
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// Close ends the read-ahead.
func (i *Image) Close() error {
	i.ahead.close()
	return nil
}

func (i *Image) leaf(ctx context.Context, n int64) (*manifest.Leaf, error) {
	if l, ok := i.leaves.get(n); ok {
		return l, nil
	}
	l, err := i.tree.Leaf(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("backup %s: %w", i.backup.ID, err)
	}
	i.leaves.put(n, l, 1)
	return l, nil
}

func (i *Image) lookup(ctx context.Context, block int64) (chunk.Ref, bool, error) {
	l, err := i.leaf(ctx, block/manifest.LeafBlocks)
	if err != nil {
		return chunk.Ref{}, false, err
	}
	ref, ok := l.At(int(block % manifest.LeafBlocks))
	return ref, ok, nil
}

// piece is the part of a read that lies in one block.
type piece struct {
	ref chunk.Ref
	p   []byte // where it goes
	off int    // of p in the block

	home *chunk.Location // where the manifest says that it is, if it was moved since
}

// known is the place under which the caches know the chunk: the manifest's.
func (c piece) known() chunk.Location {
	if c.home != nil {
		return *c.home
	}
	return c.ref.Location
}

// whole reports whether the piece takes all that the chunk can hold, so that it
// can be opened in place.
func (c piece) whole() bool { return c.off == 0 && len(c.p) == chunk.MaxPlain }

// fill copies a block's plaintext to where the piece wants it.
func (c piece) fill(plain []byte) {
	n := 0
	if c.off < len(plain) {
		n = copy(c.p, plain[c.off:])
	}
	clear(c.p[n:]) // a chunk shorter than its block is followed by zeros
}

// ReadAt fills p with the volume's bytes at off. The range must lie inside the
// volume. On an error p's content is undefined; ErrDamaged says that the stores
// do not have the data any more.
func (i *Image) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off > i.Size() || int64(len(p)) > i.Size()-off {
		return fmt.Errorf("read %d bytes at %d of backup %s, which has %d: %w", len(p), off, i.backup.ID, i.Size(), ErrInvalid)
	}
	if len(p) == 0 {
		return nil
	}
	i.ahead.note(off, int64(len(p)))
	pieces, err := i.plan(ctx, p, off)
	if err != nil {
		return err
	}
	missing := pieces[:0]
	for _, c := range pieces {
		plain, ok, err := i.ahead.wait(ctx, c.ref)
		if err != nil {
			return err
		}
		if ok {
			c.fill(plain)
			continue
		}
		missing = append(missing, c)
	}
	return i.readPieces(ctx, missing, len(p) < 1<<20)
}

// plan zeroes the holes of a range and returns the pieces that are data.
func (i *Image) plan(ctx context.Context, p []byte, off int64) ([]piece, error) {
	g := i.tree.Geometry()
	first, count := g.Span(off, int64(len(p)))
	pieces := make([]piece, 0, count)
	for block := first; block < first+count; block++ {
		from := max(off, g.Offset(block))
		to := min(off+int64(len(p)), g.Offset(block)+int64(g.BlockSize))
		part := p[from-off : to-off : to-off]
		ref, ok, err := i.lookup(ctx, block)
		if err != nil {
			return nil, err
		}
		if !ok {
			clear(part)
			continue
		}
		if err := checkLocation(ref.Location); err != nil {
			return nil, err
		}
		pieces = append(pieces, piece{ref: ref, p: part, off: int(from - g.Offset(block))})
	}
	return pieces, nil
}

// Runs: pieces whose sealed bytes are near each other in one pack are read with
// one range per shard.
const (
	maxRun    = 1 << 20  // bytes of container; two 512 KiB rows of a 4+2 pack
	maxRunGap = 64 << 10 // bytes that are read in vain rather than asked around
)

type run struct {
	pack     chunk.PackID
	from, to int64
	pieces   []piece
}

// runs groups pieces in their order: sequential data lies in sequence.
func runs(pieces []piece) []run {
	var out []run
	for _, c := range pieces {
		from, to := int64(c.ref.Offset), int64(c.ref.Offset)+int64(c.ref.Length)
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.pack == c.ref.Pack && from >= last.from && from <= last.to+maxRunGap && to-last.from <= maxRun {
				last.to = max(last.to, to)
				last.pieces = append(last.pieces, c)
				continue
			}
		}
		out = append(out, run{c.ref.Pack, from, to, []piece{c}})
	}
	return out
}

// readersPerImage bounds what one call does at once.
const readersPerImage = 4

// readPieces reads pieces from the stores; keep puts what was opened into the
// cache.
func (i *Image) readPieces(ctx context.Context, pieces []piece, keep bool) error {
	rs := runs(pieces)
	switch len(rs) {
	case 0:
		return nil
	case 1:
		return i.readRun(ctx, rs[0], keep)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readersPerImage)
	for _, r := range rs {
		group.Go(func() error { return i.readRun(ctx, r, keep) })
	}
	return group.Wait() //nolint:wrapcheck // readRun names what failed
}

// sealedBuffers are for ranges of containers.
var sealedBuffers = sync.Pool{New: func() any { b := make([]byte, 0, maxRun); return &b }}

// readRun reads pieces of one pack, wherever it went.
func (i *Image) readRun(ctx context.Context, r run, keep bool) error {
	return i.r.follow(ctx, r.pack,
		func() error { return i.readRunHere(ctx, r, keep) },
		func(f *forwarding) error { return i.readMoved(ctx, f, r, keep) })
}

// readMoved reads pieces of a pack that was compacted at their new places.
func (i *Image) readMoved(ctx context.Context, f *forwarding, r run, keep bool) error {
	pieces := make([]piece, len(r.pieces))
	for n, c := range r.pieces {
		to, err := f.find(chunk.Data, c.ref.ID)
		if err != nil {
			return fmt.Errorf("backup %s: %w", i.backup.ID, err)
		}
		home := c.ref.Location
		c.home, c.ref.Location = &home, to
		pieces[n] = c
	}
	for _, moved := range runs(pieces) {
		if err := i.readRunHere(ctx, moved, keep); err != nil {
			return err
		}
	}
	return nil
}

// readRunHere reads pieces from the very pack that they name.
func (i *Image) readRunHere(ctx context.Context, r run, keep bool) error {
	buf, ok := sealedBuffers.Get().(*[]byte)
	if !ok {
		return errors.New("buffer pool holds something else")
	}
	defer sealedBuffers.Put(buf)
	n := int(r.to - r.from)
	if cap(*buf) < n {
		*buf = make([]byte, 0, n)
	}
	sealed := (*buf)[:n]
	if err := i.r.readContainer(ctx, r.pack, sealed, r.from); err != nil {
		return fmt.Errorf("backup %s: %w", i.backup.ID, err)
	}
	if len(r.pieces) <= openTogether {
		return i.openPieces(r, r.pieces, sealed, keep)
	}
	group, ctx := errgroup.WithContext(ctx)
	for some := range slices.Chunk(r.pieces, openTogether) {
		group.Go(func() error {
			if ctx.Err() != nil {
				return fmt.Errorf("backup %s: %w", i.backup.ID, ctx.Err())
			}
			return i.openPieces(r, some, sealed, keep)
		})
	}
	return group.Wait() //nolint:wrapcheck // openPieces names what failed
}

// openTogether is how many pieces of a run one goroutine opens: opening costs
// many times what reading does, so that a single reader needs all cores.
const openTogether = 4

// openPieces opens some pieces of a run, whose sealed bytes are given.
func (i *Image) openPieces(r run, pieces []piece, sealed []byte, keep bool) error {
	for _, c := range pieces {
		at := int64(c.ref.Offset) - r.from
		if err := i.openPiece(c, sealed[at:at+int64(c.ref.Length)], keep); err != nil {
			return fmt.Errorf("backup %s: %w", i.backup.ID, err)
		}
	}
	return nil
}

// openPiece opens one sealed chunk into its place.
func (i *Image) openPiece(c piece, sealed []byte, keep bool) error {
	s, err := i.sealers.get(c.ref.Pack)
	if err != nil {
		return err
	}
	var dst []byte
	if inPlace := c.whole() && !keep; inPlace {
		dst = c.p[:0]
	} else {
		dst = make([]byte, 0, chunk.MaxPlain)
	}
	plain, err := s.Open(dst, c.ref.Offset, chunk.Data, c.ref.ID, sealed)
	if err != nil {
		return fmt.Errorf("%w: pack %s: %w", ErrDamaged, c.ref.Pack, err)
	}
	if len(c.p) > 0 && &plain[0] == &c.p[0] {
		clear(c.p[len(plain):])
		return nil
	}
	if keep {
		i.r.cells.put(c.known(), plain, int64(cap(plain)))
	}
	c.fill(plain)
	return nil
}

// sealerCache keeps the sealers of the packs read last: making one costs a key
// schedule.
type sealerCache struct {
	d *chunk.Domain

	mu   sync.Mutex
	last map[chunk.PackID]*chunk.Sealer
}

const maxSealers = 256

func (s *sealerCache) get(id chunk.PackID) (*chunk.Sealer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.last[id]; c != nil {
		return c, nil
	}
	c, err := s.d.Sealer(id)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", id, err)
	}
	if s.last == nil || len(s.last) >= maxSealers {
		s.last = make(map[chunk.PackID]*chunk.Sealer)
	}
	s.last[id] = c
	return c, nil
}
