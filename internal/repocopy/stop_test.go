package repocopy

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// several are backups of three volumes, one of each, and no destination.
func several(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "a", 2, 1)
	r := s.opened(t)
	for i, id := range []string{"x", "y", "z"} {
		d := &disk{size: leaf, blocks: map[int64][]byte{}}
		for b := range int64(4) {
			d.write(b, uint32(100*i+int(b)+1))
		}
		v := web
		v.id = id
		if err := backUp(t.Context(), r, v, id, "", time.Date(2026, 5, 1, 0, i, 0, 0, time.UTC), d, 0); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func inOrder(rs []Result) (out []string) {
	for _, r := range rs {
		out = append(out, r.Backup.ID+" "+string(r.State))
	}
	return out
}

// A destination that is full is not tried again with each backup, and what was not
// tried is told.
func TestFullDestination(t *testing.T) {
	a, b := several(t), newSite(t, "b", 1, 1)
	src, dst := a.opened(t), b.opened(t)
	if _, err := Run(t.Context(), src, dst, []repository.Backup{listed(t, src)["y"]}, Options{}); err != nil {
		t.Fatal(err)
	}
	opens := 0
	b.faulty[0].SetFaults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
		if c.Op == "put" && strings.HasSuffix(c.Name, "/open") {
			opens++
		}
		return nil
	}})
	b.faulty[1].SetFaults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
		if c.Op == "put" && strings.HasPrefix(c.Name, "packs/") {
			return objstore.ErrNoSpace
		}
		return nil
	}})
	var told []string
	rs, err := Run(t.Context(), src, dst, all(t, src), Options{Done: func(r Result) { told = append(told, r.Backup.ID) }})
	if got := inOrder(rs); !slices.Equal(got, []string{"x failed", "y present", "z not_tried"}) || len(told) != 3 {
		t.Error(got, told)
	}
	if !errors.Is(err, objstore.ErrNoSpace) || !strings.HasPrefix(err.Error(), "the destination cannot be written to: ") || opens != 1 {
		t.Error(opens, err)
	}
	b.faults(memstore.Faults{})
	rs, err = Run(t.Context(), src, dst, all(t, src), Options{})
	if got := inOrder(rs); err != nil || !slices.Equal(got, []string{"x copied", "y present", "z copied"}) {
		t.Error(got, err)
	}
}

// A source of which too few stores are left fails once; one of which only some packs
// are out of reach fails for those.
func TestSourceOutOfReach(t *testing.T) {
	for _, tt := range []struct {
		name string
		down func(store int, c memstore.Call, session string) bool
		want []string
		err  string
	}{
		{"all", func(store int, c memstore.Call, _ string) bool { return store > 0 && c.Op == "get" }, []string{"x failed", "y not_tried", "z not_tried"}, "the source cannot be read: "},
		{"one backup", func(store int, c memstore.Call, session string) bool {
			return store > 0 && c.Op == "get" && strings.HasPrefix(c.Name, "packs/"+session)
		}, []string{"x failed", "y copied", "z copied"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := several(t), newSite(t, "b", 1, 0)
			src, dst := a.opened(t), b.opened(t)
			wanted := all(t, src)
			session := listed(t, src)["x"].Session
			var on atomic.Bool
			for i, f := range a.faulty {
				f.SetFaults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
					if c.Op == "get" && strings.HasPrefix(c.Name, "packs/"+session) {
						on.Store(true)
					}
					if on.Load() && tt.down(i, c, session) {
						return objstore.ErrDown
					}
					return nil
				}})
			}
			rs, err := Run(t.Context(), src, dst, wanted, Options{})
			if got := inOrder(rs); !slices.Equal(got, tt.want) {
				t.Error(got)
			}
			if (err == nil) != (tt.err == "") || err != nil && (!errors.Is(err, repository.ErrTooFewStores) || !strings.HasPrefix(err.Error(), tt.err)) {
				t.Error(err)
			}
		})
	}
}

// Somebody deletes a backup between the listing and its copy: it is told to be gone.
func TestGoneMeanwhile(t *testing.T) {
	for _, pruned := range []bool{false, true} {
		a, b := several(t), newSite(t, "b", 1, 0)
		src, dst := a.opened(t), b.opened(t)
		wanted, other := all(t, src), a.opened(t)
		if err := other.Delete(t.Context(), "y"); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if _, err := other.Prune(t.Context(), repository.PruneOptions{MaxShare: 1, Silence: 1}); pruned && err != nil {
				t.Fatal(err)
			}
			if !pruned {
				break
			}
		}
		rs, err := Run(t.Context(), src, dst, wanted, Options{Newer: true})
		if got := inOrder(rs); err != nil || !slices.Equal(got, []string{"x copied", "y gone", "z copied"}) || rs[1].Err != nil {
			t.Error(got, err, rs)
		}
		if pins, err := src.Pins(t.Context()); err != nil || len(pins) > 0 {
			t.Error(pins, err)
		}
		for _, name := range b.mem[0].Names() {
			if strings.HasSuffix(name, "/open") {
				t.Errorf("%s is left", name)
			}
		}
	}
}

// The destination is listed once, not once for each backup.
func TestListsOnce(t *testing.T) {
	a, b := several(t), newSite(t, "b", 1, 0)
	src, dst := a.opened(t), b.opened(t)
	wanted := all(t, src)
	var lists atomic.Int64
	b.faults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
		if c.Op == "list" && c.Name == "backups/" {
			lists.Add(1)
		}
		return nil
	}})
	rs, err := Run(t.Context(), src, dst, wanted, Options{})
	if got := inOrder(rs); err != nil || !slices.Equal(got, []string{"x copied", "y copied", "z copied"}) {
		t.Fatal(got, err)
	}
	if n := lists.Load(); n != 1 {
		t.Errorf("its root records were listed %d times", n)
	}
}
