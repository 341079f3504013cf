package volume

import (
	"fmt"
	"hash/crc32"

	"github.com/cairnbackup/cairn/blockmap"
)

// load reads the record at a sector and proves that it is one of the block, or of
// pages of it. The content is p.content(); p.buf goes back to the pool with p.free.
func (l *preLog) load(sector uint32, block int64, part bool) (p preimage, err error) {
	off := int64(sector) * sectorSize
	p.buf = newRecordBuf()
	defer func() {
		if err != nil {
			p.free()
		}
	}()
	// A record of zeros may be the last thing in the file, so that less than a whole buffer is there.
	room := int(min(int64(len(p.buf)), l.end.Load()-off))
	n := room
	if part { // most are of one page
		n = min(n, sectorSize+pageSize)
	}
	if n < sectorSize {
		return p, fmt.Errorf("%w: the preimage of block %d lies beyond the end of its log", ErrDamaged, block)
	}
	if err = l.readAt(p.buf[:n], off); err != nil {
		return p, fmt.Errorf("read the preimage of block %d: %w", block, err)
	}
	h, err := decodeRecordHeader(p.buf[:sectorSize], l.volume, l.epoch, off)
	if err != nil {
		return p, err
	}
	p.block, p.part, p.page, p.length, p.zeros, p.crc = h.block, h.part, h.page, h.length, h.zeros, h.crc
	if end := p.stored(); n < end && end <= room {
		if err = l.readAt(p.buf[n:end], off+int64(n)); err != nil {
			return p, fmt.Errorf("read the preimage of block %d: %w", block, err)
		}
	}
	switch {
	case p.block != block || p.part != part:
		return p, fmt.Errorf("%w: a preimage of block %d is where that of block %d should be", ErrDamaged, p.block, block)
	case p.stored() > room:
		return p, fmt.Errorf("%w: the preimage of block %d is cut off", ErrDamaged, block)
	case p.zeros:
		clear(p.content())
	}
	if crc32.Checksum(p.content(), castagnoli) != p.crc {
		return p, fmt.Errorf("%w: the preimage of block %d fails its checksum", ErrDamaged, block)
	}
	return p, nil
}

// readAt reads from the file, or from what is still to be written to it.
func (l *preLog) readAt(p []byte, off int64) error {
	n := len(p)
	if l.tail.has(off, n) {
		l.mu.Lock()
		n = l.tail.readAt(p, off)
		l.mu.Unlock()
	}
	if n == 0 {
		return nil
	}
	_, err := l.f.ReadAt(p[:n], off)
	return err
}

// copyTo copies pages to where they belong in dst, which begins at off of the volume.
func (p *preimage) copyTo(pages pageSet, dst []byte, off int64) error {
	at := p.block*blockmap.DefaultBlockSize - off // of the block, in dst
	for pages != 0 {
		first, end := pages.first()
		pages &^= pageRun(first, end)
		from, to := max(at+int64(first*pageSize), 0), min(at+int64(end*pageSize), int64(len(dst)))
		if from >= to {
			continue
		}
		has := at + int64(p.page*pageSize)
		if from < has || to > has+int64(p.length) {
			return fmt.Errorf("%w: the preimage of block %d is shorter than the block", ErrDamaged, p.block)
		}
		copy(dst[from:to], p.content()[from-has:])
	}
	return nil
}

func (p *preimage) free() {
	if p.buf != nil {
		recordBufs.Put(p.buf)
		p.buf = nil
	}
}
