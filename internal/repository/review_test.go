package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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

// A store without a record of the members stops a prune with a sentence.
func TestReviewPruneWithoutMembers(t *testing.T) {
	c, r := fresh(t)
	_ = c.mem[2].Delete(t.Context(), membersName(1))
	_, err := r.Prune(t.Context(), hasty)
	t.Log(err)
}

// A listing that fails says nothing of the packs.
func TestReviewListFails(t *testing.T) {
	c := newCluster(1)
	c.init(t, 1, 0)
	r := c.open(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	failed := false
	c.faulty[0].SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
		if !failed && call.Op == "list" && call.Name == packPrefix {
			failed = true
			return memstore.FailBefore
		}
		return memstore.None
	}})
	rep := mustCheck(t, c.open(t))
	c.heal()
	res := v.mustRun(t, c.open(t), "v", "two", "one")
	if rep.Beyond != 0 || res.BytesNew != 0 {
		t.Errorf("beyond %d of %d packs; the next incremental without a change stored %d bytes: %+v", rep.Beyond, rep.Packs, res.BytesNew, rep.Stores)
	}
}

// Nor do stores that do not answer while a check reads.
func TestReviewBlip(t *testing.T) {
	c := manyPacks(t)
	down := func(yes bool) {
		for _, f := range c.faulty {
			f.SetDown(yes)
		}
	}
	r := c.open(t)
	told := make(map[string]bool)
	rep, err := r.Check(t.Context(), CheckOptions{ReadData: true, Publish: true, Read: recorder(told), Progress: func(p CheckProgress) {
		if p.Phase == "data" {
			down(p.Done == 1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Beyond != 0 {
		t.Errorf("%d packs are beyond repair, and nothing is damaged: %q", rep.Beyond, rep.Unpublished)
	}
	if rep.OK() || len(told) >= rep.Packs {
		t.Errorf("%d of %d packs count as read, ok %v", len(told), rep.Packs, rep.OK())
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
	_, late, err = r.keys.sealMembership(marks[0].Next)
	if err != nil {
		t.Fatal(err)
	}
	if err = other.AbandonChange(t.Context(), marks[0].Change.String()); err != nil {
		t.Fatal(err)
	}
	c.mem[2].Replace(membersName(2), late) // lands now
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

// A check goes on while stores are added and the key is rotated.
func TestReviewCheckMembershipGrows(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(9), 300, 200)
	v.mustBackup(t, r, "one", "", nil)
	rr := c.process().open(t, func(*Options) {})
	f := &forwarding{}
	_ = f
	more := memstore.New("more")
	if _, err := r.AddStore(t.Context(), more, nil); err != nil {
		t.Fatal(err)
	}
	mustRotate(t, r)
	grown := false
	rep, err := rr.Check(t.Context(), CheckOptions{ReadData: true, Publish: true, Progress: func(p CheckProgress) {
		if p.Phase == "packs" && p.Done == 2 && !grown {
			grown = true
			if err := rr.catchUp(t.Context()); err != nil { // as by a forwarding or chunk of a later epoch
				t.Error(err)
			}
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Beyond != 0 {
		t.Errorf("%d beyond", rep.Beyond)
	}
	t.Log(fmt.Sprint(rep.Problems), errors.Is(err, nil))
}

// What another check found since outranks what an interrupted one remembers.
func TestReviewRecalledUnpublishes(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	read := make(map[string]bool)
	if _, err := r.Check(t.Context(), CheckOptions{ReadData: true, Read: recorder(read)}); err != nil {
		t.Fatal(err)
	}
	for _, name := range c.packNames() {
		body, err := c.mem[0].Get(t.Context(), name, 0, -1, nil)
		if err != nil || len(body) < 1<<16 {
			continue
		}
		c.lose(t, name, []int{0, 1, 2}, true)
	}
	other := mustCheck(t, c.open(t))
	on, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Before: read, Read: recorder(map[string]bool{}), Publish: true})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.open(t).readDamage(t.Context())
	if err != nil || on.OK() || d.size() != other.Beyond {
		t.Errorf("the other check found %d packs; the resumed one: clean %v, %d known now", other.Beyond, on.OK(), d.size())
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

// Reads that fail for a moment, on the only store, are no damage.
func TestReviewOneReadFails(t *testing.T) {
	c := newCluster(1)
	c.init(t, 1, 0)
	r := c.open(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	failed := 0
	rr := c.open(t)
	rep, err := rr.Check(t.Context(), CheckOptions{ReadData: true, Publish: true, Progress: func(p CheckProgress) {
		if p.Phase != "packs" {
			return
		}
		c.faulty[0].SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if _, ok := parsePackName(call.Name); ok && call.Op == "get" && failed == 0 {
				failed++
				return memstore.Down
			}
			return memstore.None
		}})
	}})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Beyond != 0 {
		t.Errorf("%d of %d packs beyond repair by %d read that failed", rep.Beyond, rep.Packs, failed)
	}
}

// A check whose nodes are in the cache goes on while a store is added, the key rotated
// and packs compacted.
func TestReviewCheckGrowsByForwarding(t *testing.T) {
	c, h := halfDead(t)
	rr := c.process().open(t)
	h.verify(t, rr)
	r := c.open(t)
	if _, err := r.AddStore(t.Context(), memstore.New("more"), nil); err != nil {
		t.Fatal(err)
	}
	mustRotate(t, r)
	rep := mustPrune(t, r)
	t.Logf("%+v", rep)
	got, err := rr.Check(t.Context(), CheckOptions{ReadData: true, Publish: true})
	t.Log(got.Problems, got.Beyond, err, errors.Is(err, nil))
	for _, b := range got.Backups {
		if !b.Restorable {
			t.Error(b.Problems)
		}
	}
}

// What was damaged is told until a check has ended, however often it is interrupted.
func TestReviewInterruptedTwice(t *testing.T) {
	c := manyPacks(t)
	names := c.packNames()
	c.lose(t, names[0], []int{1}, true)
	stop := errors.New("stop")
	read := make(map[string]bool)
	part := func(most int) (CheckReport, error) {
		n := 0
		return c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Before: maps.Clone(read), Read: func(pack string, sound bool) error {
			read[pack] = sound
			if n++; n == most {
				return stop
			}
			return nil
		}})
	}
	if _, err := part(4); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	found := false
	for _, s := range read {
		found = found || !s
	}
	if !found {
		t.Fatal("not found")
	}
	c.lose(t, names[0], []int{1}, true) // it is right again: a store that flaps
	if _, err := part(2); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	rep, err := part(-1)
	if err != nil {
		t.Fatal(err)
	}
	if rep.OK() {
		t.Errorf("clean, %d recalled, and nobody was told of the damage", rep.Recalled)
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

// A repair that reads data replaces no shard of stores that fail for a moment.
func TestReviewRepairDeletesGood(t *testing.T) {
	c := manyPacks(t)
	deleted := 0
	fail := map[int]bool{0: true, 1: true}
	for i, f := range c.faulty {
		gets := 0
		f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			_, ok := parsePackName(call.Name)
			if ok && call.Op == "delete" {
				deleted++
			}
			if ok && call.Op == "get" && fail[i] {
				if gets++; gets < 60 {
					return memstore.Down
				}
			}
			return memstore.None
		}})
	}
	rep, err := c.open(t).Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
	if deleted > 0 {
		t.Errorf("%d good shards deleted and written again; %v; %v", deleted, rep.Lost, err)
	}
	if err != nil || rep.OK() || len(rep.Unread) == 0 {
		t.Errorf("shards that nobody could read: %q, ok %v, %v", rep.Unread, rep.OK(), err)
	}
}
