package repository

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// sealingRecord is one rotation, in the membership: the first one is of epoch 1.
type sealingRecord struct {
	First    uint16    `json:"first"` // placement epoch of the first packs sealed under it
	Began    time.Time `json:"began"`
	Nonce    []byte    `json:"nonce"`
	Previous []byte    `json:"previous"` // XChaCha20-Poly1305 of the master key of the epoch before
	Check    []byte    `json:"check"`    // tells the wrapped keys of this master key from those of a rotation that was given up
}

// checkLength is that of what a master key is recognized by.
const checkLength = 16

func (s *sealingRecord) check() error {
	if len(s.Nonce) != chacha20poly1305.NonceSizeX || len(s.Previous) != len(masterKey{})+chacha20poly1305.Overhead || len(s.Check) != checkLength {
		return errors.New("fields of wrong length")
	}
	return nil
}

// epochs is the number of the newest sealing epoch.
func (m *membership) epochs() int { return len(m.Sealing) }

// sealingOf returns the sealing epoch of the packs of a placement epoch; ok is
// false when there is no such placement.
func (m *membership) sealingOf(placement uint16) (epoch int, ok bool) {
	if int(placement) >= len(m.Placements) {
		return 0, false
	}
	for i, s := range slices.Backward(m.Sealing) {
		if placement >= s.First {
			return i + 1, true
		}
	}
	return 0, true
}

// keyCheck is what the newest master key is recognized by; nil of the first one.
func (m *membership) keyCheck() []byte {
	if m.epochs() == 0 {
		return nil
	}
	return m.Sealing[m.epochs()-1].Check
}

// newer orders what is known of a repository: a sealing epoch is never given up,
// whatever the version of a record says that somebody with an older key wrote.
func (m *membership) newer(o *membership) bool {
	return o == nil || m.epochs() > o.epochs() || m.epochs() == o.epochs() && m.Version > o.Version
}

// rotated is the membership that opens the next sealing epoch: the placements for
// new packs once more, under the key of the new master key. The old one is sealed
// under it.
func (m *membership) rotated(repo ident, old, fresh masterKey, now time.Time) (*membership, error) {
	next := m.next()
	active := m.Placements[m.Active:]
	switch {
	case m.epochs()+1 >= maxEpochs:
		return nil, fmt.Errorf("the key was rotated %d times, which is the most: %w", m.epochs(), ErrInvalid)
	case len(m.Placements)+len(active) > maxPlacements:
		return nil, fmt.Errorf("the repository has %d placements, and %d more do not fit: its key cannot be rotated again: %w", len(m.Placements), len(active), ErrInvalid)
	}
	s := sealingRecord{First: uint16(len(m.Placements)), Began: now, Nonce: make([]byte, chacha20poly1305.NonceSizeX)} //nolint:gosec // bounded above
	if _, err := rand.Read(s.Nonce); err != nil {
		return nil, fmt.Errorf("rotate the key: %w", err)
	}
	aead, err := fresh.chain(repo)
	if err != nil {
		return nil, err
	}
	if s.Check, err = fresh.check(repo); err != nil {
		return nil, err
	}
	s.Previous = aead.Seal(nil, s.Nonce, old[:], wrapping(repo, m.epochs()))
	next.Sealing = append(next.Sealing, s)
	next.Active = len(next.Placements)
	for _, p := range active {
		next.Placements = append(next.Placements, placement{Epoch: uint16(len(next.Placements)), Slots: slices.Clone(p.Slots)}) //nolint:gosec // as above
	}
	next.MinReader, next.MinWriter, next.MinPruner = max(m.MinReader, rotatedFormat), max(m.MinWriter, rotatedFormat), max(m.MinPruner, rotatedFormat)
	return next, next.check()
}

// masters returns the master keys of all epochs up to the given one, whose is
// known. The record need not be authentic: what opens was sealed under that key.
func (m *membership) masters(repo ident, epoch int, newest masterKey) ([]masterKey, error) {
	if epoch > m.epochs() {
		return nil, errEpoch
	}
	out := make([]masterKey, epoch+1)
	out[epoch] = newest
	for e := epoch; e > 0; e-- {
		s := m.Sealing[e-1]
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("sealing epoch %d: %w: %w", e, err, errEnvelope)
		}
		aead, err := out[e].chain(repo)
		if err != nil {
			return nil, err
		}
		plain, err := aead.Open(nil, s.Nonce, s.Previous, wrapping(repo, e-1))
		if err != nil || copy(out[e-1][:], plain) != len(masterKey{}) {
			return nil, fmt.Errorf("the master key before sealing epoch %d does not open: %w", e, errEnvelope)
		}
	}
	return out, nil
}

// check returns what the master key is recognized by, which tells nothing else of it.
func (k masterKey) check(repo ident) ([]byte, error) {
	var key [32]byte
	err := k.derive(repo, []subKey{{"check", &key}})
	return key[:checkLength], err
}

// chain returns what the master key of the epoch before is sealed with.
func (k masterKey) chain(repo ident) (cipher.AEAD, error) {
	var key [32]byte
	if err := k.derive(repo, []subKey{{"previous master key", &key}}); err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(key[:])
	if err != nil {
		return nil, fmt.Errorf("the previous master key: %w", err)
	}
	return aead, nil
}
