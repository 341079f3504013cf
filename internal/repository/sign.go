package repository

import (
	"fmt"

	"github.com/zeebo/blake3"
)

// Sign returns a signature of 32 bytes of data that whoever can open the repository can
// make and check, and nobody else: BLAKE3 keyed with a key of its own for each purpose.
// It stays the same when the master key is rotated. Compare signatures in constant time.
func (r *Repository) Sign(purpose string, data []byte) ([]byte, error) {
	var key [32]byte
	blake3.DeriveKey("cairn repository signature: "+purpose, r.keys.control[:], key[:])
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	_, _ = h.Write(data) // a hash never fails
	return h.Sum(nil), nil
}
