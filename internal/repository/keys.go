package repository

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
)

// Bounds of the argon2id parameters that are believed: what a store says
// decides how much memory an Open takes.
const (
	maxKDFMemory  = 1 << 20 // KiB
	maxKDFTime    = 64
	maxKDFThreads = 64
)

// kdfParams are argon2id's.
type kdfParams struct {
	Time    uint32 `json:"time"`
	Memory  uint32 `json:"memory"` // KiB
	Threads uint8  `json:"threads"`
}

// defaultKDF is RFC 9106's second recommendation.
func defaultKDF() kdfParams { return kdfParams{Time: 3, Memory: 64 << 10, Threads: 4} }

func (p kdfParams) check() error {
	if p.Time < 1 || p.Time > maxKDFTime || p.Memory < 8 || p.Memory > maxKDFMemory || p.Threads < 1 || p.Threads > maxKDFThreads {
		return fmt.Errorf("argon2id parameters %+v are out of bounds", p)
	}
	return nil
}

// wrappedKey is the master key under a password.
type wrappedKey struct {
	KDF     kdfParams `json:"argon2id"`
	Salt    []byte    `json:"salt"`
	Nonce   []byte    `json:"nonce"`
	Label   string    `json:"label,omitempty"` // for people
	Created time.Time `json:"created,omitzero"`
	Sealed  []byte    `json:"sealed"` // XChaCha20-Poly1305 of the master key; associated data is the repository's ID
}

type masterKey [32]byte

func newMasterKey() (masterKey, error) {
	var k masterKey
	if _, err := rand.Read(k[:]); err != nil {
		return k, fmt.Errorf("make the master key: %w", err)
	}
	return k, nil
}

// wrap seals the master key under a password.
func (k masterKey) wrap(password []byte, repo ident, p kdfParams) (wrappedKey, error) {
	if len(password) == 0 {
		return wrappedKey{}, fmt.Errorf("the password is empty: %w", ErrInvalid)
	}
	w := wrappedKey{KDF: p, Salt: make([]byte, 32), Nonce: make([]byte, chacha20poly1305.NonceSizeX)}
	for _, b := range [][]byte{w.Salt, w.Nonce} {
		if _, err := rand.Read(b); err != nil {
			return w, fmt.Errorf("wrap the master key: %w", err)
		}
	}
	aead, err := chacha20poly1305.NewX(p.derive(password, w.Salt))
	if err != nil {
		return w, fmt.Errorf("wrap the master key: %w", err)
	}
	w.Sealed = aead.Seal(nil, w.Nonce, k[:], repo[:])
	return w, nil
}

func (p kdfParams) derive(password, salt []byte) []byte {
	return argon2.IDKey(password, salt, p.Time, p.Memory, p.Threads, chacha20poly1305.KeySize)
}

// unwrap returns the master key, or ErrPassword when this password does not
// open it.
func unwrap(payload, password []byte, repo ident) (masterKey, error) {
	var k masterKey
	var w wrappedKey
	if err := decodeJSON(payload, &w); err != nil {
		return k, err
	}
	if err := w.KDF.check(); err != nil {
		return k, err
	}
	if len(w.Salt) < 16 || len(w.Salt) > 64 || len(w.Nonce) != chacha20poly1305.NonceSizeX || len(w.Sealed) > 256 {
		return k, errors.New("wrapped key has fields of wrong length")
	}
	aead, err := chacha20poly1305.NewX(w.KDF.derive(password, w.Salt))
	if err != nil {
		return k, fmt.Errorf("unwrap the master key: %w", err)
	}
	plain, err := aead.Open(nil, w.Nonce, w.Sealed, repo[:])
	if err != nil {
		return k, ErrPassword
	}
	if len(plain) != len(k) {
		return k, errors.New("wrapped key has a wrong length")
	}
	copy(k[:], plain)
	return k, nil
}

// keyring holds the keys that everything in a repository hangs on. Each is good
// for one purpose, so that, say, a machine that repairs need not read.
type keyring struct {
	content [32]byte // chunks: the input of chunk.NewDomain
	repair  [32]byte // cells of shards
	root    [32]byte // root records
	tokens  [32]byte // keyed names
	control [32]byte // authentication of control objects
	index   [32]byte // pages of the local index

	forwarding [32]byte // sealing forwardings
}

func (k masterKey) ring(repo ident) (keyring, error) {
	var r keyring
	for _, sub := range []struct {
		purpose string
		key     *[32]byte
	}{
		{"content", &r.content},
		{"repair", &r.repair},
		{"root record", &r.root},
		{"tokens", &r.tokens},
		{"control", &r.control},
		{"index", &r.index},
		{"forwarding", &r.forwarding},
	} {
		out, err := hkdf.Key(sha256.New, k[:], repo[:], "cairn repository 1 "+sub.purpose, len(sub.key))
		if err != nil {
			return r, fmt.Errorf("derive the %s key: %w", sub.purpose, err)
		}
		copy(sub.key[:], out)
	}
	return r, nil
}
