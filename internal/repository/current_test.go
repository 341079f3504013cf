package repository

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// hideMembers makes the list of members unreadable on some stores of a process.
func (c *cluster) hideMembers(stores ...int) {
	c.fault(memstore.FailBefore, func(call memstore.Call) bool { return call.Op == "list" && call.Name == membersPrefix }, stores...)
}

// An agent with a password that a rotation stopped begins no backup, whichever stores
// do not say that: where so few do that it could be missed, none begins. One store that
// is away is in nobody's way.
func TestBeginBehindARotation(t *testing.T) {
	for lost := range 7 {
		c, r := fresh(t)
		if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
			t.Fatal(err)
		}
		agent := c.process()
		stopped := agent.open(t, bySecond)
		works := agent.open(t)
		// It is on as few stores as it may be.
		c.fault(memstore.FailBefore, putting(membersPrefix, ""), 0, 1, 2)
		mustRotate(t, r)
		c.heal()
		if lost > 0 {
			hidden := []int{5, 4, 3, 2, 1, 0}[:lost]
			agent.hideMembers(hidden...)
		}
		want := ErrPassword
		if lost > 2 {
			want = ErrTooFewStores
		}
		v := randomContent(seeded(1), 60, 20)
		if _, err := v.backup(t.Context(), stopped, "b", "", nil); !errors.Is(err, want) {
			t.Errorf("%d stores do not say what the members are: %v", lost, err)
		}
		if c.count(rootPrefix) > 0 {
			t.Fatal("a root record is there")
		}
		_, err := v.backup(t.Context(), works, "b", "", nil)
		if lost <= 2 && err != nil || lost > 2 && !errors.Is(err, ErrTooFewStores) {
			t.Errorf("%d stores do not say what the members are: by the password that rotated: %v", lost, err)
		}
	}
}

// A commit is told to have failed where too few stores say what the members are, and
// a store that is a member no more counts in nothing.
func TestCommitKnowsTheMembers(t *testing.T) {
	for hidden := range 6 {
		c, r := fresh(t)
		v := randomContent(seeded(2), 60, 20)
		s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
		if err != nil {
			t.Fatal(err)
		}
		top, err := v.write(t.Context(), s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if hidden > 0 {
			c.hideMembers([]int{0, 1, 2, 3, 4, 5}[:hidden]...)
		}
		o, err := s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top})
		if hidden <= 2 && o != OutcomeCommitted || hidden > 2 && (o != OutcomeFailed || !errors.Is(err, ErrTooFewStores)) {
			t.Errorf("%d stores do not say what the members are: %v, %v", hidden, o, err)
		}
	}
}

// Stores that were named as lost, and answer a writer all the same, count in nothing:
// with one of them away besides, a commit fails that has votes enough on the others.
func TestCommitOnStoresThatWereExpelled(t *testing.T) {
	c := newCluster(3)
	c.initLosing(t, 1, 2, 1)
	killedRotation(t, c)
	partition := c.process()
	w := partition.open(t)
	s, err := w.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	v := randomContent(seeded(2), 60, 20)
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	lost := []string{c.memberAt(t, 1), c.memberAt(t, 2)}
	c.faulty[1].SetDown(true)
	c.faulty[2].SetDown(true)
	r := c.open(t, bySecond)
	marks, err := r.Changes(t.Context())
	if err != nil || len(marks) != 1 {
		t.Fatal(marks, err)
	}
	if err = r.AbandonChange(t.Context(), marks[0].ID, lost...); err != nil {
		t.Fatal(err)
	}
	if o, cerr := s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top}); o == OutcomeCommitted {
		t.Errorf("told committed on one member, of which two are needed: %v", cerr)
	}
}

// Who meets a rotation that got to one store puts it on as many as it takes before
// anything is written under it, or writes nothing.
func TestRotationOnOneStoreIsPublishedFirst(t *testing.T) {
	for _, refused := range []bool{false, true} {
		t.Run(fmt.Sprint("refused ", refused), func(t *testing.T) {
			c, _ := fresh(t)
			killedRotation(t, c, 3)
			r := c.open(t)
			if r.membership().epochs() != 1 {
				t.Fatal("it was not met")
			}
			if refused {
				c.fault(memstore.FailBefore, putting(membersPrefix, ""), 0, 1, 2, 4)
			}
			v := randomContent(seeded(2), 60, 20)
			_, err := v.backup(t.Context(), r, "b", "", nil)
			has := 0
			for _, m := range c.mem {
				if _, serr := m.Stat(t.Context(), membersName(2)); serr == nil {
					has++
				}
			}
			if refused {
				if !errors.Is(err, ErrTooFewStores) || !strings.Contains(err.Error(), "on too few stores") || has != 2 || c.count(rootPrefix)+c.count(packPrefix) > 0 {
					t.Fatalf("on %d stores: %v", has, err)
				}
				return
			}
			if err != nil || has < r.membership().readerQuorum() {
				t.Fatalf("on %d stores: %v", has, err)
			}
			for a := range 6 {
				mustVerify(t, v, c.without(a, (a+1)%6).open(t), "b")
			}
		})
	}
}
