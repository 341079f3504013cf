package pack

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/cairnbackup/cairn/internal/chunk"
)

const (
	tocVersion  = 1
	tocEntry    = 1 + 20 + 4
	maxChunks   = 32768 // of one pack: their entries fit into chunk.MaxContents
	trailerSize = 48

	trailerMagic   = "CAIRNPAK"
	trailerVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendTOC appends an entry to a table. Offsets are not stored: chunks lie
// one after the other from the container's first byte.
func appendTOC(toc []byte, e Entry) []byte {
	toc = append(toc, byte(e.Kind))
	toc = append(toc, e.ID[:]...)
	return binary.BigEndian.AppendUint32(toc, e.Length)
}

// decodeTOC reads a table whose chunks fill size bytes of container exactly.
func decodeTOC(toc []byte, size int) ([]Entry, error) {
	if len(toc) == 0 || toc[0] != tocVersion {
		return nil, fmt.Errorf("table of contents: %w", ErrVersion)
	}
	toc = toc[1:]
	if len(toc)%tocEntry != 0 || len(toc)/tocEntry > maxChunks {
		return nil, fmt.Errorf("table of contents of %d bytes: %w", len(toc), ErrCorrupt)
	}
	entries := make([]Entry, 0, len(toc)/tocEntry)
	var end int64
	for ; len(toc) > 0; toc = toc[tocEntry:] {
		e := Entry{Kind: chunk.Kind(toc[0]), ID: chunk.ID(toc[1:21]), Offset: uint32(end)}
		e.Length = binary.BigEndian.Uint32(toc[21:])
		end += int64(e.Length)
		if e.Kind != chunk.Data && e.Kind != chunk.Node ||
			e.Length < chunk.MinSealed || e.Length > chunk.MaxSealed || end > int64(size) {
			return nil, fmt.Errorf("table of contents, entry %d: %w", len(entries), ErrCorrupt)
		}
		entries = append(entries, e)
	}
	if end != int64(size) {
		return nil, fmt.Errorf("table of contents names %d bytes of %d: %w", end, size, ErrCorrupt)
	}
	return entries, nil
}

// trailer ends a container and says where its table of contents is.
type trailer struct {
	offset, length int
	id             chunk.ID
}

func (t trailer) append(b []byte) []byte {
	start := len(b)
	b = append(b, trailerMagic...)
	b = binary.BigEndian.AppendUint16(b, trailerVersion)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(t.offset)) //nolint:gosec // bounded by MaxContainer
	b = binary.BigEndian.AppendUint32(b, uint32(t.length)) //nolint:gosec // bounded by MaxContainer
	b = append(b, t.id[:]...)
	b = binary.BigEndian.AppendUint32(b, 0)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli))
}

// decodeTrailer reads the trailer of a container of size bytes.
func decodeTrailer(b []byte, size int64) (trailer, error) {
	if len(b) != trailerSize || string(b[:8]) != trailerMagic {
		return trailer{}, fmt.Errorf("trailer: %w", ErrCorrupt)
	}
	if crc32.Checksum(b[:44], castagnoli) != binary.BigEndian.Uint32(b[44:]) {
		return trailer{}, fmt.Errorf("trailer: checksum: %w", ErrCorrupt)
	}
	if binary.BigEndian.Uint16(b[8:]) != trailerVersion {
		return trailer{}, fmt.Errorf("trailer: %w", ErrVersion)
	}
	t := trailer{
		offset: int(binary.BigEndian.Uint32(b[12:])),
		length: int(binary.BigEndian.Uint32(b[16:])),
		id:     chunk.ID(b[20:40]),
	}
	if binary.BigEndian.Uint16(b[10:]) != 0 || binary.BigEndian.Uint32(b[40:]) != 0 ||
		t.length < chunk.MinSealed || t.length > chunk.MaxContents+chunk.Overhead ||
		int64(t.offset)+int64(t.length)+trailerSize != size {
		return trailer{}, fmt.Errorf("trailer: fields: %w", ErrCorrupt)
	}
	return t, nil
}

// ParseTOC returns the chunks of the container of size bytes of pack id, in
// order of their offsets. read fills p with the container's bytes at off; it
// is called twice, for at most MaxContents and a little.
func ParseTOC(d *chunk.Domain, id chunk.PackID, size int64, read func(p []byte, off int64) error) ([]Entry, error) {
	if size < trailerSize+chunk.MinSealed || size > MaxContainer {
		return nil, fmt.Errorf("pack %s: container of %d bytes: %w", id, size, ErrCorrupt)
	}
	end := make([]byte, trailerSize)
	if err := read(end, size-trailerSize); err != nil {
		return nil, fmt.Errorf("pack %s: read the trailer: %w", id, err)
	}
	t, err := decodeTrailer(end, size)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", id, err)
	}
	sealed := make([]byte, t.length)
	if err = read(sealed, int64(t.offset)); err != nil {
		return nil, fmt.Errorf("pack %s: read the table of contents: %w", id, err)
	}
	s, err := d.Sealer(id)
	if err != nil {
		return nil, err
	}
	toc, err := s.Open(nil, uint32(t.offset), chunk.Contents, t.id, sealed) //nolint:gosec // bounded by MaxContainer
	if err != nil {
		return nil, fmt.Errorf("pack %s: table of contents: %w", id, err)
	}
	entries, err := decodeTOC(toc, t.offset)
	if err != nil {
		return nil, fmt.Errorf("pack %s: %w", id, err)
	}
	return entries, nil
}
