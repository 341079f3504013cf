package repository

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// A rotation that is killed at any of its calls: the password that ran it opens the
// repository at every moment, all that was written comes back, backups go on, and the
// same command ends it: then the other password is out.
func TestRotateKilled(t *testing.T) {
	w := newWorld(t)
	if _, err := w.open(t).AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	finished, fresh := 0, 0
	for n := int64(1); ; n += stride(4, 23) {
		c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
		ctx, kill := context.WithCancelCause(t.Context())
		r := c.open(t)
		c.onCalls(func(call int64) error {
			if call < n {
				return nil
			}
			kill(errKilled)
			return errKilled
		})
		_, err := r.RotateKey(ctx)
		killed := ctx.Err() != nil
		kill(nil)
		c.heal()
		if !killed {
			if err != nil {
				t.Fatalf("the rotation that nobody killed: %v", err)
			}
			break
		}
		when := fmt.Sprintf("killed at call %d", n)
		// Any store may be lost besides.
		for lost := range 6 {
			if err = openWith(t, c.without(lost), string(password)); err != nil {
				t.Fatalf("%s, store %d lost: %v", when, lost, err)
			}
		}
		r = c.open(t)
		c.intact(t, r, when)
		old := r.membership().epochs() == 0
		if err = openWith(t, c.cluster, "second"); old != (err == nil) || err != nil && !errors.Is(err, ErrPassword) {
			t.Fatalf("%s: the other password, in epoch %d: %v", when, r.membership().epochs(), err)
		}
		v := w.second.clone()
		v.mustBackup(t, r, "meanwhile", "second", v.change(seeded(3), 4))
		marks, err := r.Changes(t.Context())
		if err != nil || len(marks) > 1 {
			t.Fatalf("%s: %+v, %v", when, marks, err)
		}
		switch {
		case len(marks) == 1 && n%3 == 0:
			if err = r.AbandonChange(t.Context(), marks[0].ID); err != nil {
				t.Fatalf("%s: abandon: %v", when, err)
			}
		case len(marks) == 1:
			if _, err = c.open(t, func(o *Options) { o.Password = []byte("second") }).RotateKey(t.Context()); !errors.Is(err, ErrChange) {
				t.Fatalf("%s: gone on with by another password: %v", when, err)
			}
			if _, err = r.Prune(t.Context(), hasty); !errors.Is(err, ErrChange) {
				t.Fatalf("%s: a prune beside it: %v", when, err)
			}
		}
		done, err := r.RotateKey(t.Context())
		if err != nil {
			t.Fatalf("%s: again: %v", when, err)
		}
		if done.Finished {
			finished++
		} else {
			fresh++
		}
		r = c.open(t)
		if got := r.membership().epochs(); got != 1 {
			t.Fatalf("%s, then again: epoch %d", when, got)
		}
		if err = openWith(t, c.cluster, "second"); !errors.Is(err, ErrPassword) {
			t.Fatalf("%s, then again: the other password: %v", when, err)
		}
		keys, err := r.Keys(t.Context())
		if err != nil || len(keys) != 1 || keys[0].Stores != 6 {
			t.Fatalf("%s, then again: %+v, %v", when, keys, err)
		}
		c.intact(t, r, when+", then again")
		mustVerify(t, v, r, "meanwhile")
		c.drained(t, r)
		c.intact(t, r, when+", then pruned")
		if marks, err = r.Changes(t.Context()); err != nil || len(marks) > 0 {
			t.Fatalf("%s: left: %+v, %v", when, marks, err)
		}
		if t.Failed() {
			return
		}
	}
	if finished == 0 || fresh == 0 {
		t.Fatalf("%d rotations were killed behind the publication, %d before", finished, fresh)
	}
}

// Two that rotate at once, by two passwords: one membership, and whoever is told that
// it was rotated can open it.
func TestTwoRotateAtOnce(t *testing.T) {
	w, _ := fresh(t)
	if _, err := w.open(t).AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	for n := int64(1); ; n += stride(5, 31) {
		c := w.clone()
		r := c.open(t)
		other := c.process().open(t, func(o *Options) { o.Password = []byte("second") })
		begun := false
		var second error
		c.onCalls(func(call int64) error {
			if call == n {
				begun = true
				_, second = other.RotateKey(t.Context())
			}
			return nil
		})
		_, first := r.RotateKey(t.Context())
		c.heal()
		if !begun {
			break
		}
		versions := make(map[string]bool)
		for _, m := range c.mem {
			object, err := m.Get(t.Context(), membersName(2), 0, -1, nil)
			if err == nil {
				versions[string(object)] = true
			}
		}
		if len(versions) > 1 {
			t.Fatalf("call %d: %d memberships of one version", n, len(versions))
		}
		one, two := openWith(t, c, string(password)), openWith(t, c, "second")
		if one != nil && two != nil {
			t.Fatalf("call %d: nobody opens it: %v; %v", n, one, two)
		}
		if first == nil && second == nil || first == nil && one != nil && second != nil || second == nil && two != nil && first != nil {
			t.Fatalf("call %d: told %v and %v; the passwords: %v and %v", n, first, second, one, two)
		}
	}
}

// Where fewer stores answer than any reader meets one of, nothing is rotated; a store
// that missed a rotation is told, and until then leads nobody back.
func TestRotateWithStoresAway(t *testing.T) {
	c := newCluster(3)
	c.init(t, 1, 2)
	v := randomContent(seeded(2), 60, 20)
	v.mustBackup(t, c.open(t), "b", "", nil)
	c.faulty[2].SetDown(true)
	if _, err := c.open(t).RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
		t.Fatalf("rotated on two of three stores, of which any one has to do: %v", err)
	}
	c.heal()
	for n := range 3 {
		only := c.without((n+1)%3, (n+2)%3).open(t)
		if only.membership().epochs() != 0 {
			t.Fatal("it was rotated")
		}
		mustVerify(t, v, only, "b")
	}
	// It is lost behind the key and the mark: the same command ends it, and then any
	// store is enough.
	r := c.open(t)
	c.fault(memstore.FailBefore, putting(membersPrefix, ""), 1, 2)
	if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
		t.Fatal(err)
	}
	c.heal()
	if done, err := c.open(t).RotateKey(t.Context()); err != nil || !done.Finished || done.Epoch != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	for n := range 3 {
		only := c.without((n+1)%3, (n+2)%3).open(t)
		if only.membership().epochs() != 1 {
			t.Errorf("store %d alone leads back to epoch %d", n, only.membership().epochs())
		}
		mustVerify(t, v, only, "b")
	}
}

// A rotation whose mark somebody removed after one store had taken its membership, and
// another one: processes from before follow the one whose key they can open.
func TestRotationGivenUpHalfWay(t *testing.T) {
	c, r := fresh(t)
	before := c.open(t)
	c.fault(memstore.FailBefore, putting(membersPrefix, ""), 1, 2, 3, 4, 5)
	if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
		t.Fatal(err)
	}
	c.heal()
	c.faulty[0].SetDown(true)
	other := c.open(t)
	marks, err := other.Changes(t.Context())
	if err != nil || len(marks) != 1 || marks[0].What != changeRotate || marks[0].Joining != "" {
		t.Fatalf("%+v, %v", marks, err)
	}
	if err = other.AbandonChange(t.Context(), marks[0].ID); !errors.Is(err, ErrTooFewStores) || !strings.Contains(err.Error(), "may have been published on") {
		t.Fatalf("abandoned, with a store away that may have the new membership: %v", err)
	}
	for _, m := range c.mem { // by hand
		_ = m.Delete(t.Context(), changePrefix+marks[0].ID)
	}
	mustRotate(t, other)
	c.heal()
	v := randomContent(seeded(2), 60, 20)
	for n, p := range []*Repository{before, c.open(t)} {
		id := fmt.Sprint("b", n)
		v.mustBackup(t, p, id, "", nil)
		mustVerify(t, v, other, id)
		if got, want := p.membership().keyCheck(), other.membership().keyCheck(); !bytes.Equal(got, want) {
			t.Errorf("process %d follows the rotation that was given up", n)
		}
	}
	// A prune asks every store, and this one has no membership that holds: a repair
	// gives it the one of the others.
	if _, err = other.Prune(t.Context(), hasty); !errors.Is(err, ErrTooFewStores) {
		t.Errorf("prune: %v", err)
	}
	if rep, err := other.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true}); err != nil || len(rep.Lost) > 0 {
		t.Fatalf("repair: %+v, %v", rep, err)
	}
	mustPrune(t, other)
}

// The mark of a rotation that was not the one which was published, left on a store
// that was away, stands for nothing.
func TestMarkOfAnotherRotation(t *testing.T) {
	c, r := fresh(t)
	for n := range 2 {
		other, err := r.membership().rotated(r.id, masterKey{1}, masterKey{2}, r.o.Now())
		if err != nil {
			t.Fatal(err)
		}
		mark := changeRecord{Change: ident{9}, What: changeRotate, Version: r.membership().Version, Next: other, Key: ident{8}}
		payload, err := json.Marshal(mark)
		if err != nil {
			t.Fatal(err)
		}
		object, err := r.keys.sealEnvelope(kindChange, changeName(mark.Change), payload)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			_, err = r.AddStore(t.Context(), memstore.New("more"), nil)
		} else {
			mustRotate(t, r)
		}
		if err != nil {
			t.Fatal(err)
		}
		epochs := r.membership().epochs()
		c.mem[3].Replace(changeName(mark.Change), object)
		if done := mustRotate(t, r); done.Finished || done.Epoch != epochs+1 || r.membership().epochs() != epochs+1 {
			t.Fatalf("%+v", done)
		}
		mustPrune(t, r)
	}
}

// A rotation that dies between two looks of another one at the marks: the other gives
// way, and goes on when the dead one is abandoned.
func TestRotateMeetsAnother(t *testing.T) {
	c, r := fresh(t)
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	dying := c.process()
	other := dying.open(t, func(o *Options) { o.Password = []byte("second") })
	dying.fault(memstore.FailBefore, putting(membersPrefix, ""))
	var died error
	c.before(putting(keyPrefix, ""), func() { _, died = other.RotateKey(t.Context()) })
	if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrChange) || !strings.Contains(err.Error(), "cairn repo changes --abandon") {
		t.Fatal(err)
	}
	if !errors.Is(died, ErrTooFewStores) {
		t.Fatal(died)
	}
	c.heal()
	for _, pw := range []string{string(password), "second"} {
		if err := openWith(t, c, pw); err != nil {
			t.Fatalf("%s: %v", pw, err)
		}
	}
	// Neither of the two new keys opens anything, and they are in nobody's way.
	keys, err := r.Keys(t.Context())
	if err != nil || len(keys) != 4 || keys[0].Old || keys[1].Old || !keys[2].Old || !keys[3].Old {
		t.Fatalf("%+v, %v", keys, err)
	}
	if _, err = r.RemoveKey(t.Context(), keys[2].ID, true); !errors.Is(err, ErrInvalid) {
		t.Errorf("the key of a rotation that may go on is removed: %v", err)
	}
	marks, err := r.Changes(t.Context())
	if err != nil || len(marks) != 1 {
		t.Fatalf("%+v, %v", marks, err)
	}
	if err = r.AbandonChange(t.Context(), marks[0].ID); err != nil {
		t.Fatal(err)
	}
	mustRotate(t, r)
	if keys, err = r.Keys(t.Context()); err != nil || len(keys) != 1 || keys[0].Stores != 6 {
		t.Fatalf("%+v, %v", keys, err)
	}
	if err = openWith(t, c, "second"); !errors.Is(err, ErrPassword) {
		t.Error(err)
	}
}

// A process whose rotation got to no store, or to one that was lost since, follows the
// rotation of another one behind that was given up.
func TestProcessOfAFailedRotation(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		t.Run(fmt.Sprint("adopted ", adopted), func(t *testing.T) {
			c, r := fresh(t)
			refusing := []int{1, 2, 3, 4, 5}
			if !adopted {
				refusing = append(refusing, 0)
			}
			c.fault(memstore.FailBefore, putting(membersPrefix, ""), refusing...)
			if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
				t.Fatal(err)
			}
			var lost []string
			if adopted {
				if err := r.refreshMembership(t.Context()); err != nil || r.membership().epochs() != 1 {
					t.Fatal(err)
				}
				lost = append(lost, c.memberAt(t, 0))
				c.faulty[0].SetDown(true)
			}
			c.fault(memstore.None, putting("", ""))
			other := c.open(t)
			marks, err := other.Changes(t.Context())
			if err != nil || len(marks) != 1 {
				t.Fatal(marks, err)
			}
			if err = other.AbandonChange(t.Context(), marks[0].ID, lost...); err != nil {
				t.Fatal(err)
			}
			v := randomContent(seeded(1), 60, 20)
			if adopted {
				// Nobody gave the process another key yet, and its own counts for nothing.
				if _, err = v.backup(t.Context(), r, "lapsed", "", nil); !errors.Is(err, ErrTooFewStores) || !strings.Contains(err.Error(), "start this process again") {
					t.Errorf("a backup under a key that was given up: %v", err)
				}
			}
			mustRotate(t, other)
			v.mustBackup(t, r, "b", "", nil)
			if got, want := r.membership().keyCheck(), other.membership().keyCheck(); !bytes.Equal(got, want) {
				t.Errorf("it is at epoch %d of its own", r.membership().epochs())
			}
			mustVerify(t, v, other, "b")
			mustVerify(t, v, c.open(t), "b")
		})
	}
}

// A password that is removed at any moment of a rotation by it: who is told that it
// was removed is right.
func TestPasswordRemovedWhileItRotates(t *testing.T) {
	w, r := fresh(t)
	k, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF)
	if err != nil {
		t.Fatal(err)
	}
	told, rotated := 0, 0
	for n := int64(1); ; n += stride(3, 17) {
		c := w.clone()
		r := c.process().open(t)
		other := c.open(t, func(o *Options) { o.Password = []byte("second") })
		removed := errors.New("not yet")
		c.onCalls(func(call int64) error {
			if call == n {
				_, removed = r.RemoveKey(t.Context(), k.ID, false)
			}
			return nil
		})
		_, rerr := other.RotateKey(t.Context())
		c.heal()
		if removed != nil && removed.Error() == "not yet" {
			break
		}
		one, two := openWith(t, c, string(password)), openWith(t, c, "second")
		if removed == nil {
			told++
			if rerr == nil || one != nil || !errors.Is(two, ErrPassword) {
				t.Fatalf("call %d: it is told to be removed; rotation: %v; other password: %v; this one: %v", n, rerr, one, two)
			}
		}
		if rerr == nil {
			rotated++
			if two != nil {
				t.Fatalf("call %d: it is told to have rotated, and does not open: %v", n, two)
			}
		}
		if one != nil && two != nil {
			t.Fatalf("call %d: nobody opens it: %v; %v", n, one, two)
		}
	}
	if told == 0 || rotated == 0 {
		t.Fatalf("told %d times that it was removed, %d times that it rotated", told, rotated)
	}
	// Behind the last look of the rotation it is not told that it was.
	remover := w.process().open(t)
	other := w.open(t, bySecond)
	var removed error
	w.before(putting(membersPrefix, ""), func() { _, removed = remover.RemoveKey(t.Context(), k.ID, false) })
	mustRotate(t, other)
	if !errors.Is(removed, ErrChange) || !strings.Contains(removed.Error(), "is being rotated") {
		t.Errorf("removed right before the publication: %v", removed)
	}
	if err = openWith(t, w, "second"); err != nil {
		t.Error(err)
	}
}
