package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// killedRotation is a rotation by the first password that got to no store, or to the
// given ones; there is a second password.
func killedRotation(t *testing.T, c *cluster, published ...int) {
	t.Helper()
	r := c.open(t)
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	var refusing []int
	for i := range c.mem {
		if !slices.Contains(published, i) {
			refusing = append(refusing, i)
		}
	}
	c.fault(memstore.FailBefore, putting(membersPrefix, ""), refusing...)
	if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) || !strings.Contains(err.Error(), "gone for good") {
		t.Fatal(err)
	}
	c.heal()
}

// bySecond are the options of whoever has the other password.
func bySecond(o *Options) { o.Password = []byte("second") }

// A rotation that was killed behind its mark, and then stores lost for good: whoever
// has any password gives it up by naming them, the repository goes on, gets other
// stores and is rotated; nothing of that changes when the lost ones are back, with the
// new membership on them or not.
func TestGiveUpWithoutLostStores(t *testing.T) {
	for _, tt := range []struct {
		data, parity int
		lost         []int
		published    []int
	}{
		{1, 1, []int{1}, nil},
		{1, 1, []int{1}, []int{1}},
		{4, 2, []int{1}, nil},
		{4, 2, []int{1}, []int{1}},
		{4, 2, []int{0, 5}, []int{5}},
		{4, 2, []int{0, 5}, []int{0, 5}},
	} {
		t.Run(fmt.Sprintf("%d+%d without %v published on %v", tt.data, tt.parity, tt.lost, tt.published), func(t *testing.T) {
			c := newCluster(tt.data + tt.parity)
			c.init(t, tt.data, tt.parity)
			v := randomContent(seeded(3), 100, 40)
			v.mustBackup(t, c.open(t), "b", "", nil)
			before := c.process()
			old := before.open(t)
			killedRotation(t, c, tt.published...)
			lost := make([]string, len(tt.lost))
			for i, n := range tt.lost {
				lost[i] = c.memberAt(t, n)
				c.faulty[n].SetDown(true)
				before.faulty[n].SetDown(true)
			}
			r := c.open(t, bySecond)
			marks, err := r.Changes(t.Context())
			if err != nil || len(marks) != 1 {
				t.Fatal(marks, err)
			}
			refuse := func(want error, text string, without ...string) {
				t.Helper()
				if err = r.AbandonChange(t.Context(), marks[0].ID, without...); !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
					t.Fatalf("without %v: %v", without, err)
				}
			}
			refuse(ErrTooFewStores, "--without")
			refuse(ErrTooFewStores, "--without", lost[1:]...)
			refuse(ErrInvalid, "answers", append(slices.Clone(lost), r.membership().Stores[2%tt.data].String())...)
			refuse(ErrInvalid, "no member", strings.Repeat("1", 32))
			if err = r.AbandonChange(t.Context(), marks[0].ID, lost...); err != nil {
				t.Fatal(err)
			}
			if marks, err = r.Changes(t.Context()); err != nil || len(marks) > 0 {
				t.Fatalf("left: %+v, %v", marks, err)
			}
			opened := func(when string, rotated bool) {
				t.Helper()
				for _, pw := range []string{string(password), "second"} {
					if err = openWith(t, c, pw); (err == nil) != (!rotated || pw == "second") {
						t.Fatalf("%s: %s: %v", when, pw, err)
					}
				}
			}
			opened("given up", false)
			for _, n := range tt.lost {
				c.faulty[n].SetDown(false)
				before.faulty[n].SetDown(false)
			}
			opened("the lost stores are back", false)
			r = c.open(t, bySecond)
			for _, s := range r.Status(t.Context()) {
				if slices.Contains(lost, s.ID) || s.State == StoreForeign && s.URL == "" {
					t.Errorf("%+v", s)
				}
			}
			if err = old.refreshMembership(t.Context()); err != nil || old.membership().epochs() != 0 || old.membership().Version != r.membership().Version {
				t.Errorf("a process from before, with the lost stores back: %v, version %d", err, old.membership().Version)
			}
			mustVerify(t, v, r, "b")
			// Others take their places.
			for _, id := range notUp(t, r) {
				n := len(c.mem)
				c.mem = append(c.mem, memstore.New(fmt.Sprint("new", n)))
				c.faulty = append(c.faulty, memstore.WithFaults(c.mem[n], memstore.Faults{}))
				if _, err = r.ReplaceStore(t.Context(), id, c.faulty[n], nil); err != nil {
					t.Fatal(err)
				}
			}
			opened("others have their places", false)
			v.mustBackup(t, c.open(t), "b2", "b", v.change(seeded(4), 5))
			done := mustRotate(t, r)
			if done.Finished || done.Epoch != 1 {
				t.Fatalf("%+v", done)
			}
			opened("rotated", true)
			r = c.open(t, bySecond)
			mustVerify(t, v, r, "b2")
			mustPrune(t, r)
			v.mustBackup(t, r, "b3", "b2", v.change(seeded(5), 5))
			for i, n := range tt.lost {
				c.mem = slices.Delete(c.mem, n-i, n-i+1)
				c.faulty = slices.Delete(c.faulty, n-i, n-i+1)
			}
			if rep, cerr := c.open(t, bySecond).Check(t.Context(), CheckOptions{ReadData: true}); cerr != nil || !rep.OK() {
				t.Fatalf("check: %+v, %v", rep, cerr)
			}
		})
	}
}

// Somebody gives up a rotation at any moment of it, with a store down that only the one
// who rotates reaches: it is done or given up, never both, and it can be gone on with.
func TestGiveUpAgainstRotation(t *testing.T) {
	w, r := fresh(t)
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	lost := w.memberAt(t, 5)
	giveUp := func(c *cluster) error {
		other, err := Open(t.Context(), Options{Stores: c.stores(), Password: []byte("second"), Timing: eager})
		if err != nil {
			return err // it is published
		}
		defer func() { _ = other.Close() }()
		marks, err := other.Changes(t.Context())
		if err != nil || len(marks) == 0 {
			return errors.Join(err, ErrNotFound)
		}
		return other.AbandonChange(t.Context(), marks[0].ID, lost)
	}
	tried := map[string]int{}
	for _, rotates := range []bool{true, false} {
		for n := int64(1); ; n += stride(3, 17) {
			c := w.clone()
			p := c.process()
			p.faulty[5].SetDown(true)
			r := c.open(t)
			var rotated, gaveUp error
			over := true
			if rotates {
				c.onCalls(func(call int64) error {
					if call == n {
						over, gaveUp = false, giveUp(p)
					}
					return nil
				})
				_, rotated = r.RotateKey(t.Context())
			} else {
				c.fault(memstore.FailBefore, putting(membersPrefix, ""))
				if _, rotated = r.RotateKey(t.Context()); rotated == nil {
					t.Fatal("rotated")
				}
				c.heal()
				p.onCalls(func(call int64) error {
					if call == n {
						over = false
						_, rotated = r.RotateKey(t.Context())
					}
					return nil
				})
				p.faulty[5].SetDown(true)
				gaveUp = giveUp(p)
			}
			c.heal()
			p.heal()
			if over {
				break
			}
			when := fmt.Sprintf("call %d (%v): rotated: %v, given up: %v", n, rotates, rotated, gaveUp)
			if another := r.membership().Version > 2; rotated == nil && gaveUp == nil && !another {
				t.Fatalf("%s: both", when)
			}
			tried[fmt.Sprint(rotated == nil, gaveUp == nil)]++
			if gaveUp == nil && rotated != nil {
				if err := openWith(t, c, "second"); err != nil {
					t.Fatalf("%s: %v", when, err)
				}
			}
			if rotated == nil {
				for a := range 6 {
					if err := openWith(t, c.without(a, (a+1)%6), "second"); !errors.Is(err, ErrPassword) {
						t.Fatalf("%s: the other password opens it: %v", when, err)
					}
				}
			}
			// Whichever it is, it goes on.
			again := c.open(t)
			if _, err := again.RotateKey(t.Context()); err != nil {
				marks, merr := again.Changes(t.Context())
				if merr != nil || len(marks) != 1 {
					t.Fatalf("%s: then again: %v; %v", when, err, merr)
				}
				if err = again.AbandonChange(t.Context(), marks[0].ID); err == nil {
					_, err = again.RotateKey(t.Context())
				}
				if err != nil {
					t.Fatalf("%s: then again: %v", when, err)
				}
			}
			if err := openWith(t, c, string(password)); err != nil {
				t.Fatalf("%s: then again: %v", when, err)
			}
		}
	}
	if tried["true false"] == 0 || tried["false true"] == 0 {
		t.Fatalf("outcomes: %v", tried)
	}
	t.Log(tried)
}

// Giving up that is killed at any of its calls: any password opens the repository at
// every moment, and the same command ends it.
func TestGiveUpKilled(t *testing.T) {
	w := newCluster(6)
	w.init(t, 4, 2)
	killedRotation(t, w, 2)
	for n := int64(1); ; n += stride(2, 11) {
		c := w.clone()
		c.faulty[2].SetDown(true)
		r := c.open(t, bySecond)
		marks, err := r.Changes(t.Context())
		if err != nil || len(marks) != 1 {
			t.Fatal(marks, err)
		}
		ctx, kill := context.WithCancelCause(t.Context())
		c.onCalls(func(call int64) error {
			if call < n {
				return nil
			}
			kill(errKilled)
			return errKilled
		})
		c.faulty[2].SetDown(true)
		err = r.AbandonChange(ctx, marks[0].ID, c.memberAt(t, 2))
		killed := ctx.Err() != nil
		kill(nil)
		c.heal()
		c.faulty[2].SetDown(true)
		if !killed {
			if err != nil {
				t.Fatalf("nobody killed it: %v", err)
			}
			break
		}
		when := fmt.Sprintf("killed at call %d", n)
		for _, pw := range []string{string(password), "second"} {
			if err = openWith(t, c, pw); err != nil {
				t.Fatalf("%s: %s: %v", when, pw, err)
			}
		}
		r = c.open(t, bySecond)
		left, err := r.Changes(t.Context())
		if err != nil || len(left) == 0 && c.count(changePrefix) > 3 { // of fewer it was being removed
			t.Fatalf("%s: %v, %v", when, left, err)
		}
		for _, m := range left {
			if err = r.AbandonChange(t.Context(), m.ID, c.memberAt(t, 2)); err != nil {
				t.Fatalf("%s: again: %v", when, err)
			}
		}
		c.heal()
		for _, pw := range []string{string(password), "second"} {
			if err = openWith(t, c, pw); err != nil {
				t.Fatalf("%s, then again: %s: %v", when, pw, err)
			}
		}
	}
}
