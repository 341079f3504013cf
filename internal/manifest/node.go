package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// Sizes of the tree.
const (
	// LeafBlocks is the number of blocks of a leaf.
	LeafBlocks = 128
	// Fanout is the number of children of an inner node.
	Fanout = 256
	// MaxNode is the longest encoded node in bytes, also of a top node.
	MaxNode = nodeHeader + Fanout/8 + Fanout*(packSize+entrySize)

	nodeVersion = 1
	nodeHeader  = 4
	packSize    = 32
	entrySize   = 20 + 1 + 4 + 2
	maxLevel    = 6
)

// ErrCorrupt means that a node is not a node of this format, or not one that
// can be at its place.
var ErrCorrupt = errors.New("manifest node is damaged")

// ErrVersion means that a node is of a newer format.
var ErrVersion = errors.New("manifest is of a newer format: upgrade this program")

// width returns how many children, or blocks, a node of a level has at most.
func width(level int) int {
	if level == 0 {
		return LeafBlocks
	}
	return Fanout
}

// encodeNode returns the canonical form of a node: packs in the order in which
// the entries first name them.
func encodeNode(level, n int, present func(int) bool, ref func(int) chunk.Ref) ([]byte, error) {
	bitmap := make([]byte, n/8)
	packs := make(map[chunk.PackID]int)
	var table, entries []byte
	for i := range n {
		if !present(i) {
			continue
		}
		r := ref(i)
		if r.Length < chunk.MinSealed || r.Length > chunk.MaxSealed {
			return nil, fmt.Errorf("encode a manifest node: chunk %s has a sealed length of %d", r.ID, r.Length)
		}
		bitmap[i/8] |= 1 << (i % 8)
		p, ok := packs[r.Pack]
		if !ok {
			p = len(packs)
			packs[r.Pack] = p
			table = append(table, r.Pack[:]...)
		}
		entries = append(entries, r.ID[:]...)
		entries = append(entries, byte(p)) //nolint:gosec // below Fanout
		entries = binary.BigEndian.AppendUint32(entries, r.Offset)
		entries = binary.BigEndian.AppendUint16(entries, uint16(r.Length-chunk.MinSealed))
	}
	out := make([]byte, 0, nodeHeader+len(bitmap)+len(table)+len(entries))
	out = append(out, nodeVersion, byte(level))                  //nolint:gosec // at most maxLevel
	out = binary.BigEndian.AppendUint16(out, uint16(len(packs))) //nolint:gosec // at most Fanout
	out = append(out, bitmap...)
	out = append(out, table...)
	return append(out, entries...), nil
}

// view reads single entries of an encoded node without decoding the others.
type view struct {
	bitmap, packs, entries []byte
}

// parse splits an encoded node of a level into its parts. Only lengths are
// checked: an entry is when it is read.
func parse(b []byte, level int) (view, error) {
	n := width(level)
	if len(b) < nodeHeader+n/8 || len(b) > MaxNode {
		return view{}, fmt.Errorf("%d bytes: %w", len(b), ErrCorrupt)
	}
	if b[0] != nodeVersion {
		return view{}, fmt.Errorf("version %d: %w", b[0], ErrVersion)
	}
	if int(b[1]) != level {
		return view{}, fmt.Errorf("level %d where %d is due: %w", b[1], level, ErrCorrupt)
	}
	packs := int(binary.BigEndian.Uint16(b[2:]))
	v := view{bitmap: b[nodeHeader : nodeHeader+n/8]}
	rest := b[nodeHeader+n/8:]
	count := v.before(n)
	if packs > count || len(rest) != packs*packSize+count*entrySize {
		return view{}, fmt.Errorf("%d bytes for %d entries of %d packs: %w", len(b), count, packs, ErrCorrupt)
	}
	v.packs, v.entries = rest[:packs*packSize], rest[packs*packSize:]
	return v, nil
}

func (v view) has(i int) bool { return v.bitmap[i/8]&(1<<(i%8)) != 0 }

// before counts the entries that stand before child i.
func (v view) before(i int) int {
	n := 0
	for _, b := range v.bitmap[:i/8] {
		n += bits.OnesCount8(b)
	}
	if i%8 != 0 {
		n += bits.OnesCount8(v.bitmap[i/8] & (1<<(i%8) - 1))
	}
	return n
}

// next returns the first child present at or after i, or -1.
func (v view) next(i int) int {
	for ; i < len(v.bitmap)*8; i++ {
		if b := v.bitmap[i/8] >> (i % 8); b != 0 {
			return i + bits.TrailingZeros8(b)
		}
		i |= 7
	}
	return -1
}

// ref returns child i, which must be present.
func (v view) ref(i int) (chunk.Ref, error) { return v.entry(v.before(i)) }

func (v view) entry(n int) (chunk.Ref, error) {
	e := v.entries[n*entrySize:][:entrySize]
	pack := int(e[20]) * packSize
	if pack >= len(v.packs) {
		return chunk.Ref{}, fmt.Errorf("entry %d names pack %d of %d: %w", n, e[20], len(v.packs)/packSize, ErrCorrupt)
	}
	return chunk.Ref{
		ID: chunk.ID(e[:20]),
		Location: chunk.Location{
			Pack:   chunk.PackID(v.packs[pack:][:packSize]),
			Offset: binary.BigEndian.Uint32(e[21:]),
			Length: uint32(binary.BigEndian.Uint16(e[25:])) + chunk.MinSealed,
		},
	}, nil
}

// decodeNode gives every entry of a node to set and refuses any form but the
// canonical one; what set was given before an error is void.
func decodeNode(b []byte, level int, set func(i int, r chunk.Ref)) error {
	v, err := parse(b, level)
	if err != nil {
		return err
	}
	packs := len(v.packs) / packSize
	seen := make(map[chunk.PackID]struct{}, packs)
	at := 0
	for i := v.next(0); i >= 0; i = v.next(i + 1) {
		r, err := v.entry(at)
		if err != nil {
			return err
		}
		// A pack is either one of those named before or the next new one.
		p := int(v.entries[at*entrySize+20])
		if _, old := seen[r.Pack]; p > len(seen) || old == (p == len(seen)) {
			return fmt.Errorf("entry %d is not canonical: %w", at, ErrCorrupt)
		}
		seen[r.Pack] = struct{}{}
		set(i, r)
		at++
	}
	if len(seen) != packs {
		return fmt.Errorf("packs that no entry names: %w", ErrCorrupt)
	}
	return nil
}
