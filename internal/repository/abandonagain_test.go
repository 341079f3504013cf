package repository

import (
	"errors"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// halfGivenUp is a rotation by the first password that stopped right before it is
// published, and was given up on some of the stores only. Then comes behind, and then
// the rotation goes on; its error is returned. lost is the place of a store that is
// named, or -1.
func halfGivenUp(t *testing.T, c *cluster, r *Repository, lost int, behind func(other *cluster, id string, without []string)) error {
	t.Helper()
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	stopped, other := c.process(), c.process()
	rotates := stopped.open(t)
	stopped.before(putting(membersPrefix, ""), func() {
		var without []string
		down := func() {
			if lost >= 0 {
				other.faulty[lost].SetDown(true)
			}
		}
		if down(); lost >= 0 {
			without = append(without, c.memberAt(t, lost))
		}
		o := other.open(t, bySecond)
		marks, err := o.Changes(t.Context())
		if err != nil || len(marks) != 1 {
			t.Error(marks, err)
			return
		}
		other.fault(memstore.FailBefore, putting(membersPrefix, ""), 1, 2, 3, 4)
		if err = o.AbandonChange(t.Context(), marks[0].ID, without...); !errors.Is(err, ErrTooFewStores) {
			t.Error("given up half-way", err)
		}
		other.heal()
		down()
		behind(other, marks[0].ID, without)
	})
	_, err := rotates.RotateKey(t.Context())
	return err
}

// Giving up fails half-way, and the same command ends it: the rotation, which was alive
// all the time, is published nowhere any more, and every password opens the repository.
func TestGiveUpTwiceAgainstRotation(t *testing.T) {
	for _, lost := range []int{-1, 5} {
		c, r := fresh(t)
		err := halfGivenUp(t, c, r, lost, func(other *cluster, id string, without []string) {
			if err := other.open(t, bySecond).AbandonChange(t.Context(), id, without...); err != nil {
				t.Error(lost, err)
			}
		})
		if !errors.Is(err, ErrTooFewStores) {
			t.Errorf("lost %d: given up, and rotated: %v", lost, err)
		}
		for _, m := range c.mem[:5] {
			object, err := m.Get(t.Context(), membersName(2), 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if is, err := r.keys.openClaim(membersName(2), object); err != nil || is.epochs() != 0 {
				t.Errorf("lost %d: %s has the membership of the rotation: %v", lost, m.URL(), err)
			}
		}
		for _, pw := range []string{string(password), "second"} {
			if err := openWith(t, c, pw); err != nil {
				t.Errorf("lost %d: %s: %v", lost, pw, err)
			}
		}
		if c.count(changePrefix) > 1 || lost < 0 && c.count(changePrefix) > 0 {
			t.Error("its mark is left")
		}
	}
}

// Nothing else is changed while a rotation is given up on some stores only: should it
// be published on the others, that would outrank the change, and what was written since
// could not be read.
func TestNoChangeBesideARotationHalfGivenUp(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(2), 60, 20)
	joining := memstore.New("new")
	err := halfGivenUp(t, c, r, -1, func(other *cluster, id string, _ []string) {
		o := other.open(t, bySecond)
		if o.membership().Version != 2 {
			t.Error("setting: nobody sees the membership that was put in its place")
		}
		if marks, err := o.Changes(t.Context()); err != nil || len(marks) != 1 || marks[0].ID != id {
			t.Error(marks, err)
		}
		// It could be killed behind the publication: what it repairs then is not repaired.
		other.fault(memstore.FailBefore, putting(membersName(2), ""))
		if _, err := o.AddStore(t.Context(), memstore.WithFaults(joining, memstore.Faults{}), nil); !errors.Is(err, ErrChange) {
			t.Error("a store was added:", err)
		}
		other.heal()
		if _, err := o.RotateKey(t.Context()); !errors.Is(err, ErrChange) {
			t.Error("rotated:", err)
		}
		if _, err := o.Prune(t.Context(), hasty); !errors.Is(err, ErrChange) {
			t.Error("pruned:", err)
		}
		v.mustBackup(t, o, "b", "", nil)
	})
	if err != nil {
		t.Error(err) // the other stores are enough
	}
	mustVerify(t, v, c.open(t), "b")
}
