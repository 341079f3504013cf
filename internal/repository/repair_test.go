package repository

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// hurt damages objects of some stores: it drops, cuts and changes them, votes
// and identities excepted.
func (c *cluster) hurt(rng *rand.Rand, stores []int, share float64) (hurt int) {
	for _, n := range stores {
		m := c.mem[n]
		for _, name := range m.Names() {
			if strings.HasPrefix(name, sessionPrefix) || name == storeName || rng.Float64() > share {
				continue
			}
			hurt++
			body, err := m.Get(context.Background(), name, 0, -1, nil)
			if err != nil {
				panic(err)
			}
			switch rng.IntN(3) {
			case 0:
				m.Replace(name, nil)
				_ = m.Delete(context.Background(), name)
			case 1:
				m.Replace(name, body[:rng.IntN(len(body))])
			default:
				body[rng.IntN(len(body))] ^= 1 << rng.IntN(8)
				m.Replace(name, body)
			}
		}
	}
	return hurt
}

// Whatever two stores lost or changed comes back, so that any other two may be
// lost behind it.
func TestRepair(t *testing.T) {
	for seed := range uint64(6) {
		c, r := fresh(t)
		rng := seeded(seed)
		one := randomContent(rng, 400, 60)
		one.mustBackup(t, r, "one", "", nil)
		two := one.clone()
		two.mustBackup(t, r, "two", "one", two.change(rng, 20))
		trashed := randomContent(rng, 60, 20)
		trashed.mustBackup(t, r, "trashed", "", nil)
		if err := r.Delete(t.Context(), "trashed"); err != nil {
			t.Fatal(err)
		}
		hurt := c.hurt(rng, rng.Perm(6)[:2], 0.7)
		r = c.open(t)
		before := c.clone()
		rep, err := r.Repair(t.Context(), RepairOptions{ReadData: true})
		if err != nil || rep.OK() || len(rep.Lost) > 0 {
			t.Fatalf("seed %d: dry: %+v, %v", seed, rep, err)
		}
		for i, m := range c.mem {
			if !slices.Equal(m.Names(), before.mem[i].Names()) {
				t.Fatalf("seed %d: a dry run changed store %d", seed, i)
			}
		}
		found := 0
		rep, err = r.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
		for _, s := range rep.Stores {
			found += s.Missing + s.Damaged
		}
		if err != nil || !rep.OK() || found != hurt {
			t.Fatalf("seed %d: %d hurt: %+v, %v", seed, hurt, rep, err)
		}
		if rep, err = r.Repair(t.Context(), RepairOptions{ReadData: true}); err != nil || !rep.OK() {
			t.Fatalf("seed %d: again: %+v, %v", seed, rep, err)
		}
		check, err := r.Check(t.Context(), CheckOptions{ReadData: true})
		if err != nil || !check.OK() {
			t.Fatalf("seed %d: check: %+v, %v", seed, check, err)
		}
		for _, n := range rng.Perm(6)[:2] {
			c.faulty[n].SetDown(true)
		}
		r = c.open(t)
		mustVerify(t, one, r, "one")
		mustVerify(t, two, r, "two")
		if _, err := r.Undelete(t.Context(), "trashed"); !errors.Is(err, ErrTooFewStores) {
			t.Errorf("seed %d: undelete with four stores: %v", seed, err)
		}
		c.heal()
		if _, err := r.Undelete(t.Context(), "trashed"); err != nil {
			t.Fatal(err)
		}
		mustVerify(t, trashed, r, "trashed")
	}
}

// A store that was down gets what it is owed; what cannot be rebuilt is named,
// and nothing of it is deleted.
func TestRepairOwed(t *testing.T) {
	c, r := fresh(t)
	c.faulty[4].SetDown(true)
	v := randomContent(seeded(5), 200, 30)
	v.mustBackup(t, r, "one", "", nil)
	rep, err := r.Repair(t.Context(), RepairOptions{Apply: true})
	if err != nil || rep.OK() || rep.Stores[4].Status.State != StoreDown {
		t.Errorf("with a store down: %+v, %v", rep, err)
	}
	c.faulty[4].SetDown(false)
	rep, err = r.Repair(t.Context(), RepairOptions{Apply: true})
	if err != nil || !rep.OK() || rep.Stores[4].Mended == 0 {
		t.Errorf("when it is back: %+v, %v", rep, err)
	}
	for _, s := range r.Status(t.Context()) {
		if s.Owed != 0 {
			t.Errorf("%+v", s)
		}
	}
	// Three stores without a pack's shards are one too many.
	var lost string
	for _, n := range []int{0, 1, 2} {
		for _, name := range c.mem[n].Names() {
			if strings.HasPrefix(name, packPrefix) && (lost == "" || name == lost) {
				lost = name
				if err = c.mem[n].Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	left := c.mem[3].Names()
	rep, err = r.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
	if err != nil || rep.OK() || len(rep.Lost) == 0 || !strings.Contains(rep.Lost[0], strings.ReplaceAll(strings.TrimPrefix(lost, packPrefix), "/", "")) {
		t.Errorf("%+v, %v", rep, err)
	}
	there := c.mem[3].Names()
	if slices.ContainsFunc(left, func(name string) bool { return !slices.Contains(there, name) }) {
		t.Error("something was deleted")
	}
	// It names the backup, and the blocks that cannot be read, with --read-data and without.
	for _, o := range []RepairOptions{{}, {ReadData: true}, {Apply: true}} {
		rep, err = r.Repair(t.Context(), o)
		if err != nil || len(rep.Backups) != 1 || rep.Backups[0].Backup.ID != "one" || len(rep.Backups[0].Damaged) == 0 {
			t.Errorf("%+v: %+v, %v", o, rep, err)
		}
	}
	// A store that takes nothing is not called mended.
	if err = c.mem[5].Delete(t.Context(), lost); err == nil {
		c.faulty[5].SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if call.Op == "put" {
				return memstore.FailBefore
			}
			return memstore.None
		}})
	}
	if rep, err = r.Repair(t.Context(), RepairOptions{Apply: true}); err != nil || rep.OK() {
		t.Errorf("%+v, %v", rep, err)
	}
}

// A repair that reads data replaces no shard of stores that fail for a moment.
func TestRepairOfShardsThatAreNotRead(t *testing.T) {
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
