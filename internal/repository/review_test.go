package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// Rotations that are refused for want of stores leave no key behind.
func TestReviewFailedRotationsFillKeys(t *testing.T) {
	c := newCluster(2)
	c.init(t, 1, 1)
	r := c.open(t)
	c.faulty[1].SetDown(true)
	for range 200 {
		if _, err := r.RotateKey(t.Context()); !errors.Is(err, ErrTooFewStores) {
			t.Fatal(err)
		}
	}
	c.heal()
	t.Logf("%d keys", c.count(keyPrefix))
	if err := openWith(t, c, string(password)); err != nil {
		t.Errorf("the only password, both stores there: %v", err)
	}
	if err := openWith(t, c.without(1), string(password)); err != nil {
		t.Errorf("the only password, one store: %v", err)
	}
	rep, err := r.Repair(t.Context(), RepairOptions{Apply: true})
	t.Logf("repair: %v %v", rep.Lost, err)
	if err := openWith(t, c, string(password)); err != nil {
		t.Errorf("the only password, after a repair: %v", err)
	}
}

// What one store says of a rotation that nobody can prove, a repair gives to no other.
func TestReviewRepairSpreadsMembership(t *testing.T) {
	c, r := fresh(t)
	old, fr := r.keys.sealing.all()[0], masterKey{7}
	next, err := r.membership().rotated(r.id, old, fr, r.o.Now())
	if err != nil {
		t.Fatal(err)
	}
	next.Proof = make([]byte, 32)
	payload, err := json.Marshal(next)
	if err != nil {
		t.Fatal(err)
	}
	object, err := r.keys.sealEnvelope(kindMembers, membersName(next.Version), payload)
	if err != nil {
		t.Fatal(err)
	}
	c.faulty[2].SetDown(true)
	rr := c.open(t)
	c.heal()
	c.mem[2].Replace(membersName(next.Version), object)
	rep, err := rr.Repair(t.Context(), RepairOptions{Apply: true})
	t.Logf("%+v %v", rep, err)
	if err := openWith(t, c.without(2), string(password)); err != nil {
		t.Errorf("the store that lied is left out: %v", err)
	}
}

// Nor a publication that lands late, behind the end of its rotation.
func TestReviewLatePublication(t *testing.T) {
	c, r := fresh(t)
	if _, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	var late []byte
	for i := range c.faulty {
		c.faulty[i].SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			if call.Op == "put" && strings.HasPrefix(call.Name, membersPrefix) {
				return objstore.ErrDown
			}
			return nil
		}})
	}
	other := c.open(t, func(o *Options) { o.Password = []byte("second") })
	if _, err := r.RotateKey(t.Context()); err == nil {
		t.Fatal("rotated")
	}
	c.heal()
	marks, err := other.changes(t.Context())
	if err != nil || len(marks) != 1 {
		t.Fatal(err)
	}
	all, err := r.keyRecords(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := r.resume(t.Context(), marks[0], all)
	if err != nil {
		t.Fatal(err)
	}
	if _, late, err = keys.sealMembership(marks[0].Next); err != nil {
		t.Fatal(err)
	}
	if err = other.AbandonChange(t.Context(), marks[0].Change.String()); err != nil {
		t.Fatal(err)
	}
	if err = c.mem[2].Put(t.Context(), membersName(2), late); !errors.Is(err, objstore.ErrExist) { // lands now
		t.Fatalf("a store takes the membership of a rotation that was given up: %v", err)
	}
	c.mem[2].Replace(membersName(2), late) // as on a store that breaks its promise
	one, two := openWith(t, c, string(password)), openWith(t, c, "second")
	t.Logf("rotator: %v; other: %v", one, two)
	c.faulty[2].SetDown(true)
	mine := c.open(t, func(o *Options) { o.Password = []byte("second") })
	c.heal()
	_, err = mine.Repair(t.Context(), RepairOptions{Apply: true})
	t.Log("repair", err)
	if err = openWith(t, c.without(2), "second"); err != nil {
		t.Errorf("without the store where it landed: %v", err)
	}
}

// Keys that stay where nobody may delete take the place of none that opens.
func TestReviewRotationsWithoutDelete(t *testing.T) {
	c, r := fresh(t)
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if call.Op == "delete" && strings.HasPrefix(call.Name, keyPrefix) {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	for n := range 100 {
		mustRotate(t, r)
		if err := openWith(t, c, string(password)); err != nil {
			t.Fatalf("after rotation %d, all stores there: %.300v", n+1, err)
		}
	}
}

// A process whose password was removed does not rotate the key.
func TestReviewRemovedPasswordRotates(t *testing.T) {
	c, r := fresh(t)
	k, err := r.AddKey(t.Context(), []byte("second"), "", cheapKDF)
	if err != nil {
		t.Fatal(err)
	}
	other := c.open(t, func(o *Options) { o.Password = []byte("second") })
	if _, err = r.RemoveKey(t.Context(), k.ID, false); err != nil {
		t.Fatal(err)
	}
	_, rerr := other.RotateKey(t.Context())
	one, two := openWith(t, c, string(password)), openWith(t, c, "second")
	if one != nil || two == nil {
		t.Errorf("rotate: %v; who removed: %v; who was removed: %v", rerr, one, two)
	}
}

// Under object lock every password that was added opens the repository behind any number of rotations.
func TestReviewRotationsUnderRetention(t *testing.T) {
	c := newCluster(6)
	now := time.Now()
	for _, m := range c.mem {
		m.Retains(func() time.Time { return now })
	}
	c.init(t, 4, 2)
	r := c.open(t, func(o *Options) { o.Now = func() time.Time { return now } })
	pws := []string{string(password)}
	for i := range 9 {
		pws = append(pws, fmt.Sprint("agent", i))
	}
	for n := range 8 {
		for _, pw := range pws[1:] {
			if _, err := r.AddKey(t.Context(), []byte(pw), pw, cheapKDF); err != nil {
				t.Fatal(err)
			}
		}
		bad := 0
		for _, pw := range pws {
			if err := openWith(t, c, pw); err != nil {
				bad++
				t.Logf("round %d, %s: %.200v", n, pw, err)
			}
		}
		if bad > 0 {
			t.Fatalf("behind %d rotations %d of %d passwords open nothing; %d objects under keys/ on 6 stores", n, bad, len(pws), c.count(keyPrefix))
		}
		s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", Volume: "v", Retain: 365 * 24 * time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		v := randomContent(seeded(uint64(n)), 20, 5)
		top, err := v.write(t.Context(), s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := s.Commit(t.Context(), Root{BackupID: fmt.Sprint("b", n), Name: "b", Created: now, Geometry: v.geometry(), Top: top}); err != nil || o != OutcomeCommitted {
			t.Fatal(o, err)
		}
		mustRotate(t, r)
	}
}

// One process ends a rotation, and removes the keys of older epochs, while another,
// which has ended it too, is at the next one, between its key and its publication: that
// key stays.
func TestReviewSettleRemovesTheNextKey(t *testing.T) {
	c, r := fresh(t)
	proc := c.process()
	other := proc.open(t) // the same password
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Decide: func(memstore.Call) memstore.Fault { return memstore.None }})
	}
	published := false
	var mu sync.Mutex
	var once sync.Once
	atPublication, settled := make(chan struct{}), make(chan struct{})
	second := make(chan error, 1)
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			mu.Lock()
			if call.Op == "put" && call.Name == membersName(2) {
				published = true
			}
			goes := published && call.Op == "list" && call.Name == keyPrefix
			mu.Unlock()
			if goes {
				once.Do(func() {
					go func() {
						if _, err := other.RotateKey(context.Background()); err != nil { // ends the first
							t.Error(err)
						}
						_, err := other.RotateKey(context.Background()) // the next
						second <- err
					}()
				})
				<-atPublication
			}
			return nil
		}})
	}
	var o2 sync.Once
	for _, f := range proc.faulty {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			if call.Op == "put" && call.Name == membersName(3) {
				o2.Do(func() { close(atPublication) })
				<-settled
			}
			return nil
		}})
	}
	done, err := r.RotateKey(t.Context())
	t.Logf("first: %+v, %v", done, err)
	close(settled)
	t.Logf("second: %v", <-second)
	c.heal()
	if err := openWith(t, c, string(password)); err != nil {
		t.Errorf("the only password: %v", err)
	}
	for _, name := range c.mem[0].Names() {
		if strings.HasPrefix(name, keyPrefix) || strings.HasPrefix(name, removedKeyPrefix) || strings.HasPrefix(name, membersPrefix) {
			t.Log(name)
		}
	}
}
