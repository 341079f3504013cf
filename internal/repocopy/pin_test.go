package repocopy

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

func pinned(t *testing.T, r *repository.Repository) (ids []string) {
	t.Helper()
	pins, err := r.Pins(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		ids = append(ids, p.ID)
	}
	slices.Sort(ids)
	return ids
}

// killed is a copy that dies while it reads: nothing that it does any more reaches a
// store.
func killed(t *testing.T, a, b *site) {
	t.Helper()
	var dead atomic.Bool
	die := func(_ context.Context, c memstore.Call) error {
		if c.Op == "get" && strings.HasPrefix(c.Name, "packs/") {
			dead.Store(true)
		}
		if dead.Load() {
			return errCrash
		}
		return nil
	}
	mine, other := a.process(), b.process()
	src, dst := mine.opened(t), other.opened(t)
	wanted := all(t, src)
	mine.faults(memstore.Faults{Before: die})
	other.faults(memstore.Faults{Before: die})
	if rs, err := Run(t.Context(), src, dst, wanted, Options{By: "a test"}); err == nil && rs[0].State != Failed || !dead.Load() {
		t.Fatal(rs, err)
	}
}

// The pin of a copy that was killed goes with the first copy behind the prune of the
// destination that finds its session dead, and no other pin does.
func TestPinOfTheDead(t *testing.T) {
	a, b, _, _ := pair(t)
	src, dst := a.opened(t), b.opened(t)
	killed(t, a, b)
	if got := pinned(t, src); len(got) != 1 {
		t.Fatal(got)
	}
	// Others: an export, a copy to another repository, one that goes on.
	living, err := dst.Begin(t.Context(), repository.SessionOptions{Project: "p", VolumeID: "v", Volume: "v"})
	if err != nil {
		t.Fatal(err)
	}
	id, err := pinID(living.ID())
	if err != nil {
		t.Fatal(err)
	}
	c := newSite(t, "c", 1, 0).opened(t)
	for pin, by := range map[string]string{id: "copied to repository " + dst.Info().ID + " by a test", "00000000-0000-4000-8000-000000000000": "exported as web", "11111111-0000-4000-8000-000000000000": "copied to repository " + c.Info().ID} {
		if err := src.Pin(t.Context(), pin, "a", by); err != nil {
			t.Fatal(err)
		}
	}
	run := func(want int) {
		t.Helper()
		rs, err := Run(t.Context(), src, dst, all(t, src), Options{})
		if err != nil || rs[0].Warning != "" {
			t.Fatal(rs, err)
		}
		if got := pinned(t, src); len(got) != want {
			t.Fatal(got)
		}
	}
	run(4) // nobody knows yet that it is dead
	if err := living.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(3)
	if _, err := dst.Prune(t.Context(), repository.PruneOptions{MaxShare: 1, Silence: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), src, dst, all(t, src), Options{DryRun: true}); err != nil || len(pinned(t, src)) != 3 {
		t.Fatal("a dry run", err, pinned(t, src))
	}
	run(2)
}

// A pin that could not be removed when its copy was committed goes with the next, also
// when the copy itself went meanwhile.
func TestPinOfTheCommitted(t *testing.T) {
	for _, purged := range []bool{false, true} {
		a, b, _, _ := pair(t)
		mine := a.process()
		src, dst := mine.opened(t), b.opened(t)
		mine.faults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
			if c.Op == "put" && strings.HasPrefix(c.Name, "deleted/") {
				return errCrash
			}
			return nil
		}})
		rs, err := Run(t.Context(), src, dst, all(t, src), Options{})
		if err != nil || rs[0].State != Copied || !strings.Contains(rs[0].Warning, "stays pinned in the source: the next copy to the same repository ends that") {
			t.Fatal(rs, err)
		}
		mine.faults(memstore.Faults{})
		if got := pinned(t, src); len(got) != 2 {
			t.Fatal(got)
		}
		if purged {
			for _, id := range []string{"a", "b"} {
				if err = dst.Delete(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				if _, err = dst.Prune(t.Context(), repository.PruneOptions{MaxShare: 1, Silence: 1}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err = Run(t.Context(), src, dst, nil, Options{}); err != nil {
			t.Fatal(err)
		}
		if got := pinned(t, src); len(got) != 0 {
			t.Error(purged, got)
		}
	}
}
