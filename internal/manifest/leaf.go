// Package manifest is the map of one backup: a tree from the blocks of a
// volume to the chunks that hold them.
//
// Nodes are chunks themselves, and never change: a backup writes the leaves
// in which something changed and the nodes above them, and shares the rest
// with its parent. Every tree is complete all the same. A subtree that is
// absent is a hole. FORMAT.md describes the bytes.
package manifest

import (
	"fmt"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Leaf holds the chunks of LeafBlocks consecutive blocks. The zero Leaf is all
// hole. It is a plain value: copy it freely, share it only for reading.
type Leaf struct {
	present [LeafBlocks / 64]uint64
	ref     [LeafBlocks]chunk.Ref
}

// At returns the chunk of the i-th block of the leaf; false means a hole.
func (l *Leaf) At(i int) (chunk.Ref, bool) {
	if l.present[i/64]&(1<<(i%64)) == 0 {
		return chunk.Ref{}, false
	}
	return l.ref[i], true
}

// Set gives the i-th block a chunk.
func (l *Leaf) Set(i int, r chunk.Ref) {
	l.present[i/64] |= 1 << (i % 64)
	l.ref[i] = r
}

// Clear makes the i-th block a hole.
func (l *Leaf) Clear(i int) {
	l.present[i/64] &^= 1 << (i % 64)
	l.ref[i] = chunk.Ref{}
}

// Empty reports whether the leaf is all hole.
func (l *Leaf) Empty() bool { return l.present == [LeafBlocks / 64]uint64{} }

// Present returns the blocks that have a chunk, as bits.
func (l *Leaf) Present() [LeafBlocks / 64]uint64 { return l.present }

func (l *Leaf) encode() ([]byte, error) {
	return encodeNode(0, LeafBlocks, func(i int) bool { return l.present[i/64]&(1<<(i%64)) != 0 },
		func(i int) chunk.Ref { return l.ref[i] })
}

// decodeLeaf reads an encoded leaf into l, which must be the zero Leaf.
func decodeLeaf(b []byte, l *Leaf) error {
	if err := decodeNode(b, 0, l.Set); err != nil {
		return fmt.Errorf("leaf: %w", err)
	}
	return nil
}
