// Package chunk names, seals and opens chunks: the stored content of one
// block of a volume, or of one node of a manifest.
//
// A chunk is known by a keyed hash of its plaintext, compressed when that
// helps and sealed with AES-256-GCM under the key of the pack that holds it.
// FORMAT.md describes the bytes.
package chunk

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// Kind says what a chunk's plaintext is. It is bound into the chunk's ID and
// its seal: a chunk of one kind never opens as another.
type Kind uint8

// The kinds of chunks.
const (
	Data     Kind = 1 // one block of a volume
	Node     Kind = 2 // one node of a manifest
	Contents Kind = 3 // the table of contents of a pack
)

// MaxPlain is the most plaintext, in bytes, that a Data or Node chunk has.
const MaxPlain = 64 << 10

// MaxContents is the most plaintext, in bytes, that a Contents chunk has.
const MaxContents = 1 << 20

// Overhead is what sealing adds to a chunk that does not compress: the codec
// byte and the tag of AES-GCM.
const Overhead = 1 + 16

// MinSealed is the length of the shortest sealed chunk: a byte of payload.
const MinSealed = 1 + Overhead

// MaxSealed is the length of the longest sealed Data or Node chunk.
const MaxSealed = MaxPlain + Overhead

// MaxPlain returns the most plaintext that a chunk of kind k has, zero for a
// kind that does not exist.
func (k Kind) MaxPlain() int {
	switch k {
	case Data, Node:
		return MaxPlain
	case Contents:
		return MaxContents
	default:
		return 0
	}
}

func (k Kind) String() string {
	switch k {
	case Data:
		return "data"
	case Node:
		return "node"
	case Contents:
		return "contents"
	default:
		return fmt.Sprintf("kind %d", uint8(k))
	}
}

// ID names a chunk: the first 160 bits of the keyed BLAKE3 of its plaintext,
// under a key of its domain and kind. Without the key nobody can tell whether
// a known block is stored.
type ID [20]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// PackID names a pack. It is random, so that no pack ID is used twice, and
// begins with the session that wrote the pack:
//
//	session [16]byte | placement epoch uint16 | random [14]byte
type PackID [32]byte

// NewPackID joins the parts of a pack ID. The caller draws random from a
// cryptographic source, afresh for every pack.
func NewPackID(session [16]byte, epoch uint16, random [14]byte) PackID {
	var p PackID
	copy(p[:16], session[:])
	binary.BigEndian.PutUint16(p[16:], epoch)
	copy(p[18:], random[:])
	return p
}

// ParsePackID is the inverse of String.
func ParsePackID(s string) (PackID, error) {
	var p PackID
	if len(s) != hex.EncodedLen(len(p)) {
		return PackID{}, fmt.Errorf("pack ID %.80q: %d characters where 64 are due", s, len(s))
	}
	if _, err := hex.Decode(p[:], []byte(s)); err != nil {
		return PackID{}, fmt.Errorf("pack ID %q: %w", s, err)
	}
	if p.String() != s {
		return PackID{}, fmt.Errorf("pack ID %q: upper-case digits", s)
	}
	return p, nil
}

// Session returns the session that wrote the pack.
func (p PackID) Session() [16]byte { return [16]byte(p[:16]) }

// Epoch returns the placement epoch under which the pack's shards were given
// to stores.
func (p PackID) Epoch() uint16 { return binary.BigEndian.Uint16(p[16:]) }

// String returns the ID as 64 lower-case hexadecimal digits.
func (p PackID) String() string { return hex.EncodeToString(p[:]) }

// Location says where a sealed chunk is: Length bytes at Offset of the
// container of Pack.
type Location struct {
	Pack           PackID
	Offset, Length uint32
}

// Ref names a chunk and says where it is.
type Ref struct {
	ID ID
	Location
}

// Errors of sealing and opening. Use errors.Is.
var (
	// ErrCorrupt means that sealed bytes are not what was sealed at that
	// place under that name: changed, swapped, of another pack, project or
	// repository, or of a newer format.
	ErrCorrupt = errors.New("chunk is damaged or not the one asked for")

	// ErrSize means that a plaintext is empty or longer than its kind allows.
	ErrSize = errors.New("chunk has a size that its kind does not allow")
)
