package repository

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
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
	Check   []byte    `json:"check,omitempty"` // of the master key, unless it is the first one
	Sealed  []byte    `json:"sealed"`          // XChaCha20-Poly1305 of the master key; associated data: wrapping
}

type masterKey [32]byte

func newMasterKey() (masterKey, error) {
	var k masterKey
	if _, err := rand.Read(k[:]); err != nil {
		return k, fmt.Errorf("make the master key: %w", err)
	}
	return k, nil
}

// wrapping is what a wrapped key is bound to: the repository and, behind a
// rotation, the sealing epoch whose master key it is.
func wrapping(repo ident, epoch int) []byte {
	if epoch == 0 {
		return repo[:]
	}
	return binary.BigEndian.AppendUint16(repo[:], uint16(epoch)) //nolint:gosec // bounded by maxEpochs
}

// wrap seals the master key of a sealing epoch under a password.
func (k masterKey) wrap(password []byte, repo ident, epoch int, p kdfParams) (wrappedKey, error) {
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
	if epoch > 0 {
		if w.Check, err = k.check(repo); err != nil {
			return w, err
		}
	}
	w.Sealed = aead.Seal(nil, w.Nonce, k[:], wrapping(repo, epoch))
	return w, nil
}

func (p kdfParams) derive(password, salt []byte) []byte {
	return argon2.IDKey(password, salt, p.Time, p.Memory, p.Threads, chacha20poly1305.KeySize)
}

// unwrap returns the master key, or ErrPassword when this password does not
// open it.
func unwrap(payload, password []byte, repo ident, epoch int) (masterKey, error) {
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
	plain, err := aead.Open(nil, w.Nonce, w.Sealed, wrapping(repo, epoch))
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
// for one purpose, so that, say, a machine that repairs need not read. They are of
// the first master key and stay when it is rotated, but for those in sealing.
type keyring struct {
	content [32]byte // chunks: the input of chunk.NewDomain
	repair  [32]byte // cells of shards
	tokens  [32]byte // keyed names
	control [32]byte // authentication of control objects
	index   [32]byte // pages of the local index

	sealing *sealing
}

// ring returns the keys of a repository that was never rotated.
func (k masterKey) ring(repo ident) (keyring, error) { return newKeyring([]masterKey{k}, repo) }

// newKeyring derives all keys from the master keys of the sealing epochs, of which
// there is at least one.
func newKeyring(masters []masterKey, repo ident) (keyring, error) {
	var r keyring
	err := masters[0].derive(repo, []subKey{
		{"content", &r.content},
		{"repair", &r.repair},
		{"tokens", &r.tokens},
		{"control", &r.control},
		{"index", &r.index},
	})
	if err != nil {
		return r, err
	}
	r.sealing = &sealing{}
	return r, r.sealing.follow(masters, repo)
}

// subKey is a key for one purpose.
type subKey struct {
	purpose string
	key     *[32]byte
}

func (k masterKey) derive(repo ident, keys []subKey) error {
	for _, sub := range keys {
		out, err := hkdf.Key(sha256.New, k[:], repo[:], "cairn repository 1 "+sub.purpose, len(sub.key))
		if err != nil {
			return fmt.Errorf("derive the %s key: %w", sub.purpose, err)
		}
		copy(sub.key[:], out)
	}
	return nil
}
