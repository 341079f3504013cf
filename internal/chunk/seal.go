package chunk

import (
	"crypto/cipher"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
)

// Sealer seals and opens the chunks of one pack. Its methods may be called
// concurrently.
type Sealer struct {
	d    *Domain
	aead cipher.AEAD
}

// binding is what a seal is bound to besides the key: the nonce and the
// associated data. It is pooled because arguments of an interface's methods
// escape to the heap.
type binding struct {
	nonce [12]byte
	ad    [33 + 1 + 20]byte
	plain []byte // scratch of Open, before decompression
}

var bindings = sync.Pool{New: func() any { return new(binding) }}

func (s *Sealer) bind(offset uint32, k Kind, id ID) *binding {
	b, ok := bindings.Get().(*binding)
	if !ok {
		b = new(binding)
	}
	b.nonce = [12]byte{}
	binary.BigEndian.PutUint32(b.nonce[8:], offset)
	copy(b.ad[:], s.d.adPrefix[:])
	b.ad[33] = byte(k)
	copy(b.ad[34:], id[:])
	return b
}

// SealBound returns how much room Seal may need beyond len(dst) for n bytes
// of plaintext, so that it seals in place without allocating.
func SealBound(n int) int { return n + n/128 + 128 + Overhead }

// Seal appends to dst the sealed chunk of kind k with that plaintext, whose
// ID the caller gives, and returns the extended buffer. offset is the chunk's
// place in the pack's container. It is the nonce: an offset of a pack is
// sealed once only, ever; giving one twice would give the plaintext away.
// dst and plain must not overlap. Nothing is allocated when dst has
// SealBound(len(plain)) bytes to spare.
func (s *Sealer) Seal(dst []byte, offset uint32, k Kind, id ID, plain []byte) ([]byte, error) {
	if len(plain) == 0 || len(plain) > k.MaxPlain() {
		return dst, fmt.Errorf("seal %d bytes of %s: %w", len(plain), k, ErrSize)
	}
	start := len(dst)
	dst = slices.Grow(dst, SealBound(len(plain)))
	out := compress(append(dst, byte(codecZstd)), plain)
	if len(out)-start-1 > len(plain)-len(plain)/minGain {
		out = append(append(dst, byte(codecRaw)), plain...)
	}
	b := s.bind(offset, k, id)
	out = s.aead.Seal(out[:start], b.nonce[:], out[start:], b.ad[:])
	bindings.Put(b)
	return out, nil
}

// Open appends to dst the plaintext of a sealed chunk of kind k and returns
// the extended buffer. The error is ErrCorrupt unless sealed is exactly what
// Seal made at this offset of this pack, of this kind, under this ID, in this
// domain, and its plaintext has this ID. dst and sealed must not overlap;
// sealed is not modified. At most k.MaxPlain() bytes are appended, and nothing
// is allocated when dst has that much to spare.
func (s *Sealer) Open(dst []byte, offset uint32, k Kind, id ID, sealed []byte) ([]byte, error) {
	limit := k.MaxPlain()
	if limit == 0 {
		return dst, fmt.Errorf("open %s: %w", k, ErrSize)
	}
	if len(sealed) < MinSealed || len(sealed) > limit+Overhead {
		return dst, fmt.Errorf("open %s chunk %s: %d bytes: %w", k, id, len(sealed), ErrCorrupt)
	}
	b := s.bind(offset, k, id)
	defer bindings.Put(b)
	plain, err := s.aead.Open(b.plain[:0], b.nonce[:], sealed, b.ad[:])
	if err != nil {
		return dst, fmt.Errorf("open %s chunk %s: %w", k, id, ErrCorrupt)
	}
	b.plain = plain // keeps the room it grew to
	start := len(dst)
	out, err := decode(dst, plain, limit)
	if err != nil {
		return dst, fmt.Errorf("open %s chunk %s: %w", k, id, err)
	}
	// The seal proves that the bytes are those that were written. That they
	// were the right ones to write, only the ID proves.
	if s.d.ID(k, out[start:]) != id {
		return dst, fmt.Errorf("open %s chunk %s: content has another ID: %w", k, id, ErrCorrupt)
	}
	return out, nil
}
