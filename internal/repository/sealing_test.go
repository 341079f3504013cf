package repository

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

// Somebody who has an old key and can write to a store takes no process back to it.
func TestForgedMembership(t *testing.T) {
	c, r := fresh(t)
	mustRotate(t, r)
	first := r.keys.sealing.all()[:1]
	old, err := newKeyring(first, r.id)
	if err != nil {
		t.Fatal(err)
	}
	genuine := r.membership()
	for what, forge := range map[string]func(m *membership){
		"without the rotation": func(m *membership) {
			m.Sealing, m.Active, m.MinReader = nil, 0, firstFormat
		},
		"other stores": func(m *membership) { m.Losses = 0 },
	} {
		m := genuine.next()
		m.Version = 9
		forge(m)
		payload := *m
		if m.epochs() > 0 {
			payload.Proof = genuine.Proof
		}
		object, err := sealForged(&old, &payload)
		if err != nil {
			t.Fatal(err)
		}
		hurt := c.clone()
		for _, s := range hurt.mem {
			s.Replace(membersName(9), object)
		}
		p := hurt.open(t)
		for range 2 {
			if got := p.membership(); got.Version != genuine.Version || got.epochs() != 1 {
				t.Errorf("%s: version %d, epoch %d", what, got.Version, got.epochs())
			}
			if _, err = p.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"}); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}

// A membership has one proof only, and its sealing epochs make sense.
func TestMembershipSealing(t *testing.T) {
	_, r := fresh(t)
	mustRotate(t, r)
	mustRotate(t, r)
	good := r.membership()
	if err := good.check(); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[uint16]int{0: 0, 1: 1, 2: 2} {
		if got, ok := good.sealingOf(p); !ok || got != want {
			t.Errorf("placement %d: sealing epoch %d, %v", p, got, ok)
		}
	}
	if _, ok := good.sealingOf(3); ok {
		t.Error("a placement that is not there has a sealing epoch")
	}
	for what, spoil := range map[string]func(m *membership){
		"first":      func(m *membership) { m.Sealing[0].First = 0 },
		"order":      func(m *membership) { m.Sealing[0], m.Sealing[1] = m.Sealing[1], m.Sealing[0] },
		"equal":      func(m *membership) { m.Sealing[1].First = 1 },
		"inactive":   func(m *membership) { m.Active = 1 },
		"nonce":      func(m *membership) { m.Sealing[1].Nonce = nil },
		"previous":   func(m *membership) { m.Sealing[1].Previous = make([]byte, 1<<10) },
		"check":      func(m *membership) { m.Sealing[0].Check = nil },
		"old format": func(m *membership) { m.MinReader = firstFormat },
		"too many":   func(m *membership) { m.Sealing = slices.Repeat(m.Sealing, maxEpochs) },
	} {
		m := good.next()
		spoil(m)
		if m.check() == nil {
			t.Errorf("%s: it passes", what)
		}
	}
	all := r.keys.sealing.all()
	if masters, err := good.masters(r.id, 2, all[2]); err != nil || !slices.Equal(masters, all) {
		t.Errorf("the chain: %v", err)
	}
	if _, err := good.masters(r.id, 1, all[2]); err == nil {
		t.Error("a key opens the chain in the place of another")
	}
	many := good.next()
	for len(many.Sealing) < maxEpochs-1 {
		many.Sealing = append(many.Sealing, many.Sealing[0])
	}
	if _, err := many.rotated(r.id, all[0], all[1], r.o.Now()); !errors.Is(err, ErrInvalid) {
		t.Errorf("one rotation too many: %v", err)
	}
}

// sealForged is sealMembership of somebody who cannot prove it.
func sealForged(k *keyring, m *membership) ([]byte, error) {
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return k.sealEnvelope(kindMembers, membersName(m.Version), payload)
}
