package repository

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Versions of the format. A repository that was never rotated is of the first,
// so that older programs go on with it.
const (
	firstFormat   = 1
	rotatedFormat = 2
	formatVersion = rotatedFormat // the newest that this program reads, writes and prunes
)

// maxPlacements is how many placement epochs a pack ID can tell apart.
const maxPlacements = 1 << 16

// storeRecord is the payload of "store": who a store is.
type storeRecord struct {
	Repository ident  `json:"repository"`
	Store      ident  `json:"store"`
	State      string `json:"state"` // "member"; who is one, the membership says
	MinReader  int    `json:"min_reader"`
}

const stateMember = "member"

// membership is the payload of "members/<v>": all that is true of the whole
// repository. The highest version seen wins.
type membership struct {
	Version    uint64      `json:"version"`
	Repository ident       `json:"repository"`
	MinReader  int         `json:"min_reader"`
	MinWriter  int         `json:"min_writer"`
	MinPruner  int         `json:"min_pruner"`
	Data       int         `json:"data"`
	Parity     int         `json:"parity"`
	Losses     int         `json:"losses"`
	BlockSize  int         `json:"block_size"`
	Stores     []ident     `json:"stores"`
	Placements []placement `json:"placements"`       // by epoch, oldest first
	Active     int         `json:"active,omitempty"` // the first placement that new packs are put by

	Sealing []sealingRecord `json:"sealing,omitempty"` // rotations, oldest first
	Proof   []byte          `json:"proof,omitempty"`   // that its writer had the newest master key; of one that was rotated
}

// placement says which store keeps which shard of the packs of an epoch. A
// replaced store's slot is bound to its successor in the next version.
type placement struct {
	Epoch uint16  `json:"epoch"`
	Slots []ident `json:"slots"`
}

func (m *membership) check() error {
	bad := func(what string) error { return fmt.Errorf("membership %d: %s: %w", m.Version, what, errEnvelope) }
	switch {
	case m.Version == 0:
		return bad("no version")
	case m.Data < 1 || m.Parity < 0 || m.Data+m.Parity > 32:
		return bad("impossible geometry")
	case m.Losses < 0 || m.Losses > m.Parity:
		return bad("impossible number of losses")
	case m.BlockSize < 512 || m.BlockSize > 64<<10 || m.BlockSize&(m.BlockSize-1) != 0:
		return bad("impossible block size")
	case len(m.Stores) < m.Data+m.Parity || len(m.Stores) > 1024:
		return bad("impossible number of stores")
	case len(m.Placements) == 0 || len(m.Placements) > maxPlacements:
		return bad("no placement")
	case m.Active < 0 || m.Active >= len(m.Placements):
		return bad("no placement for new packs")
	}
	for i, p := range m.Placements {
		if int(p.Epoch) != i || len(p.Slots) != m.Data+m.Parity {
			return bad("impossible placement")
		}
	}
	return m.checkSealing()
}

// checkSealing is check of what rotations added.
func (m *membership) checkSealing() error {
	bad := func(what string) error { return fmt.Errorf("membership %d: %s: %w", m.Version, what, errEnvelope) }
	if m.epochs() == 0 {
		return nil
	}
	if m.epochs() >= maxEpochs || m.MinReader < rotatedFormat {
		return bad("impossible sealing epochs")
	}
	after := 0
	for _, s := range m.Sealing {
		if int(s.First) <= after || int(s.First) > m.Active {
			return bad("sealing epoch with impossible placements")
		}
		if err := s.check(); err != nil {
			return bad("sealing epoch with " + err.Error())
		}
		after = int(s.First)
	}
	return nil
}

// quorum is how many acknowledgements a control object needs.
func (m *membership) quorum() int { return 1 + m.Losses }

// readerQuorum is how many stores have to have what no reader can do without, so that
// any k stores have one with it.
func (m *membership) readerQuorum() int { return max(m.quorum(), len(m.Stores)-m.Data+1) }

// packQuorum is how many shards of a pack have to be acknowledged.
func (m *membership) packQuorum() int { return m.Data + m.Losses }

func (m *membership) has(id ident) bool { return slices.Contains(m.Stores, id) }

// slots returns who keeps the shards of an epoch's packs, nil when there is no
// such epoch.
func (m *membership) slots(epoch uint16) []ident {
	if int(epoch) >= len(m.Placements) {
		return nil
	}
	return m.Placements[epoch].Slots
}

func (k *keyring) sealMembership(m *membership) (name string, object []byte, err error) {
	name = membersName(m.Version)
	proved := *m
	if proved.Proof, err = k.prove(m); err != nil {
		return "", nil, err
	}
	payload, err := json.Marshal(proved)
	if err != nil {
		return "", nil, fmt.Errorf("membership: %w", err)
	}
	object, err = k.sealEnvelope(kindMembers, name, payload)
	return name, object, err
}

// prove returns the proof of a membership.
func (k *keyring) prove(m *membership) ([]byte, error) {
	bare := *m
	bare.Proof = nil
	encoded, err := json.Marshal(bare)
	if err != nil {
		return nil, fmt.Errorf("membership: %w", err)
	}
	return k.proof(m.epochs(), membersName(m.Version), encoded)
}

// openMembership is the inverse of sealMembership. Of one whose newest sealing
// epoch is not known, only the tag says that it is genuine.
func (k *keyring) openMembership(name string, object []byte) (*membership, error) {
	m, err := k.openClaim(name, object)
	if err != nil {
		return nil, err
	}
	return m, k.proved(m)
}

// openClaim is openMembership of one that may be written with any master key.
func (k *keyring) openClaim(name string, object []byte) (*membership, error) {
	payload, err := k.openEnvelope(kindMembers, name, object)
	if err != nil {
		return nil, err
	}
	m := &membership{}
	if err = boundJSON(payload, membershipShape); err == nil {
		err = decodeJSON(payload, m)
	}
	if err != nil {
		// A newer version may have added fields; what it says about who may
		// read comes first.
		var gate struct {
			MinReader int `json:"min_reader"`
		}
		if json.Unmarshal(payload, &gate) == nil && gate.MinReader > formatVersion {
			return nil, versionError("read", gate.MinReader)
		}
		return nil, err
	}
	if m.MinReader > formatVersion {
		return nil, versionError("read", m.MinReader)
	}
	if membersName(m.Version) != name {
		return nil, fmt.Errorf("%s says it is version %d: %w", name, m.Version, errEnvelope)
	}
	return m, m.check()
}

// knows says whether the newest master key of a membership is at hand: another one of
// the same epoch is not.
func (k *keyring) knows(m *membership) bool {
	keys, err := k.sealing.at(m.epochs())
	return err == nil && (m.epochs() == 0 || bytes.Equal(keys.check[:checkLength], m.keyCheck()))
}

// errForged: who wrote a membership had the keys that control objects are tagged with,
// and not the newest master key.
var errForged = fmt.Errorf("not written with the newest key: %w", errEnvelope)

// proved says whether a membership was written with the newest master key, if that
// is known.
func (k *keyring) proved(m *membership) error {
	want, err := k.prove(m)
	switch {
	case errors.Is(err, errEpoch):
		return nil
	case err != nil:
		return err
	case subtle.ConstantTimeCompare(want, m.Proof) != 1:
		return fmt.Errorf("%s was %w", membersName(m.Version), errForged)
	}
	return nil
}

func versionError(what string, need int) error {
	return fmt.Errorf("this cairn knows format %d and format %d is needed to %s this repository: upgrade cairn: %w", formatVersion, need, what, ErrVersion)
}

// replaced is the membership in which one store has the place of another.
func (m *membership) replaced(lost, by ident) *membership {
	next := m.next()
	swap := func(ids []ident) {
		for i, id := range ids {
			if id == lost {
				ids[i] = by
			}
		}
	}
	swap(next.Stores)
	for _, p := range next.Placements {
		swap(p.Slots)
	}
	return next
}

// added is the membership with one more store. From here on the packs go by new
// placements: as many as there are stores, each beginning one store further, so
// that every store gets the same share. A session takes one of them.
func (m *membership) added(id ident) *membership {
	next := m.next()
	next.Stores = append(next.Stores, id)
	next.Active = len(next.Placements)
	for i := range next.Stores {
		var slots []ident
		for k := range m.Data + m.Parity {
			slots = append(slots, next.Stores[(i+k)%len(next.Stores)])
		}
		next.Placements = append(next.Placements, placement{Epoch: uint16(len(next.Placements)), Slots: slots}) //nolint:gosec // check bounds it
	}
	return next
}

// next is a copy with the next version.
func (m *membership) next() *membership {
	out := *m
	out.Version++
	out.Stores = slices.Clone(m.Stores)
	out.Placements = slices.Clone(m.Placements)
	for i := range out.Placements {
		out.Placements[i].Slots = slices.Clone(out.Placements[i].Slots)
	}
	out.Sealing, out.Proof = slices.Clone(m.Sealing), nil
	return &out
}
