package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
)

// overlayFile is what an overlay needs of its two files. Zero makes a range
// read as zeros and may free its space; ZeroFast does so unless zeros would have to
// be written, which is errors.ErrUnsupported.
type overlayFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
	Zero(off, n int64, punch bool) error
	ZeroFast(off, n int64, punch bool) error
}

// image is the read-only view of a backup.
type image interface {
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error)
}

// overlay is a writable layer over an image, in two files (FORMAT.md). Its
// methods may be called concurrently, except close.
//
// A block is in the overlay from its first write on and never leaves it. The
// first writer of a block holds the block's lock while it puts the whole block
// there, completed from the image, and sets its bit last: readers therefore
// need no lock, and writers of blocks that are there need none either.
type overlay struct {
	img  image
	size int64
	data overlayFile
	mapf overlayFile

	bits  []atomic.Uint64 // of all pages, in order
	dirty []atomic.Bool   // pages with bits that are not on disk
	locks [256]sync.Mutex // of block i: locks[i%256]

	flushing    sync.Mutex
	generations []uint64 // of the pages on disk
	broken      error    // a sync failed
}

const pageWords = pageBlocks / 64

// openOverlay reads the map, or makes it when fresh.
func openOverlay(img image, backup uuid.UUID, data, mapf overlayFile, fresh bool) (*overlay, error) {
	o := &overlay{img: img, size: img.Size(), data: data, mapf: mapf}
	pages := overlayPages(o.size)
	o.bits = make([]atomic.Uint64, pages*pageWords)
	o.dirty = make([]atomic.Bool, pages)
	o.generations = make([]uint64, pages)
	if fresh {
		return o, o.create(overlayHeader{Backup: backup, Size: o.size})
	}
	return o, o.load(backup)
}

func (o *overlay) create(h overlayHeader) error {
	if err := o.data.Truncate(o.size); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	if err := o.data.Sync(); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	if err := o.mapf.Truncate(slotOffset(int64(len(o.dirty)), 0)); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	if _, err := o.mapf.WriteAt(h.encode(), 0); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	if err := o.mapf.Sync(); err != nil {
		return fmt.Errorf("make overlay: %w", err)
	}
	return nil
}

func (o *overlay) load(backup uuid.UUID) error {
	p := make([]byte, 2*mapPage)
	if _, err := o.mapf.ReadAt(p[:mapPage], 0); err != nil {
		return fmt.Errorf("read the overlay's map: %w: %w", err, errOverlay)
	}
	h, err := decodeOverlayHeader(p[:mapPage])
	if err != nil {
		return err
	}
	if h.Backup != backup || h.Size != o.size {
		return fmt.Errorf("it lies over backup %s of %d bytes, not this one: %w", h.Backup, h.Size, errOverlay)
	}
	for n := range int64(len(o.dirty)) {
		if _, err := o.mapf.ReadAt(p, slotOffset(n, 0)); err != nil {
			return fmt.Errorf("read the overlay's map: %w: %w", err, errOverlay)
		}
		g, err := latestPage(p[:mapPage], p[mapPage:], uint32(n))
		if err != nil {
			return err
		}
		o.generations[n] = g.Generation
		for w := range int64(pageWords) {
			o.bits[n*pageWords+w].Store(binary.LittleEndian.Uint64(g.Bits[w*8:]))
		}
	}
	return nil
}

func (o *overlay) has(block int64) bool {
	n, i := block/pageBlocks, block%pageBlocks
	return o.bits[n*pageWords+i/64].Load()>>(i%64)&1 != 0
}

func (o *overlay) set(block int64) {
	n, i := block/pageBlocks, block%pageBlocks
	o.bits[n*pageWords+i/64].Or(1 << (i % 64))
	o.dirty[n].Store(true)
}

// span returns the first run of blocks in a range that are all in the overlay
// or all not, cut to the range.
func (o *overlay) span(off, n int64) (int64, bool) {
	block := off / overlayBlock
	has := o.has(block)
	end := (block + 1) * overlayBlock
	for end < off+n && o.has(end/overlayBlock) == has {
		end += overlayBlock
	}
	return min(end, off+n) - off, has
}

// readAt fills p.
func (o *overlay) readAt(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n, has := o.span(off, int64(len(p)))
		var err error
		if has {
			_, err = o.data.ReadAt(p[:n], off)
		} else {
			err = o.img.ReadAt(ctx, p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// change makes a range what write puts there. write is called for parts of the
// range in order; where blocks are new to the overlay, they are completed.
func (o *overlay) change(ctx context.Context, off, n int64, write func(off, n int64) error) error {
	for n > 0 {
		l, has := o.span(off, n)
		var err error
		if has {
			err = write(off, l)
		} else {
			l = min(l, overlayBlock-off%overlayBlock)
			err = o.enter(ctx, off, l, write)
		}
		if err != nil {
			return err
		}
		off, n = off+l, n-l
	}
	return nil
}

// enter brings one block into the overlay and changes a part of it.
func (o *overlay) enter(ctx context.Context, off, n int64, write func(off, n int64) error) error {
	block := off / overlayBlock
	l := &o.locks[block%int64(len(o.locks))]
	l.Lock()
	defer l.Unlock()
	if o.has(block) { // another writer was first
		return write(off, n)
	}
	start := block * overlayBlock
	size := min(overlayBlock, o.size-start)
	if n < size {
		p := make([]byte, size)
		if err := o.img.ReadAt(ctx, p, start); err != nil {
			return err
		}
		if _, err := o.data.WriteAt(p, start); err != nil {
			return err
		}
	}
	if err := write(off, n); err != nil {
		return err
	}
	o.set(block)
	return nil
}

func (o *overlay) writeAt(ctx context.Context, p []byte, off int64) error {
	return o.change(ctx, off, int64(len(p)), func(at, n int64) error {
		_, err := o.data.WriteAt(p[at-off:at-off+n], at)
		return err
	})
}

// zero makes a range zero, with fast only if that can be done without writing zeros.
// The space is freed: the overlay's file is sparse anyway.
func (o *overlay) zero(ctx context.Context, off, n int64, fast bool) error {
	zero := o.data.Zero
	if fast {
		zero = o.data.ZeroFast
	}
	return o.change(ctx, off, n, func(at, n int64) error { return zero(at, n, true) })
}

// flush makes everything that was written durable, data before map.
func (o *overlay) flush() error {
	o.flushing.Lock()
	defer o.flushing.Unlock()
	if o.broken != nil {
		return o.broken
	}
	var pages []*overlayPage
	for n := range o.dirty {
		if o.dirty[n].Swap(false) {
			pages = append(pages, o.page(n))
		}
	}
	if err := o.sync(pages); err != nil {
		o.broken = fmt.Errorf("flush overlay: %w", err)
		return o.broken
	}
	return nil
}

func (o *overlay) page(n int) *overlayPage {
	g := &overlayPage{Number: uint32(n), Generation: o.generations[n] + 1} //nolint:gosec // sizes are capped
	for w := range pageWords {
		binary.LittleEndian.PutUint64(g.Bits[w*8:], o.bits[n*pageWords+w].Load())
	}
	return g
}

func (o *overlay) sync(pages []*overlayPage) error {
	if err := o.data.Sync(); err != nil || len(pages) == 0 {
		return err
	}
	for _, g := range pages {
		if _, err := o.mapf.WriteAt(g.encode(), slotOffset(int64(g.Number), g.Generation%2)); err != nil {
			return err
		}
	}
	if err := o.mapf.Sync(); err != nil {
		return err
	}
	for _, g := range pages {
		o.generations[g.Number] = g.Generation
	}
	return nil
}

// maxDescribed bounds an answer about a range: an overlay may have every other block.
const maxDescribed = 1024

// extents describes a range: what is in the overlay is data.
func (o *overlay) extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	return o.describe(ctx, off, n, blockmap.Data, func(s blockmap.State) blockmap.State { return s })
}

// depths tells where the content of a range is: in the overlay, in the backup, or
// nowhere. A block that was trimmed or zeroed is in the overlay as well: it hides what
// the backup has there.
func (o *overlay) depths(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	return o.describe(ctx, off, n, blockmap.Top, func(s blockmap.State) blockmap.State {
		if s&blockmap.Hole != 0 {
			return blockmap.Nowhere
		}
		return blockmap.Beneath
	})
}

// describe gives what is in the overlay one state, and the rest what beneath makes of
// the backup's. It may stop early.
func (o *overlay) describe(ctx context.Context, off, n int64, own blockmap.State, beneath func(blockmap.State) blockmap.State) ([]blockmap.Extent, error) {
	var out []blockmap.Extent
	for n > 0 && len(out) < maxDescribed {
		l, has := o.span(off, n)
		if has {
			out = blockmap.Append(out, blockmap.Extent{Offset: off, Length: l, State: own})
			off, n = off+l, n-l
			continue
		}
		part, err := o.img.Extents(ctx, off, l)
		if err != nil {
			return nil, err
		}
		for _, e := range part {
			e.State = beneath(e.State)
			out = blockmap.Append(out, e)
		}
		l = blockmap.Total(part)
		if l == 0 { // an image that says nothing of a range would keep us here
			break
		}
		off, n = off+l, n-l
	}
	return out, nil
}

// close flushes and closes the files. The image stays open.
func (o *overlay) close() error {
	return errors.Join(o.flush(), o.data.Close(), o.mapf.Close())
}
