package blockmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// The bits of a segment are in a file of pages. Within a segment bits are only
// ever set, so pages are written in place: each sector, torn page or not, holds
// the old bits or the new ones, and both hold all that was durable before. All
// pages are written when the file is made, so that there is room for them, and
// a sector that was lost is told from one that was never written.

const (
	bitsPrefix    = "segment-"
	pagesPerWrite = 64
	pagesPerGap   = 4 // pages that are written again rather than skipped
)

func bitsName(dir string, id uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%s%016x", bitsPrefix, id))
}

func pagesOf(blocks int64) int64 { return (blocks + pageBlocks - 1) / pageBlocks }

// sumOf is the checksum of all bits, made of those of the pages.
func sumOf(pageSums []uint32) uint32 {
	sum := uint32(0)
	var b [4]byte
	for _, s := range pageSums {
		binary.BigEndian.PutUint32(b[:], s)
		sum = crc32.Update(sum, castagnoli, b[:])
	}
	return sum
}

// bitsFile is an open file of bits.
type bitsFile struct {
	file vfs.File
	seal pageSeal
	sums []uint32 // of the pages' data on disk
	gen  uint64   // of the newest write, the sequence number of its sectors
	buf  []byte
	data []byte
}

func newBitsFile(volume [16]byte, id uint64, blocks int64) *bitsFile {
	return &bitsFile{
		seal: pageSeal{volume: volume, kind: kindBits, owner: id},
		buf:  make([]byte, min(pagesOf(blocks), pagesPerWrite)*pageSize),
		data: make([]byte, pageData),
	}
}

// createBits makes a durable file of the bits in words, which may be short. Its
// directory is synced, too. On an error nothing is left but perhaps the file.
func createBits(fsys vfs.FS, dir string, volume [16]byte, id uint64, words []uint64, blocks int64) (*bitsFile, error) {
	b := newBitsFile(volume, id, blocks)
	f, err := fsys.OpenFile(bitsName(dir, id), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create a segment of the change tracker: %w", err)
	}
	b.file = f
	pages := pagesOf(blocks)
	b.sums = make([]uint32, pages)
	err = b.write(words, 0, pages)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = fsys.SyncDir(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("create a segment of the change tracker: %w", errors.Join(err, f.Close()))
	}
	return b, nil
}

// write writes the pages from first to before end, without making them durable.
// words may change meanwhile.
func (b *bitsFile) write(words []uint64, first, end int64) error {
	b.gen++
	for first < end {
		n := min(end-first, pagesPerWrite)
		for i := range n {
			b.snapshot(words, first+i)
			b.sums[first+i] = crc32.Checksum(b.data, castagnoli)
			b.seal.encode(b.buf[i*pageSize:(i+1)*pageSize], first+i, b.gen, b.data)
		}
		if _, err := b.file.WriteAt(b.buf[:n*pageSize], first*pageSize); err != nil {
			return fmt.Errorf("write changed bits: %w", err)
		}
		first += n
	}
	return nil
}

// snapshot copies the bits of a page to b.data.
func (b *bitsFile) snapshot(words []uint64, page int64) {
	first := page * pageWords
	for i := range int64(pageWords) {
		w := uint64(0)
		if first+i < int64(len(words)) {
			w = atomic.LoadUint64(&words[first+i])
		}
		binary.LittleEndian.PutUint64(b.data[i*8:], w)
	}
}

// grow adds pages without bits, durably, so that there are enough for blocks.
func (b *bitsFile) grow(blocks int64) error {
	first, end := int64(len(b.sums)), pagesOf(blocks)
	if first >= end {
		return nil
	}
	b.sums = append(b.sums, make([]uint32, end-first)...)
	b.buf = make([]byte, min(end, pagesPerWrite)*pageSize)
	err := b.write(nil, first, end)
	if err == nil {
		err = b.file.Sync()
	}
	if err != nil {
		b.sums = b.sums[:first]
		return fmt.Errorf("extend the changed bits: %w", err)
	}
	return nil
}

// flush makes pages, in ascending order, durable as words are at some moment
// during the call, and returns how many it wrote.
func (b *bitsFile) flush(words []uint64, pages []int64) (int64, error) {
	if len(pages) == 0 {
		return 0, nil
	}
	var n int64
	for i := 0; i < len(pages); {
		j := i + 1
		for j < len(pages) && pages[j]-pages[j-1] <= pagesPerGap {
			j++
		}
		if err := b.write(words, pages[i], pages[j-1]+1); err != nil {
			return n, err
		}
		n += pages[j-1] + 1 - pages[i]
		i = j
	}
	if err := b.file.Sync(); err != nil {
		return n, fmt.Errorf("write changed bits: %w", err)
	}
	return n, nil
}

func (b *bitsFile) close() error {
	if err := b.file.Close(); err != nil {
		return fmt.Errorf("close changed bits: %w", err)
	}
	return nil
}

// bitsDamage is what reading bits came upon.
type bitsDamage struct {
	pages   []int64 // with bad sectors, whose blocks count as written
	missing error   // why the file could not be read to its end
}

// load reads the first blocks of a file and sets their bits in dst, which has
// room for them. The bits of a bad sector are all set.
func (b *bitsFile) load(dst *Bitmap, blocks int64) bitsDamage {
	var d bitsDamage
	pages := pagesOf(blocks)
	b.sums = make([]uint32, pages)
	for first := int64(0); first < pages; first += pagesPerWrite {
		n := min(pages-first, pagesPerWrite)
		buf := b.buf[:n*pageSize]
		if k, err := b.file.ReadAt(buf, first*pageSize); k < len(buf) {
			if errors.Is(err, io.EOF) {
				err = errors.New("it is too short")
			}
			d.missing = err
			return d
		}
		for i := range n {
			seqs, bad := b.seal.decode(b.data, buf[i*pageSize:(i+1)*pageSize], first+i)
			b.sums[first+i] = crc32.Checksum(b.data, castagnoli)
			b.orPage(dst, blocks, first+i, bad)
			if bad != 0 {
				d.pages = append(d.pages, first+i)
				continue
			}
			for _, q := range seqs {
				b.gen = max(b.gen, q)
			}
		}
	}
	return d
}

// orPage sets the bits of the page in b.data, and all bits of bad sectors.
func (b *bitsFile) orPage(dst *Bitmap, blocks, page int64, bad uint8) {
	for i := range int64(pageSectors) {
		if bad&(1<<i) != 0 {
			clear(b.data[i*sectorData : (i+1)*sectorData])
			first := page*pageBlocks + i*sectorBlocks
			dst.Set(first, min(sectorBlocks, blocks-first))
		}
	}
	base := page * pageWords
	for i := range int64(pageWords) {
		if base+i >= int64(len(dst.words)) || (base+i)<<6 >= blocks {
			return
		}
		w := binary.LittleEndian.Uint64(b.data[i*8:])
		dst.words[base+i] |= w & wordMask(base+i, 0, blocks)
	}
}

// closedBits are the bits of a closed segment, before they are read. The file is
// open, so that they can be read even if the segment is dropped meanwhile.
type closedBits struct {
	volume [16]byte
	seg    segment
	file   vfs.File
	doubt  string // why there is no file
}

func openClosed(fsys vfs.FS, dir string, volume [16]byte, s segment) closedBits {
	c := closedBits{volume: volume, seg: s, doubt: s.doubt}
	if c.doubt != "" {
		return c
	}
	var err error
	if c.file, err = fsys.OpenFile(bitsName(dir, s.id), os.O_RDONLY, 0); err != nil {
		c.doubt = c.unreadable(err)
	}
	return c
}

// read sets the bits in dst. When the file cannot be trusted it returns why, and
// the bits of all blocks are set.
func (c closedBits) read(dst *Bitmap) (doubt string, damaged int64) {
	doubt = c.doubt
	if doubt == "" {
		b := newBitsFile(c.volume, c.seg.id, c.seg.blocks)
		b.file = c.file
		d := b.load(dst, c.seg.blocks)
		damaged = int64(len(d.pages))
		switch {
		case d.missing != nil:
			doubt = c.unreadable(d.missing)
		case damaged == 0 && sumOf(b.sums) != c.seg.sum:
			doubt = fmt.Sprintf("the record of changes %s is not what was written", c.name())
		}
	}
	if doubt != "" {
		dst.Set(0, c.seg.blocks)
		return doubt, 0
	}
	return "", damaged
}

func (c closedBits) unreadable(err error) string {
	return fmt.Sprintf("the record of changes %s cannot be read: %v", c.name(), err)
}

func (c closedBits) name() string { return filepath.Base(bitsName("", c.seg.id)) }

func (c closedBits) close() {
	if c.file != nil {
		_ = c.file.Close() // It was only read.
	}
}

// readBits reads a closed segment at once.
func readBits(fsys vfs.FS, dir string, volume [16]byte, s segment, dst *Bitmap) (doubt string, damaged int64) {
	c := openClosed(fsys, dir, volume, s)
	defer c.close()
	return c.read(dst)
}
