package chunk

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/zeebo/blake3"
)

// formatVersion is part of every key and of the associated data: chunks of
// another version do not open.
const formatVersion = 1

// Domain holds the keys of one dedup domain: a project's. Equal blocks are
// stored once inside a domain and cannot be recognized across domains. Its
// methods may be called concurrently.
type Domain struct {
	adPrefix [1 + 16 + 16]byte // version, repository, tag of the project
	hashers  [4]sync.Pool      // *hasher by Kind

	repository [16]byte
	project    string
	contentKey [32]byte
	sealing    Sealing // nil: everything under contentKey

	mu       sync.Mutex
	packKeys map[[32]byte][]byte // by content key: HKDF pseudo-random key of the pack keys
}

// Sealing says which content key the chunks of a pack are sealed under. It always
// gives the same one for a pack, and may be called concurrently.
type Sealing func(PackID) (contentKey [32]byte, err error)

// hasher is a keyed BLAKE3 with room for its result, so that making an ID
// allocates nothing.
type hasher struct {
	h   *blake3.Hasher
	sum [32]byte
}

// NewDomain derives the keys of project in the repository from the
// repository's content key, which must be 256 bits of randomness.
func NewDomain(contentKey [32]byte, repository [16]byte, project string) (*Domain, error) {
	d := &Domain{repository: repository, project: project, contentKey: contentKey, packKeys: make(map[[32]byte][]byte)}
	tag, err := d.derive(contentKey, "tag", 16)
	if err != nil {
		return nil, err
	}
	d.adPrefix[0] = formatVersion
	copy(d.adPrefix[1:], repository[:])
	copy(d.adPrefix[17:], tag)
	if _, err = d.packKey(contentKey); err != nil {
		return nil, err
	}
	for _, k := range []Kind{Data, Node, Contents} {
		key, err := d.derive(contentKey, "id "+k.String(), 32)
		if err != nil {
			return nil, err
		}
		first, err := blake3.NewKeyed(key)
		if err != nil {
			return nil, fmt.Errorf("key the %s hash of project %q: %w", k, project, err)
		}
		d.hashers[k].New = func() any { return &hasher{h: first.Clone()} }
	}
	return d, nil
}

// SealBy makes the domain ask which content key a pack is sealed under. IDs stay
// what they are, so that equal blocks are stored once whatever seals them. It is
// called before the domain is used.
func (d *Domain) SealBy(s Sealing) { d.sealing = s }

// derive returns a key of the domain's project.
func (d *Domain) derive(contentKey [32]byte, purpose string, n int) ([]byte, error) {
	info := fmt.Sprintf("cairn chunk %d %s\x00%s", formatVersion, purpose, d.project)
	key, err := hkdf.Key(sha256.New, contentKey[:], d.repository[:], info, n)
	if err != nil {
		return nil, fmt.Errorf("derive the %s key of project %q: %w", purpose, d.project, err)
	}
	return key, nil
}

// packKey returns what the keys of packs sealed under a content key are derived
// from. There are as many as sealing epochs.
func (d *Domain) packKey(contentKey [32]byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if key := d.packKeys[contentKey]; key != nil {
		return key, nil
	}
	key, err := d.derive(contentKey, "pack", 32)
	if err != nil {
		return nil, err
	}
	d.packKeys[contentKey] = key
	return key, nil
}

// ID returns the name of a chunk of kind k, which must be one of the
// constants, with that plaintext.
func (d *Domain) ID(k Kind, plain []byte) ID {
	pool := &d.hashers[k]
	h, ok := pool.Get().(*hasher)
	if !ok {
		panic("chunk: ID of a kind that does not exist") // a caller's mistake, never a peer's
	}
	h.h.Reset()
	_, _ = h.h.Write(plain) // documented never to fail
	h.h.Sum(h.sum[:0])
	id := ID(h.sum[:len(ID{})])
	pool.Put(h)
	return id
}

// Sealer returns the sealer of one pack, under a key of its own.
func (d *Domain) Sealer(p PackID) (*Sealer, error) {
	if p == (PackID{}) {
		return nil, errors.New("chunk: a pack needs an ID that is not zero")
	}
	contentKey := d.contentKey
	if d.sealing != nil {
		var err error
		if contentKey, err = d.sealing(p); err != nil {
			return nil, err
		}
	}
	packKey, err := d.packKey(contentKey)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Expand(sha256.New, packKey, string(p[:]), 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of pack %s: %w", p, err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key of pack %s: %w", p, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("key of pack %s: %w", p, err)
	}
	return &Sealer{d: d, aead: aead}, nil
}
