package repository

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/cairnbackup/cairn/internal/chunk"
)

func fuzzKeys(f *testing.F) *keyring {
	f.Helper()
	k, err := newKeyring([]masterKey{{1, 2, 3}, {4, 5}}, ident{9})
	if err != nil {
		f.Fatal(err)
	}
	return &k
}

func FuzzEnvelope(f *testing.F) {
	k := fuzzKeys(f)
	for _, payload := range [][]byte{nil, []byte("{}"), bytes.Repeat([]byte("x"), 300)} {
		object, err := k.sealEnvelope(kindOpen, "a/b", payload)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(object)
		f.Add(object[:len(object)-1])
	}
	for _, kd := range []kind{kindKey, kindRoot, kindForwarding} {
		object, err := k.sealEnvelopeAt(maxEpochs-1, kd, "a/b", []byte("{}"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(object)
	}
	f.Add([]byte(envelopeMagic))
	f.Fuzz(func(t *testing.T, object []byte) {
		e, err := parseEnvelope(object)
		if err != nil {
			return
		}
		payload, err := k.openEnvelope(e.kind, "a/b", object)
		if err != nil {
			return
		}
		again, err := k.sealEnvelopeAt(e.epoch, e.kind, "a/b", payload)
		if err != nil || !bytes.Equal(again, object) {
			t.Fatalf("an object that opens is sealed differently: %v", err)
		}
		if _, err := k.openEnvelope(e.kind, "a/c", object); err == nil {
			t.Fatal("an object opens under another name")
		}
	})
}

// Records are fuzzed behind their authentication, as a holder of the keys, or
// a newer version, could write them.
func FuzzRecords(f *testing.F) {
	for _, rec := range []any{
		storeRecord{State: stateMember},
		membership{Version: 1, Data: 4, Parity: 2},
		membership{Version: 2, Sealing: []sealingRecord{{First: 1, Nonce: []byte{1}, Previous: []byte{2}, Check: []byte{3}}}, Proof: []byte{4}},
		changeRecord{What: changeRotate, Next: &membership{Version: 2}, Key: ident{1}},
		openRecord{},
		voteRecord{Vote: voteAbort},
		certificateRecord{},
		capableRecord{Capabilities: capabilities()},
		wrappedKey{KDF: defaultKDF()},
		rootRecord{BackupID: "b", Size: 1 << 30, BlockSize: blockSize},
		rootRecord{BackupID: "b", Size: 1 << 30, BlockSize: blockSize, Attributes: json.RawMessage(`{"a":[1.50,"\u003c"]}`)},
	} {
		b, err := json.Marshal(rec)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"version":1}{}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		identity(t, payload, &storeRecord{})
		identity(t, payload, &openRecord{})
		identity(t, payload, &voteRecord{})
		identity(t, payload, &certificateRecord{})
		identity(t, payload, &capableRecord{})
		identity(t, payload, &wrappedKey{})
		identity(t, payload, &changeRecord{})
		identity(t, payload, &rootRecord{})
		var m membership
		if decodeJSON(payload, &m) == nil {
			if m.check() == nil {
				_ = m.slots(0)[m.Data+m.Parity-1]
				if epoch, ok := m.sealingOf(uint16(m.Active)); !ok || epoch != m.epochs() {
					t.Fatalf("new packs are of sealing epoch %d of %d", epoch, m.epochs())
				}
			}
			_, _ = m.masters(ident{9}, m.epochs(), masterKey{1})
			identity(t, payload, &membership{})
		}
	})
}

// identity checks that what decodes is the same behind encoding and decoding.
func identity[T any](t *testing.T, payload []byte, v *T) {
	t.Helper()
	if decodeJSON(payload, v) != nil {
		return
	}
	first, err := json.Marshal(v)
	if err != nil {
		return // a time or number that JSON cannot say
	}
	var again T
	if err = decodeJSON(first, &again); err != nil {
		t.Fatalf("%T: what was encoded does not decode: %v", v, err)
	}
	second, err := json.Marshal(&again)
	if err != nil || !bytes.Equal(first, second) {
		t.Fatalf("%T: %s and %s: %v", v, first, second, err)
	}
}

func FuzzRoot(f *testing.F) {
	k := fuzzKeys(f)
	name, err := k.rootName("p", "v", ident{5})
	if err != nil {
		f.Fatal(err)
	}
	for epoch := range 2 {
		object, err := k.sealRoot(epoch, name, &rootRecord{Session: ident{5}, Size: 1, BlockSize: blockSize}, []byte("top"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(object)
		f.Add(object[envelopeHeader:])
		object, err = k.sealRoot(epoch, name, &rootRecord{Session: ident{5}, Size: 1, BlockSize: blockSize, Attributes: json.RawMessage(`[]`)}, []byte("top"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(object[envelopeHeader:])
	}
	f.Fuzz(func(t *testing.T, object []byte) {
		// As it is, and as a payload that is authentic.
		_, _ = k.openRoot(name, object)
		sealed, err := k.sealEnvelope(kindRoot, name, object)
		if err != nil {
			t.Skip()
		}
		if rt, err := k.openRoot(name, sealed); err == nil && rt.rec.Session != (ident{5}) {
			t.Fatal("a root record of another session")
		}
	})
}

func FuzzCondemned(f *testing.F) {
	c := newCondemned()
	f.Add(c.encode())
	c.packs[chunk.PackID{1}] = struct{}{}
	c.packs[chunk.PackID{2}] = struct{}{}
	c.compact[chunk.PackID{2}] = struct{}{}
	c.backups[ident{3}] = struct{}{}
	f.Add(c.encode())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, payload []byte) {
		c := newCondemned()
		if c.decode(payload) != nil {
			return
		}
		again := newCondemned()
		if err := again.decode(c.encode()); err != nil || !bytes.Equal(again.encode(), c.encode()) {
			t.Fatalf("a list does not survive encoding: %v", err)
		}
	})
}

func FuzzOwed(f *testing.F) {
	f.Add(encodeOwed(nil))
	f.Add(encodeOwed([]owedShard{{chunk.PackID{1}, 3, ident{4}}, {chunk.PackID{2}, 0, ident{5}}}))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		owed, err := decodeOwed(payload)
		if err == nil && !bytes.Equal(encodeOwed(owed), payload) {
			t.Fatal("a record does not survive decoding")
		}
	})
}

func FuzzIndexState(f *testing.F) {
	key := [32]byte{7}
	for _, applied := range []map[ident]struct{}{{}, {ident{1}: {}, ident{2}: {}}} {
		b, err := encodeIndexState(ident{3}, applied, key)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(indexMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		generation, applied, err := decodeIndexState(b, key)
		if err != nil {
			return
		}
		again, err := encodeIndexState(generation, applied, key)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("a state does not survive decoding: %v", err)
		}
	})
}

func FuzzNames(f *testing.F) {
	f.Add(packName(chunk.PackID{1, 2, 3}))
	f.Add(forwardName(chunk.PackID{1, 2, 3}, ident{4}))
	f.Add(membersName(7))
	f.Add(deletedName(ident{1}))
	f.Add("backups/a/b/00000000000000000000000000000000")
	f.Add("prune/x/done")
	f.Fuzz(func(t *testing.T, name string) {
		if id, ok := parsePackName(name); ok && packName(id) != name {
			t.Fatalf("pack %s", name)
		}
		if v, ok := tailNumber(name, membersPrefix); ok && membersName(v) != name {
			t.Fatalf("members %s", name)
		}
		if s, ok := markSession(name, deletedPrefix); ok && deletedName(s) != name {
			t.Fatalf("mark %s", name)
		}
		if old, prune, ok := parseForwardName(name); ok && forwardName(old, prune) != name {
			t.Fatalf("forwarding %s", name)
		}
		_, _ = rootSession(name)
		_, _, _ = pruneName(name)
	})
}
