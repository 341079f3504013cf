package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// Two processes that each remove the other's password leave one that opens.
func TestEachRemovesTheOther(t *testing.T) {
	c, a := fresh(t)
	first, err := a.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.AddKey(t.Context(), []byte("second"), "night shift", cheapKDF)
	if err != nil {
		t.Fatal(err)
	}
	b := c.open(t, func(o *Options) { o.Password = []byte("second") })
	var once sync.Once
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Before: func(ctx context.Context, call memstore.Call) error {
			if call.Op == "put" && call.Name == removedKeyPrefix+second.ID {
				once.Do(func() { // behind all that a looks at first
					if _, err := b.RemoveKey(ctx, first[0].ID, false); err != nil {
						t.Error(err)
					}
				})
			}
			return nil
		}})
	}
	_, removed := a.RemoveKey(t.Context(), second.ID, false)
	c.heal()
	one, two := openWith(t, c, string(password)), openWith(t, c, "second")
	if (one == nil) == (two == nil) {
		t.Fatalf("the first password: %v; the second: %v; the removal: %v", one, two, removed)
	}
	if all, err := a.Keys(t.Context()); err != nil || len(all) != 1 || all[0].Stores != 6 {
		t.Fatalf("%+v, %v", all, err)
	}
}

// A key that too few stores have is no reason to let the last good one go.
func TestLastKeyThatStoresHave(t *testing.T) {
	c, r := fresh(t)
	first, err := r.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range c.faulty[1:] {
		f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if call.Op == "put" {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	if _, err = r.AddKey(t.Context(), []byte("second"), "", cheapKDF); !errors.Is(err, ErrTooFewStores) {
		t.Fatal(err)
	}
	c.heal()
	all, err := r.Keys(t.Context())
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v, %v", all, err)
	}
	if _, err = r.RemoveKey(t.Context(), first[0].ID, true); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "cairn repo repair") {
		t.Fatal(err)
	}
	if err = openWith(t, c, string(password)); err != nil {
		t.Fatal(err)
	}
	if _, err = r.Repair(t.Context(), RepairOptions{Apply: true}); err != nil {
		t.Fatal(err)
	}
	if _, err = r.RemoveKey(t.Context(), first[0].ID, true); err != nil {
		t.Fatal(err)
	}
	if err = openWith(t, c, "second"); err != nil {
		t.Fatal(err)
	}
}

// The sheet makes a new password also when the keys are there and damaged, which
// are then in nobody's way.
func TestRecoverFromDamagedKeys(t *testing.T) {
	c, r := fresh(t)
	for n := range maxKeys - 1 {
		if _, err := r.AddKey(t.Context(), []byte{byte(n + 1)}, "", cheapKDF); err != nil {
			t.Fatal(err)
		}
	}
	k, err := ParseSheet(r.Sheet())
	if err != nil {
		t.Fatal(err)
	}
	var old string
	for _, m := range c.mem {
		for _, name := range m.Names() {
			id, ok := strings.CutPrefix(name, keyPrefix)
			if !ok {
				continue
			}
			old = id
			object, failed := m.Get(t.Context(), name, 0, -1, nil)
			if failed != nil {
				t.Fatal(failed)
			}
			object[len(object)/2] ^= 1
			m.Replace(name, object)
		}
	}
	if err = openWith(t, c, string(password)); err == nil {
		t.Fatal("a damaged key opens")
	}
	again := c.open(t, func(o *Options) { o.Password, o.Master = nil, &k })
	if _, err = again.AddKey(t.Context(), []byte("new"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	if err = openWith(t, c, "new"); err != nil {
		t.Fatal(err)
	}
	all, err := again.Keys(t.Context())
	if err != nil || len(all) != maxKeys+1 || all[0].Stores != 6 || all[0].Damaged || !all[1].Damaged {
		t.Fatalf("%+v, %v", all, err)
	}
	// A damaged one can be removed, the only good one not.
	if _, err = again.RemoveKey(t.Context(), old, false); err != nil {
		t.Fatal(err)
	}
	if _, err = again.RemoveKey(t.Context(), all[0].ID, true); !errors.Is(err, ErrInvalid) {
		t.Fatal(err)
	}
}

// What stores make up under "keys/" keeps nobody out, whichever store it is on,
// as long as no more of them lie than may be lost.
func TestMadeUpKeys(t *testing.T) {
	for _, lies := range []int{1, 2} {
		c, r := fresh(t)
		all, err := r.Keys(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		genuine, err := c.mem[0].Get(t.Context(), keyPrefix+all[0].ID, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, m := range c.mem[:lies] {
			for n := range 3 * maxTries {
				junk := []byte(fmt.Sprint("junk ", i, n))
				if n%2 == 0 {
					junk = append([]byte(nil), genuine...) // of the right form
					junk[len(junk)-1], junk[len(junk)-2] = byte(n), byte(i)
				}
				if err := m.Put(t.Context(), fmt.Sprintf("%s0%030d%d", keyPrefix, n, i), junk); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, _ := candidates(t.Context(), &member{store: c.mem[0]}); len(got) == 0 || len(got) > maxTries {
			t.Fatalf("%d keys are read of a store that lies", len(got))
		}
		if err := openWith(t, c, string(password)); err != nil {
			t.Fatalf("%d stores lie: %v", lies, err)
		}
		if err := openWith(t, c, "wrong"); !errors.Is(err, ErrPassword) {
			t.Fatal(err)
		}
		if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
			t.Fatal(err)
		}
		if err := openWith(t, c, "second"); err != nil {
			t.Fatal(err)
		}
	}
}
