package blockmap

import (
	"encoding/binary"
	"hash/crc32"
)

// The tracker's bits and activity log are kept in pages of eight sectors, each
// of which proves itself: a disk writes a sector whole or not at all, so a page
// that a power failure tore is a mixture of good sectors, and a sector that is
// not good was damaged. That difference decides between "normal" and "distrust".
const (
	pageSize      = 4096
	pageSectors   = 8
	sectorSize    = 512
	sectorData    = 500
	pageData      = pageSectors * sectorData
	sectorBlocks  = sectorData * 8 // blocks whose bits are in a sector
	pageBlocks    = pageData * 8
	pageWords     = pageData / 8
	sequenceAt    = sectorData
	sectorCheckAt = sectorData + 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Kinds of pages.
const (
	kindBits byte = 1
	kindLog  byte = 2
)

// pageSeal binds pages to the volume, the kind and, for bits, the segment that
// they belong to, so that a page of anything else is not good.
type pageSeal struct {
	volume [16]byte
	kind   byte
	owner  uint64
}

// check returns the checksum of the sector with the number n in its file.
func (s pageSeal) check(sector []byte, n int64) uint32 {
	var context [33]byte
	copy(context[:], s.volume[:])
	context[16] = s.kind
	binary.BigEndian.PutUint64(context[17:], s.owner)
	binary.BigEndian.PutUint64(context[25:], uint64(n)) //nolint:gosec // A pattern of bits.
	return crc32.Update(crc32.Checksum(context[:], castagnoli), castagnoli, sector[:sectorCheckAt])
}

// encode writes the page with the number page to dst: data, which is pageData
// long, and a sequence number.
func (s pageSeal) encode(dst []byte, page int64, seq uint64, data []byte) {
	for i := range pageSectors {
		sector := dst[i*sectorSize : (i+1)*sectorSize]
		copy(sector[:sectorData], data[i*sectorData:])
		binary.BigEndian.PutUint64(sector[sequenceAt:], seq)
		binary.BigEndian.PutUint32(sector[sectorCheckAt:], s.check(sector, page*pageSectors+int64(i)))
	}
}

// decode copies what a page holds to data and returns the sequence numbers of
// its sectors, and a bit for each sector that is not good; what data holds of
// those is meaningless.
func (s pageSeal) decode(data, src []byte, page int64) (seqs [pageSectors]uint64, bad uint8) {
	for i := range pageSectors {
		sector := src[i*sectorSize : (i+1)*sectorSize]
		if binary.BigEndian.Uint32(sector[sectorCheckAt:]) != s.check(sector, page*pageSectors+int64(i)) {
			bad |= 1 << i
		}
		copy(data[i*sectorData:(i+1)*sectorData], sector)
		seqs[i] = binary.BigEndian.Uint64(sector[sequenceAt:])
	}
	return seqs, bad
}
