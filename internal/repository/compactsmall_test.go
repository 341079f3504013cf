package repository

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// smallPacks is a repository of n volumes, of each of which a small pack is left that a
// compaction of its own made, and what their backups have.
func smallPacks(t *testing.T, n int) (*cluster, map[string]*content) {
	t.Helper()
	c, r := fresh(t)
	vs := make(map[string]*content)
	o := hasty
	for i := range n {
		v, id := noise(uint64(60+i), 60, 40), fmt.Sprint("v", i)
		v.backupOf(t, r, id, id+"old", "", nil)
		v.backupOf(t, r, id, id, id+"old", v.renewed(uint64(80+i), 0, 22))
		if err := r.Delete(t.Context(), id+"old"); err != nil {
			t.Fatal(err)
		}
		mustPrune(t, r)
		// This one's only: nothing is merged on the way.
		if rep, err := r.Prune(t.Context(), o); err != nil || rep.Compacted != 1 {
			t.Fatalf("setting: %+v, %v", rep, err)
		}
		vs[id] = v
	}
	return c, vs
}

// made returns the packs that compactions made: those that forwardings lead to.
func made(t *testing.T, c *cluster, r *Repository) int {
	t.Helper()
	packs := make(map[string]bool)
	for _, name := range c.mem[0].Names() {
		if _, _, ok := parseForwardName(name); !ok {
			continue
		}
		f, err := r.readForwarding(t.Context(), r.current(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range f.targets() {
			packs[packName(to)] = true
		}
	}
	return len(packs)
}

// Small packs that compactions made become one when there are several that fill it, and
// no forwarding more than there were.
func TestCompactMergesSmallPacks(t *testing.T) {
	c, vs := smallPacks(t, 4)
	r := c.open(t)
	before, packs := c.count(forwardPrefix), made(t, c, r)
	if packs != 4 {
		t.Fatal(packs)
	}
	dry := hasty
	dry.DryRun = true
	rep, err := r.Prune(t.Context(), dry)
	if err != nil || rep.Compacted != 4 || rep.Moved < smallPack {
		t.Fatalf("%+v, %v", rep, err)
	}
	off := hasty
	off.Compact = 1
	if rep, err = r.Prune(t.Context(), off); err != nil || rep.Compacted != 0 {
		t.Fatalf("without compaction: %+v, %v", rep, err)
	}
	if rep, err = r.Prune(t.Context(), hasty); err != nil || rep.Compacted != 4 || len(rep.Problems) > 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if got := made(t, c, r); got != 1 || c.count(forwardPrefix) != before {
		t.Errorf("%d packs, %d forwardings of %d", got, c.count(forwardPrefix), before)
	}
	for _, id := range slices.Sorted(maps.Keys(vs)) {
		mustVerify(t, vs[id], c.open(t), id)
	}
	for range 2 {
		if rep, err = c.open(t).Prune(t.Context(), hasty); err != nil || rep.Compacted != 0 {
			t.Errorf("again: %+v, %v", rep, err)
		}
	}
	check, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || !check.OK() {
		t.Errorf("check: %+v, %v", check, err)
	}
	c.drained(t, c.open(t))
	for id, v := range vs {
		mustVerify(t, v, c.open(t), id)
	}
}

// A few stay as they are, and so do small packs of backups: each would leave a
// forwarding behind.
func TestCompactLeavesSmallPacks(t *testing.T) {
	c, _ := smallPacks(t, 3)
	r := c.open(t)
	for i := range 6 {
		v := noise(uint64(200+i), 40, 30)
		v.backupOf(t, r, fmt.Sprint("w", i), fmt.Sprint("w", i), "", nil)
	}
	for range 2 {
		if rep, err := r.Prune(t.Context(), hasty); err != nil || rep.Compacted != 0 {
			t.Fatalf("%+v, %v", rep, err)
		}
	}
}
