// Package pack puts sealed chunks into containers, and containers into shards
// of which any k of k+m give everything back.
//
// A Builder fills one container; a Coder turns containers into shards and
// reads ranges of a container from them, around shards that are missing or
// wrong. FORMAT.md describes the bytes.
package pack

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Builder makes one container. It is one goroutine's.
type Builder struct {
	d      *chunk.Domain
	id     chunk.PackID
	sealer *chunk.Sealer
	buf    []byte
	toc    []byte
	done   bool
}

// NewBuilder starts the pack id, which must never have been used, in buf,
// which it owns until Finish. With TargetSize of capacity in buf nothing is
// allocated per chunk; with less a buffer of that size is made.
func NewBuilder(d *chunk.Domain, id chunk.PackID, buf []byte) (*Builder, error) {
	s, err := d.Sealer(id)
	if err != nil {
		return nil, err
	}
	if cap(buf) < TargetSize {
		buf = make([]byte, 0, TargetSize)
	}
	return &Builder{d: d, id: id, sealer: s, buf: buf[:0], toc: []byte{tocVersion}}, nil
}

// ID returns the pack's ID.
func (b *Builder) ID() chunk.PackID { return b.id }

// Len returns the number of chunks in the pack.
func (b *Builder) Len() int { return (len(b.toc) - 1) / tocEntry }

// Size returns the bytes of the chunks sealed so far.
func (b *Builder) Size() int { return len(b.buf) }

// Add seals a chunk into the pack and says where it is. The ID must be the
// domain's for that kind and plaintext. ErrFull means that the pack cannot
// take this chunk and is as it was: finish it and start another. An empty
// pack takes any chunk.
func (b *Builder) Add(k chunk.Kind, id chunk.ID, plain []byte) (chunk.Ref, error) {
	if b.done {
		return chunk.Ref{}, errors.New("pack: Add after Finish")
	}
	if k != chunk.Data && k != chunk.Node {
		return chunk.Ref{}, fmt.Errorf("pack: a pack holds data and nodes, not %s", k)
	}
	room := chunk.SealBound(len(plain)) + chunk.SealBound(len(b.toc)+tocEntry) + trailerSize
	if len(b.buf)+room > TargetSize || b.Len() == maxChunks {
		return chunk.Ref{}, ErrFull
	}
	offset := uint32(len(b.buf)) //nolint:gosec // bounded by TargetSize
	buf, err := b.sealer.Seal(b.buf, offset, k, id, plain)
	if err != nil {
		return chunk.Ref{}, fmt.Errorf("pack %s: %w", b.id, err)
	}
	b.buf = buf
	length := uint32(len(buf)) - offset //nolint:gosec // bounded by TargetSize
	b.toc = appendTOC(b.toc, Entry{Kind: k, ID: id, Length: length})
	return chunk.Ref{ID: id, Location: chunk.Location{Pack: b.id, Offset: offset, Length: length}}, nil
}

// Finish ends the pack and returns its container, in the buffer given to
// NewBuilder: the sealed chunks, the sealed table of contents, the trailer.
func (b *Builder) Finish() ([]byte, error) {
	if b.done {
		return nil, errors.New("pack: Finish twice")
	}
	b.done = true
	t := trailer{offset: len(b.buf), id: b.d.ID(chunk.Contents, b.toc)}
	buf, err := b.sealer.Seal(b.buf, uint32(t.offset), chunk.Contents, t.id, b.toc) //nolint:gosec // bounded by TargetSize
	if err != nil {
		return nil, fmt.Errorf("pack %s: table of contents: %w", b.id, err)
	}
	t.length = len(buf) - t.offset
	b.buf = t.append(slices.Grow(buf, trailerSize))
	return b.buf, nil
}
