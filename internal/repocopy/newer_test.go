package repocopy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// A run that ends behind any of its backups leaves none out in the next.
func TestOlderOfTheRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		originals, l := map[string]repository.Backup{}, []repository.Backup{}
		for i := range rapid.IntRange(1, 8).Draw(t, "backups") {
			b := repository.Backup{ID: string(rune('a' + i)), State: repository.Available, Created: time.Unix(rapid.Int64Range(1, 9).Draw(t, "created"), 0)}
			if i > 0 && rapid.Bool().Draw(t, "incremental") {
				b.Parent = string(rune('a' + rapid.IntRange(0, i-1).Draw(t, "parent")))
			}
			originals[b.ID] = b
			l = append(l, b)
		}
		l = ordered(l, newAges(originals))
		for n := range l {
			c := &copier{originals: originals, have: map[string]repository.Backup{}}
			for _, b := range l[:n] {
				c.have[b.ID] = b
			}
			c.noteNewest()
			for _, b := range l[n:] {
				if c.older(b) {
					t.Fatalf("behind %d of %v %s is taken for older", n, l, b.ID)
				}
			}
		}
	})
}

func TestOlder(t *testing.T) {
	at := func(id, parent string, minute int) repository.Backup {
		return repository.Backup{ID: id, Parent: parent, VolumeID: "v", Created: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}
	}
	elsewhere := at("n", "", 9)
	elsewhere.VolumeID = "w"
	project := at("n", "", 9)
	project.Project = "p"
	for _, tt := range []struct {
		name      string
		originals []repository.Backup // the first is asked about
		there     []repository.Backup
		trashed   bool
		want      bool
	}{
		{"nothing there", []repository.Backup{at("b", "", 5)}, nil, false, false},
		{"a newer one", []repository.Backup{at("b", "", 5)}, []repository.Backup{at("n", "", 9)}, false, true},
		{"a newer one in the trash", []repository.Backup{at("b", "", 5)}, []repository.Backup{at("n", "", 9)}, true, true},
		{"an older one", []repository.Backup{at("b", "", 5)}, []repository.Backup{at("n", "", 4)}, false, false},
		{"of the same time", []repository.Backup{at("b", "", 5)}, []repository.Backup{at("n", "", 5)}, false, false},
		{"another volume", []repository.Backup{at("b", "", 5)}, []repository.Backup{elsewhere}, false, false},
		{"another project", []repository.Backup{at("b", "", 5)}, []repository.Backup{project}, false, false},
		{"the clock went back", []repository.Backup{at("b", "m", 5), at("m", "n", 3), at("n", "", 9)}, []repository.Backup{at("n", "", 9)}, false, false},
		{"the clock went back, and so did that of newer ones", []repository.Backup{at("b", "n", 5), at("n", "", 9), at("o", "b", 7)}, []repository.Backup{at("n", "", 9), at("o", "b", 7)}, false, false},
		{"the clock went back, and newer ones are there", []repository.Backup{at("b", "n", 5), at("n", "", 9), at("o", "b", 10)}, []repository.Backup{at("n", "", 9), at("o", "b", 10)}, false, true},
		{"the clock went back there", []repository.Backup{at("b", "", 5)}, []repository.Backup{at("n", "m", 4), at("m", "", 6)}, false, true},
		{"a parent that the source has no longer", []repository.Backup{at("b", "n", 5)}, []repository.Backup{at("n", "", 9)}, false, false},
		{"a ring", []repository.Backup{at("b", "c", 5), at("c", "b", 6)}, []repository.Backup{at("n", "", 9)}, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &copier{originals: map[string]repository.Backup{}, have: map[string]repository.Backup{}, trash: map[string]repository.Backup{}}
			for _, b := range tt.originals {
				c.originals[b.ID] = b
			}
			for _, b := range tt.there {
				if tt.trashed {
					c.trash[b.ID] = b
				} else {
					c.have[b.ID] = b
				}
			}
			c.noteNewest()
			if got := c.older(tt.originals[0]); got != tt.want {
				t.Error(got)
			}
		})
	}
}

// What the destination has deleted and pruned does not come back unasked, and all
// that is new comes, run by run.
func TestOwnRetention(t *testing.T) {
	a, b, one, _ := pair(t)
	src, dst := a.opened(t), b.opened(t)
	copied := func(o Options, want ...string) {
		t.Helper()
		rs, err := Run(t.Context(), src, dst, all(t, src), o)
		if got := inOrder(rs); err != nil || !slices.Equal(got, want) {
			t.Fatal(got, err)
		}
	}
	copied(Options{Newer: true}, "a copied", "b copied")
	if err := dst.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	copied(Options{Newer: true}, "a trash", "b present")
	for range 3 {
		if _, err := dst.Prune(t.Context(), repository.PruneOptions{MaxShare: 1, Silence: 1}); err != nil {
			t.Fatal(err)
		}
	}
	three := one.clone()
	three.write(9, 99)
	mustBackUp(t, src, "c", "b", three)
	copied(Options{Newer: true, DryRun: true}, "a older", "b present", "c copied")
	copied(Options{Newer: true}, "a older", "b present", "c copied")
	copied(Options{}, "a copied", "b present", "c present")
	if err := errors.Join(holds(t.Context(), dst, "a", one), holds(t.Context(), dst, "c", three), sound(t.Context(), dst)); err != nil {
		t.Error(err)
	}
}

// What fails for now is not passed by newer backups of its volume, behind which the
// next run would leave it out; what is damaged is.
func TestFailedComesFirst(t *testing.T) {
	a, b, one, two := pair(t)
	src, dst := a.opened(t), b.opened(t)
	wanted := all(t, src)
	session := listed(t, src)["a"].Session
	var down atomic.Bool
	for _, f := range a.faulty[1:] {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
			if down.Load() && c.Op == "get" && strings.HasPrefix(c.Name, "packs/"+session) {
				return objstore.ErrDown
			}
			return nil
		}})
	}
	down.Store(true)
	rs, err := Run(t.Context(), src, dst, wanted, Options{Newer: true})
	if got := inOrder(rs); err != nil || !slices.Equal(got, []string{"a failed", "b not_tried"}) || !strings.Contains(rs[1].Warning, "backup a of the same volume failed") {
		t.Fatal(got, err)
	}
	down.Store(false)
	fresh := a.opened(t) // which has not seen those stores fail
	rs, err = Run(t.Context(), fresh, dst, wanted, Options{Newer: true})
	if got := inOrder(rs); err != nil || !slices.Equal(got, []string{"a copied", "b copied"}) {
		t.Fatal(got, err)
	}
	if err = errors.Join(holds(t.Context(), dst, "a", one), holds(t.Context(), dst, "b", two)); err != nil {
		t.Error(err)
	}
	c := newSite(t, "c", 1, 0)
	damage(t, a, listed(t, fresh)["b"].Session)
	third := one.clone()
	third.write(1, 2)
	if err = backUp(t.Context(), fresh, web, "c", "", time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC), third, 0); err != nil {
		t.Fatal(err)
	}
	last := a.opened(t)
	rs, err = Run(t.Context(), last, c.opened(t), all(t, last), Options{Newer: true})
	if got := inOrder(rs); err != nil || !slices.Equal(got, []string{"a copied", "b failed", "c copied"}) {
		t.Error(got, err)
	}
}
