package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/google/uuid"
)

// The format of an overlay's map is described in FORMAT.md.
const (
	overlayBlock   = 64 << 10
	overlayVersion = 1
	mapPage        = 4096
	pageHead       = 16
	pageBlocks     = (mapPage - pageHead) * 8 // blocks that one page describes
	overlayMaxSize = 1 << 56
)

var (
	overlayMagic = [8]byte{'C', 'A', 'I', 'R', 'N', 'O', 'V', 'L'}
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)

	errOverlay = errors.New("the overlay is damaged: unexport the backup, which discards what was written to it, and export it again")
)

// overlayHeader is the first page of a map: what the overlay lies over.
type overlayHeader struct {
	Backup uuid.UUID
	Size   int64
}

func (h overlayHeader) encode() []byte {
	p := make([]byte, mapPage)
	copy(p, overlayMagic[:])
	binary.BigEndian.PutUint32(p[8:], overlayVersion)
	binary.BigEndian.PutUint32(p[12:], overlayBlock)
	binary.BigEndian.PutUint64(p[16:], uint64(h.Size)) //nolint:gosec // sizes are not negative
	copy(p[24:], h.Backup[:])
	binary.BigEndian.PutUint32(p[40:], crc32.Checksum(p[:40], castagnoli))
	return p
}

func decodeOverlayHeader(p []byte) (overlayHeader, error) {
	var h overlayHeader
	switch {
	case len(p) != mapPage || [8]byte(p[:8]) != overlayMagic:
		return h, fmt.Errorf("it is not an overlay's map: %w", errOverlay)
	case binary.BigEndian.Uint32(p[40:]) != crc32.Checksum(p[:40], castagnoli):
		return h, fmt.Errorf("its header has a wrong checksum: %w", errOverlay)
	case binary.BigEndian.Uint32(p[8:]) != overlayVersion:
		return h, fmt.Errorf("overlay of version %d: it needs a newer version of Cairn", binary.BigEndian.Uint32(p[8:]))
	case binary.BigEndian.Uint32(p[12:]) != overlayBlock:
		return h, fmt.Errorf("overlay with blocks of %d bytes: it needs a newer version of Cairn", binary.BigEndian.Uint32(p[12:]))
	case binary.BigEndian.Uint64(p[16:]) > overlayMaxSize:
		return h, fmt.Errorf("its size is impossible: %w", errOverlay)
	}
	for _, b := range p[44:] {
		if b != 0 {
			return h, fmt.Errorf("its header has content where none belongs: %w", errOverlay)
		}
	}
	h.Size = int64(binary.BigEndian.Uint64(p[16:])) //nolint:gosec // capped above
	h.Backup = uuid.UUID(p[24:40])
	return h, nil
}

// overlayPage is one page of a map: bit i of Bits is block number*pageBlocks+i.
type overlayPage struct {
	Number     uint32
	Generation uint64 // 0 = never written
	Bits       [mapPage - pageHead]byte
}

func (g *overlayPage) encode() []byte {
	p := make([]byte, mapPage)
	binary.BigEndian.PutUint32(p[4:], g.Number)
	binary.BigEndian.PutUint64(p[8:], g.Generation)
	copy(p[pageHead:], g.Bits[:])
	binary.BigEndian.PutUint32(p, crc32.Checksum(p[4:], castagnoli))
	return p
}

// decodeOverlayPage reads one slot. A slot that was never written is a page of
// generation 0.
func decodeOverlayPage(p []byte, number uint32) (*overlayPage, error) {
	g := &overlayPage{Number: number}
	if len(p) != mapPage {
		return nil, fmt.Errorf("page %d of its map is cut off: %w", number, errOverlay)
	}
	blank := true
	for _, b := range p {
		blank = blank && b == 0
	}
	if blank {
		return g, nil
	}
	g.Generation = binary.BigEndian.Uint64(p[8:])
	if binary.BigEndian.Uint32(p) != crc32.Checksum(p[4:], castagnoli) || binary.BigEndian.Uint32(p[4:]) != number || g.Generation == 0 {
		return nil, fmt.Errorf("page %d of its map has a wrong checksum: %w", number, errOverlay)
	}
	copy(g.Bits[:], p[pageHead:])
	return g, nil
}

// latestPage chooses between the two slots of a page. One may be damaged: it
// was being written when the power failed, before the flush was answered.
func latestPage(a, b []byte, number uint32) (*overlayPage, error) {
	x, xerr := decodeOverlayPage(a, number)
	y, yerr := decodeOverlayPage(b, number)
	switch {
	case xerr != nil:
		return y, yerr
	case yerr != nil || x.Generation >= y.Generation:
		return x, xerr
	default:
		return y, yerr
	}
}

// overlayPages is the number of pages that describe size bytes.
func overlayPages(size int64) int64 {
	blocks := (size + overlayBlock - 1) / overlayBlock
	return (blocks + pageBlocks - 1) / pageBlocks
}

// slotOffset is where a slot, 0 or 1, of a page is in the file.
func slotOffset(page int64, slot uint64) int64 {
	return (1 + 2*page + int64(slot)) * mapPage //nolint:gosec // 0 or 1
}
