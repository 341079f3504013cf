package repository

import (
	"fmt"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// manyMoved is a repository with as many packs that were compacted, all of which
// backups need, and the IDs of these.
func manyMoved(t *testing.T, n int) (c *cluster, ids []string) {
	t.Helper()
	c, r := fresh(t)
	for i := range n {
		v, id := noise(uint64(60+i), 60, 40), fmt.Sprint("v", i)
		v.backupOf(t, r, id, id+"old", "", nil)
		v.backupOf(t, r, id, id, id+"old", v.renewed(uint64(80+i), 0, 28))
		if err := r.Delete(t.Context(), id+"old"); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	mustPrune(t, r)
	if rep := mustPrune(t, r); rep.Compacted < n || c.count(forwardPrefix) == 0 {
		t.Fatalf("setting: %+v", rep)
	}
	return c, ids
}

// led checks that every forwarding that is left leads to packs that are there.
func led(t *testing.T, c *cluster, r *Repository) (left int) {
	t.Helper()
	m := c.mem[0]
	var names []string
	if err := m.List(t.Context(), forwardPrefix, func(i objstore.Info) error { names = append(names, i.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := r.readForwarding(t.Context(), r.current(), name)
		if err != nil {
			t.Fatal(err)
		}
		for _, to := range f.targets() {
			if c.count(packName(to)) == 0 {
				t.Errorf("%s leads to %s, which went: a writer that knows its chunks by the old name was not warned", name, to)
			}
		}
	}
	return len(names)
}

// More packs that moved and that nobody needs than a list has room for go in several
// prunes. What is not on a list keeps its chunks: whoever knows them by the old name
// may use them still.
func TestDeadMovesInSeveralPrunes(t *testing.T) {
	c, ids := manyMoved(t, 5)
	r := c.open(t)
	for _, id := range ids {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	mustPrune(t, r)
	before := led(t, c, r)
	if before < 5 {
		t.Fatal(before)
	}
	o := hasty
	o.listMost = 2
	dry := o
	dry.DryRun = true
	rep, err := r.Prune(t.Context(), dry)
	if err != nil || rep.Left == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	rounds := 0
	for ; rounds < 20; rounds++ {
		rep, err := r.Prune(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		left := led(t, c, r)
		if left != max(0, before-2) { // those that were listed, and no other
			t.Fatalf("round %d: %d forwardings are left of %d: %+v", rounds, left, before, rep)
		}
		if more := left > 0 || c.count(packPrefix) > 0; more != (rep.Left > 0) {
			t.Fatalf("round %d: %d forwardings and %d packs are there: %+v", rounds, left, c.count(packPrefix), rep)
		}
		if before = left; rep.Left == 0 {
			break
		}
	}
	if rounds < 2 || c.count(packPrefix)+c.count(forwardPrefix) > 0 {
		t.Fatal(rounds, c.count(packPrefix), c.count(forwardPrefix))
	}
}

// A prune that died behind the packs leaves forwardings to nothing; the next removes them.
func TestForwardingsToNothing(t *testing.T) {
	c, ids := manyMoved(t, 1)
	r := c.open(t)
	if err := r.Delete(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, r)
	p := c.process()
	r = p.open(t)
	p.fault(memstore.FailBefore, deleting(forwardPrefix))
	if _, err := r.Prune(t.Context(), hasty); err == nil || c.count(packPrefix) > 0 || c.count(forwardPrefix) == 0 {
		t.Fatal(err, c.count(packPrefix), c.count(forwardPrefix))
	}
	mustPrune(t, c.open(t))
	if n := c.count(forwardPrefix); n > 0 {
		t.Errorf("%d are left", n)
	}
}
