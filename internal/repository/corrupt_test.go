package repository

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// corruptions is how many single bytes TestCorruptions changes.
func corruptions() int {
	if n, err := strconv.Atoi(os.Getenv("CAIRN_ROUNDS")); err == nil && n > 0 {
		return 1000 * n
	}
	if testing.Short() {
		return 100
	}
	return 1000
}

// Each of 1,000 single bytes that change in what a repository keeps is found by a
// check that reads the data, in the store where it is, and mended by a repair; then
// every object is again what it was, or as good.
func TestCorruptions(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	if _, err := r.Undelete(t.Context(), "trashed"); err != nil {
		t.Fatal(err)
	}
	id := w.memberAt(t, 3)
	w.wipe(3)
	if _, err := w.open(t).ReplaceStore(t.Context(), id, w.faulty[3], nil); err != nil { // certificates
		t.Fatal(err)
	}
	r = w.open(t)
	if _, err := r.AddKey(t.Context(), []byte("another"), "", cheapKDF); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		mustPrune(t, r)
	}
	w.second.clone().mustBackup(t, r, "last", "second", nil)
	if err := r.Pin(t.Context(), "pin", "last", "a guest"); err != nil {
		t.Fatal(err)
	}
	if rep, err := r.Check(t.Context(), CheckOptions{ReadData: true}); err != nil || !rep.OK() {
		t.Fatalf("before: %+v, %v", rep, err)
	}
	left, err := w.garbage(t.Context(), r)
	if err != nil || len(left) > 0 {
		t.Fatalf("nobody misses %v, %v", left, err)
	}
	const atOnce = 8
	kinds := make(map[string]int)
	changed := 0
	for n := 0; changed < corruptions(); n++ {
		rng := rand.New(rand.NewPCG(uint64(n), 11))
		c := w.clone()
		stores := rng.Perm(6)[:2]
		hurt := make(map[int]map[string]bool)
		for range atOnce {
			s := stores[rng.IntN(2)]
			names := c.mem[s].Names()
			if rng.IntN(3) == 0 { // most bytes are theirs
				names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, packPrefix) })
			}
			name := names[rng.IntN(len(names))]
			if hurt[s][name] {
				continue
			}
			body, err := c.mem[s].Get(context.Background(), name, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(body) == 0 {
				t.Fatalf("%s is empty", name)
			}
			body[rng.IntN(len(body))] ^= 1 << rng.IntN(8)
			c.mem[s].Replace(name, body)
			if hurt[s] == nil {
				hurt[s] = make(map[string]bool)
			}
			hurt[s][name] = true
			changed++
			prefix, _, _ := strings.Cut(name, "/")
			kinds[prefix]++
		}
		r, err := Open(t.Context(), Options{Stores: c.stores(), Password: password, Timing: eager})
		if err != nil {
			t.Fatalf("seed %d: %v: %v", n, hurt, err)
		}
		rep, err := r.Check(t.Context(), CheckOptions{ReadData: true})
		if err != nil {
			t.Fatalf("seed %d: check: %v", n, err)
		}
		for s, names := range hurt {
			found := int64(0)
			for _, st := range rep.Stores {
				if st.Status.URL != c.mem[s].URL() {
					continue
				}
				found += st.Damaged + st.Missing
				if names[storeName] && st.Status.State != StoreUp {
					found = int64(len(names)) // nothing of it counts
				}
			}
			if found != int64(len(names)) {
				t.Fatalf("seed %d: store %d: %d found of %v: %+v", n, s, found, names, rep)
			}
		}
		for _, b := range rep.Backups {
			if !b.Restorable {
				t.Fatalf("seed %d: %+v", n, b)
			}
		}
		if done, rerr := r.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true}); rerr != nil || len(done.Lost) > 0 {
			t.Fatalf("seed %d: %v: repair: %+v, %v", n, hurt, done, rerr)
		}
		if rep, err = r.Check(t.Context(), CheckOptions{ReadData: true}); err != nil || !rep.OK() {
			t.Fatalf("seed %d: %v: mended: %+v, %v", n, hurt, rep, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		for s, names := range hurt {
			for name := range names {
				got, gerr := c.mem[s].Get(t.Context(), name, 0, -1, nil)
				want, werr := w.mem[s].Get(t.Context(), name, 0, -1, nil)
				if gerr != nil || werr != nil {
					t.Fatalf("seed %d: %s on %d: %v, %v", n, name, s, gerr, werr)
				}
				if string(got) != string(want) && !strings.HasSuffix(name, verdictLeaf) {
					t.Fatalf("seed %d: %s on store %d is not what it was", n, name, s)
				}
			}
		}
	}
	t.Logf("bytes changed, by kind of object: %v", kinds)
}
