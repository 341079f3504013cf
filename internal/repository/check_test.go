package repository

import (
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// A check goes on while stores are added and the key is rotated.
func TestCheckWhileTheMembershipGrows(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(9), 300, 200)
	v.mustBackup(t, r, "one", "", nil)
	rr := c.process().open(t, func(*Options) {})
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
}

// A check whose nodes are in the cache goes on while a store is added, the key rotated
// and packs compacted.
func TestCheckWhilePacksAreCompacted(t *testing.T) {
	c, h := halfDead(t)
	rr := c.process().open(t)
	h.verify(t, rr)
	r := c.open(t)
	if _, err := r.AddStore(t.Context(), memstore.New("more"), nil); err != nil {
		t.Fatal(err)
	}
	mustRotate(t, r)
	if rep := mustPrune(t, r); rep.Compacted == 0 {
		t.Fatalf("%+v", rep)
	}
	got, err := rr.Check(t.Context(), CheckOptions{ReadData: true, Publish: true})
	if err != nil || got.Beyond != 0 || len(got.Backups) == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, b := range got.Backups {
		if !b.Restorable {
			t.Error(b.Problems)
		}
	}
}
