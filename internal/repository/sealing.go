package repository

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/zeebo/blake3"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// A rotation of the key opens a sealing epoch: what is written from then on is
// sealed under another master key. Epoch 0 is that of the master key that Init
// made, from which everything that is not sealing stays derived: chunk IDs and
// tokens, or nothing would be found again, the tags of control objects, cells.
//
//	who opens      password or sheet -> M(e), by the chain in the membership -> M(e-1) ... M(0)
//	what it is for pack: by its placement epoch; root record, forwarding, wrapped key: a number in its envelope

// maxEpochs is how many sealing epochs a repository can have.
const maxEpochs = 256

// errEpoch: something is of a sealing epoch whose master key is not at hand.
var errEpoch = errors.New("the key of the repository was rotated since it was opened")

// laterEpoch is what to say of something whose sealing epoch no store has a record of.
func laterEpoch(err error) error {
	return fmt.Errorf("no store that answers knows its key: bring back the others: %w: %w", ErrTooFewStores, err)
}

// epochKeys are derived from the master key of one sealing epoch.
type epochKeys struct {
	content    [32]byte // sealing chunks: the input of chunk.Sealing
	root       [32]byte // sealing root records
	forwarding [32]byte // sealing forwardings
	membership [32]byte // proof that who wrote a membership had this master key
	check      [32]byte // its beginning tells this master key from others
}

// sealing holds the master keys by sealing epoch, and what is derived from each. It
// grows when the repository is rotated while it is open.
type sealing struct {
	mu      sync.RWMutex
	masters []masterKey
	epochs  []epochKeys
}

// known is the newest epoch whose master key is at hand.
func (s *sealing) known() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.masters) - 1
}

// all returns the master keys, that of epoch 0 first.
func (s *sealing) all() []masterKey {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.masters)
}

// at returns the keys of an epoch. The error is errEpoch.
func (s *sealing) at(epoch int) (epochKeys, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if epoch >= len(s.epochs) {
		return epochKeys{}, errEpoch
	}
	return s.epochs[epoch], nil
}

// follow makes the master keys those of the repository, of which epoch 0 stays. One
// at hand that is another gives way: it is of a rotation that was given up, under which
// nobody wrote. More than are given stay.
func (s *sealing) follow(masters []masterKey, repo ident) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	same := 0
	for same < min(len(s.masters), len(masters)) && s.masters[same] == masters[same] {
		same++
	}
	switch {
	case same == len(masters):
		return nil
	case same == 0 && len(s.masters) > 0:
		return fmt.Errorf("the master key leads to another first one than the one in use: %w", errEnvelope)
	}
	// New slices: who was given a part of the old ones reads on.
	all, epochs := slices.Clone(s.masters[:same]), slices.Clone(s.epochs[:same])
	for _, m := range masters[same:] {
		var k epochKeys
		err := m.derive(repo, []subKey{
			{"content", &k.content},
			{"root record", &k.root},
			{"forwarding", &k.forwarding},
			{"membership", &k.membership},
			{"check", &k.check},
		})
		if err != nil {
			return err
		}
		all, epochs = append(all, m), append(epochs, k)
	}
	s.masters, s.epochs = all, epochs
	return nil
}

// newestMaster returns the master key that new things are sealed under, and its
// sealing epoch.
func (r *Repository) newestMaster() (masterKey, int) {
	epoch := r.membership().epochs()
	return r.keys.sealing.all()[epoch], epoch
}

// contentKey says which key a pack's chunks are sealed under.
func (r *Repository) contentKey(p chunk.PackID) ([32]byte, error) {
	epoch, ok := r.membership().sealingOf(p.Epoch())
	if !ok {
		return [32]byte{}, fmt.Errorf("pack %s has placement epoch %d: %w", p, p.Epoch(), errEpoch)
	}
	k, err := r.keys.sealing.at(epoch)
	return k.content, err
}

// proof is what shows that a membership was written by someone who has the master
// key of its newest sealing epoch; nil of one that was never rotated. encoded is
// its JSON without the proof.
func (k *keyring) proof(epoch int, name string, encoded []byte) ([]byte, error) {
	if epoch == 0 {
		return nil, nil
	}
	keys, err := k.sealing.at(epoch)
	if err != nil {
		return nil, err
	}
	h, err := blake3.NewKeyed(keys.membership[:])
	if err != nil {
		return nil, fmt.Errorf("prove %s: %w", name, err)
	}
	var n [2]byte
	binary.BigEndian.PutUint16(n[:], uint16(len(name))) //nolint:gosec // a few bytes
	_, _ = h.Write(n[:])                                // a hash never fails
	_, _ = h.WriteString(name)
	_, _ = h.Write(encoded)
	return h.Sum(nil)[:32], nil
}
