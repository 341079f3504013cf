package chunk

import (
	"errors"
	"testing"
)

// Domains that seal by epochs: IDs are the same, each pack opens under the content key
// of its epoch and no other, and what the domain is told not to know fails.
func TestSealBy(t *testing.T) {
	first, second := [32]byte{1, 2, 3}, [32]byte{9}
	unknown := errors.New("unknown epoch")
	plain, old := []byte("a block"), testDomain(t, "p")
	d := testDomain(t, "p")
	d.SealBy(func(p PackID) ([32]byte, error) {
		switch p.Epoch() {
		case 0:
			return first, nil
		case 1:
			return second, nil
		default:
			return [32]byte{}, unknown
		}
	})
	other, err := NewDomain(second, [16]byte{4, 5, 6}, "p")
	if err != nil {
		t.Fatal(err)
	}
	id := d.ID(Data, plain)
	if id != old.ID(Data, plain) || id == other.ID(Data, plain) {
		t.Fatal("the sealing changes IDs")
	}
	for epoch := range uint16(2) {
		p := NewPackID([16]byte{7}, epoch, [14]byte{8})
		for range 2 { // derived, and remembered
			sealed, err := testSealer(t, d, p).Seal(nil, 5, Data, id, plain)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := testSealer(t, d, p).Open(nil, 5, Data, id, sealed); err != nil || string(got) != string(plain) {
				t.Errorf("epoch %d: %q, %v", epoch, got, err)
			}
			if _, err := testSealer(t, old, p).Open(nil, 5, Data, id, sealed); (err == nil) != (epoch == 0) {
				t.Errorf("epoch %d, by the first content key: %v", epoch, err)
			}
			if _, err := testSealer(t, other, p).Open(nil, 5, Data, id, sealed); !errors.Is(err, ErrCorrupt) {
				t.Errorf("epoch %d, as a domain of the second content key alone: %v", epoch, err)
			}
		}
	}
	if _, err := d.Sealer(NewPackID([16]byte{7}, 2, [14]byte{8})); !errors.Is(err, unknown) {
		t.Error(err)
	}
}
