package repository

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// wipe makes the store at a place an empty one, as a new disk in the old place is.
func (c *cluster) wipe(n int) {
	c.mem[n] = memstore.New(c.mem[n].URL()[len("mem:"):])
	c.faulty[n] = memstore.WithFaults(c.mem[n], memstore.Faults{})
}

// at is the store as it misbehaves.
func (c *cluster) at(m *memstore.Store) *memstore.Faulty { return c.faulty[slices.Index(c.mem, m)] }

// without returns the cluster's stores but some, which are gone.
func (c *cluster) without(gone ...int) *cluster {
	out := c.clone()
	for _, n := range gone {
		out.mem[n] = memstore.New("gone")
		out.faulty[n] = memstore.WithFaults(out.mem[n], memstore.Faults{})
		out.faulty[n].SetDown(true)
	}
	return out
}

// memberAt is the ID of the store at a place.
func (c *cluster) memberAt(tb testing.TB, n int) string {
	tb.Helper()
	met := meetOne(tb.Context(), c.mem[n])
	if met.object == nil {
		tb.Fatal(met.err)
	}
	return met.record.Store.String()
}

// notUp returns the IDs of the members of which no store is up.
func notUp(t *testing.T, r *Repository) []string {
	t.Helper()
	var out []string
	for _, s := range r.Status(t.Context()) {
		if s.ID != "" && s.State != StoreUp {
			out = append(out, s.ID)
		}
	}
	return out
}

// Two stores are lost and replaced, one in the same place; then any other two.
func TestReplaceStores(t *testing.T) {
	w := newWorld(t)
	ids := []string{w.memberAt(t, 1), w.memberAt(t, 4)}
	w.wipe(1)
	w.wipe(4)
	r := w.open(t)
	missing := notUp(t, r)
	slices.Sort(ids)
	slices.Sort(missing)
	if !slices.Equal(ids, missing) {
		t.Fatalf("missing %v, want %v", missing, ids)
	}
	if _, err := r.Prune(t.Context(), hasty); !errors.Is(err, ErrTooFewStores) {
		t.Fatalf("a prune without two stores: %v", err)
	}
	done, err := r.ReplaceStore(t.Context(), ids[0], w.faulty[1], nil)
	if err != nil || done.Lost != ids[0] || done.Joined != w.memberAt(t, 1) {
		t.Fatalf("%+v, %v", done, err)
	}
	w.intact(t, r, "one replaced")
	// The other store comes to another place.
	w.mem = append(w.mem, memstore.New("new"))
	w.faulty = append(w.faulty, memstore.WithFaults(w.mem[6], memstore.Faults{}))
	if done, err = r.ReplaceStore(t.Context(), ids[1], w.faulty[6], nil); err != nil || len(done.Repair.Lost) > 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	w.cluster = &cluster{slices.Delete(w.mem, 4, 5), slices.Delete(w.faulty, 4, 5)}
	again := w.open(t)
	rep, err := again.Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || !rep.OK() {
		t.Fatalf("check: %+v, %v", rep, err)
	}
	w.intact(t, again, "both replaced")
	for a := range 6 {
		for b := range a {
			other := &world{cluster: w.without(a, b), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
			other.intact(t, other.open(t), fmt.Sprintf("and %d and %d lost", a, b))
		}
	}
	if m := notUp(t, w.open(t)); len(m) > 0 {
		t.Fatalf("still missing: %v", m)
	}
	w.drained(t, r)
	w.intact(t, r, "pruned")
	v := w.second.clone()
	v.mustBackup(t, r, "next", "second", v.change(seeded(3), 5))
	if b, err := r.Backup(t.Context(), "next"); err != nil || !b.Incremental {
		t.Fatalf("%+v, %v", b, err)
	}
	mustVerify(t, v, w.open(t), "next")
}

// A store that still answers is replaced; when it comes back it is nobody.
func TestReplaceStoreThatAnswers(t *testing.T) {
	w := newWorld(t)
	r, other := w.open(t), w.open(t)
	id := w.memberAt(t, 2)
	to := memstore.New("new")
	if _, err := r.ReplaceStore(t.Context(), id, to, nil); err != nil {
		t.Fatal(err)
	}
	w.intact(t, r, "replaced")
	if _, err := w.mem[2].Stat(t.Context(), storeName); !errors.Is(err, objstore.ErrNotExist) {
		t.Fatalf("the old store still says who it was: %v", err)
	}
	// A process that was there before and was not given the new store.
	v := w.second.clone()
	v.mustBackup(t, other, "next", "second", v.change(seeded(3), 5))
	if got := other.membership().Version; got != 2 {
		t.Fatalf("membership %d", got)
	}
	if _, err := other.Prune(t.Context(), hasty); !errors.Is(err, ErrTooFewStores) {
		t.Fatalf("a prune without the new store: %v", err)
	}
	// The old store, as it was before, comes back in its place.
	back := w.clone()
	back.mem[2] = newWorld(t).mem[2]
	w.mem[2], w.faulty[2] = to, memstore.WithFaults(to, memstore.Faults{})
	all := w.open(t)
	mustVerify(t, v, all, "next")
	w.drained(t, all)
	w.intact(t, all, "pruned")
}

func TestReplaceRefusals(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	full := memstore.New("full")
	full.Replace("x", nil)
	foreign := newCluster(6)
	foreign.init(t, 4, 2)
	id := w.memberAt(t, 2)
	for what, tt := range map[string]struct {
		lost string
		to   objstore.Store
		want error
		text string
	}{
		"not empty":     {id, full, ErrNotEmpty, "it holds x"},
		"another's":     {id, foreign.mem[0], ErrNotEmpty, "belongs to repository"},
		"a member":      {id, w.mem[3], ErrNotEmpty, "is a member of this repository already"},
		"itself":        {id, w.mem[2], ErrNotEmpty, "is a member of this repository already"},
		"no ID":         {"mem:2", memstore.New("a"), ErrInvalid, "is not an ID"},
		"no member":     {strings.Repeat("0", 32), memstore.New("b"), ErrNotFound, "is no member"},
		"not condition": {id, overwriting{memstore.New("c")}, nil, "cannot be pruned safely"},
	} {
		if _, err := r.ReplaceStore(t.Context(), tt.lost, tt.to, nil); tt.want != nil && !errors.Is(err, tt.want) || err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", what, err)
		}
	}
	one := newCluster(1)
	one.init(t, 1, 0)
	only := memstore.New("only")
	if _, err := one.open(t).ReplaceStore(t.Context(), one.memberAt(t, 0), only, nil); !errors.Is(err, ErrTooFewStores) || len(only.Names()) > 0 {
		t.Errorf("the only store: %v, and %v", err, only.Names())
	}
	if _, err := one.open(t).AddStore(t.Context(), only, nil); err != nil {
		t.Errorf("one more than one: %v", err)
	}
	both := (&cluster{mem: []*memstore.Store{one.mem[0], only}}).process()
	if _, err := both.open(t).ReplaceStore(t.Context(), one.memberAt(t, 0), memstore.New("next"), nil); !errors.Is(err, ErrTooFewStores) {
		t.Errorf("a store whose packs no other has: %v", err)
	}
	if l, err := r.Changes(t.Context()); err != nil || len(l) > 0 {
		t.Errorf("marks are left: %+v, %v", l, err)
	}
	w.intact(t, r, "refused")
	mustPrune(t, r)
}

// A replacement that is killed at any of its calls is finished by the same
// command, or abandoned; meanwhile no prune goes on, and backups do.
func TestReplaceKilled(t *testing.T) {
	w := newWorld(t)
	id := w.memberAt(t, 1)
	for _, alive := range []bool{false, true} {
		for n := int64(1); ; n += stride(13, 61) {
			c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
			if !alive {
				c.wipe(1)
			}
			r := c.open(t)
			to := memstore.New("new")
			same := !alive && n%2 == 0
			if same {
				to = c.mem[1]
			} else {
				c.mem = append(c.mem, to)
				c.faulty = append(c.faulty, memstore.WithFaults(to, memstore.Faults{}))
			}
			ctx, kill := context.WithCancelCause(t.Context())
			c.onCalls(func(call int64) error {
				if call < n {
					return nil
				}
				kill(errKilled)
				return errKilled
			})
			_, err := r.ReplaceStore(ctx, id, c.at(to), nil)
			killed := ctx.Err() != nil
			kill(nil)
			c.heal()
			when := fmt.Sprintf("alive %v, killed at call %d", alive, n)
			if !killed {
				if err != nil {
					t.Fatalf("the replacement that nobody killed: %v", err)
				}
				break
			}
			if !same && !alive {
				c.faulty[1].SetDown(true)
			}
			r = c.open(t)
			c.intact(t, r, when)
			v := w.second.clone()
			v.mustBackup(t, r, "meanwhile", "second", v.change(seeded(3), 4))
			if n%3 == 0 {
				abandoned(t, to, r, when)
			}
			if _, err := r.ReplaceStore(t.Context(), id, to, nil); err != nil {
				t.Fatalf("%s: again: %v", when, err)
			}
			r = c.open(t)
			if rep, err := r.Repair(t.Context(), RepairOptions{Apply: true}); err != nil || len(rep.Lost) > 0 {
				t.Fatalf("%s: repair: %+v, %v", when, rep, err)
			}
			c.intact(t, r, when+", then finished")
			mustVerify(t, v, r, "meanwhile")
			if same {
				r = c.open(t)
				c.drained(t, r)
				c.intact(t, r, when+", then pruned")
				continue
			}
			c.cluster = &cluster{slices.Delete(slices.Clone(c.mem), 1, 2), slices.Delete(slices.Clone(c.faulty), 1, 2)}
			r = c.open(t)
			c.drained(t, r)
			c.intact(t, r, when+", then pruned")
			mustVerify(t, v, r, "meanwhile")
			if t.Failed() {
				return
			}
		}
	}
}

// abandoned gives a change up whose process is gone, and what it had put on the
// new store.
func abandoned(t *testing.T, to *memstore.Store, r *Repository, when string) {
	t.Helper()
	l, err := r.Changes(t.Context())
	if err != nil || len(l) > 1 {
		t.Fatalf("%s: changes: %+v, %v", when, l, err)
	}
	if len(l) == 0 || r.membership().Version > 1 {
		return
	}
	if err := r.AbandonChange(t.Context(), l[0].ID); err != nil {
		t.Fatalf("%s: abandon: %v", when, err)
	}
	for _, name := range to.Names() {
		if err := to.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

// Two that replace at once: one at most begins, or each gives up for the other.
func TestTwoReplaceAtOnce(t *testing.T) {
	w := newWorld(t)
	a, b := w.memberAt(t, 1), w.memberAt(t, 2)
	for n := int64(1); ; n += stride(3, 17) {
		c := w.clone()
		r, other := c.open(t), c.open(t)
		begun := false
		var second error
		c.onCalls(func(call int64) error {
			if call == n {
				begun = true
				_, second = other.ReplaceStore(t.Context(), b, memstore.New("b"), nil)
			}
			return nil
		})
		_, first := r.ReplaceStore(t.Context(), a, memstore.New("a"), nil)
		c.heal()
		if !begun {
			break
		}
		for _, err := range []error{first, second} {
			if err != nil && !errors.Is(err, ErrChange) && !errors.Is(err, ErrTooFewStores) && !errors.Is(err, objstore.ErrNotExist) && !errors.Is(err, ErrForeign) {
				t.Fatalf("call %d: %v", n, err)
			}
		}
		versions := make(map[string]map[string]bool)
		for _, m := range c.mem {
			for _, name := range m.Names() {
				if strings.HasPrefix(name, membersPrefix) {
					body, err := m.Get(t.Context(), name, 0, -1, nil)
					if err != nil {
						t.Fatal(err)
					}
					if versions[name] == nil {
						versions[name] = make(map[string]bool)
					}
					versions[name][string(body)] = true
				}
			}
		}
		for name, bodies := range versions {
			if len(bodies) > 1 {
				t.Fatalf("call %d: %s is not one record: first %v, second %v", n, name, first, second)
			}
		}
	}
}

// A prune at any call of a replacement, and a replacement at any call of a prune.
func TestReplaceAgainstPrune(t *testing.T) {
	w := newWorld(t)
	id := w.memberAt(t, 1)
	for _, pruneFirst := range []bool{false, true} {
		for n := int64(1); ; n += stride(17, 71) {
			c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
			r, other := c.open(t), c.open(t)
			to := memstore.New("new")
			replace := func(r *Repository) error { _, err := r.ReplaceStore(t.Context(), id, to, nil); return err }
			prune := func(r *Repository) error { _, err := r.Prune(t.Context(), hasty); return err }
			first, second := replace, prune
			if pruneFirst {
				first, second = prune, replace
			}
			begun := false
			var failed error
			c.onCalls(func(call int64) error {
				if call == n {
					begun = true
					failed = second(other)
				}
				return nil
			})
			err := first(r)
			c.heal()
			if !begun {
				break
			}
			if replaced := map[bool]error{false: err, true: failed}[pruneFirst]; replaced != nil {
				t.Fatalf("call %d: the replacement: %v", n, replaced)
			}
			c.mem[1], c.faulty[1] = to, memstore.WithFaults(to, memstore.Faults{})
			r = c.open(t)
			when := fmt.Sprintf("prune first %v, call %d (prune: %v, %v)", pruneFirst, n, err, failed)
			c.intact(t, r, when)
			v := w.second.clone()
			v.mustBackup(t, r, "next", "second", v.change(seeded(3), 4))
			c.drained(t, r)
			c.intact(t, r, when+", then pruned")
			mustVerify(t, v, r, "next")
			if t.Failed() {
				return
			}
		}
	}
}

// A writer across a replacement: it commits or fails as a whole, and what it
// committed survives further losses behind a repair.
func TestWriterAcrossReplacement(t *testing.T) {
	w := newWorld(t)
	id := w.memberAt(t, 1)
	for n := int64(1); ; n += stride(5, 31) {
		c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
		r, other := c.open(t), c.open(t)
		to := memstore.New("new")
		begun := false
		var failed error
		c.onCalls(func(call int64) error {
			if call == n {
				begun = true
				_, failed = other.ReplaceStore(t.Context(), id, to, nil)
			}
			return nil
		})
		v := w.second.clone()
		o, err := v.backup(t.Context(), r, "next", "second", v.change(seeded(3), 6))
		c.heal()
		if !begun {
			break
		}
		if failed != nil {
			t.Fatalf("call %d: replace: %v", n, failed)
		}
		c.mem[1], c.faulty[1] = to, memstore.WithFaults(to, memstore.Faults{})
		r = c.open(t)
		c.intact(t, r, fmt.Sprintf("call %d", n))
		if o != OutcomeCommitted {
			t.Fatalf("call %d: %v, %v: one store less is no reason to fail", n, o, err)
		}
		if rep, err := r.Repair(t.Context(), RepairOptions{Apply: true}); err != nil || !rep.OK() {
			t.Fatalf("call %d: %+v, %v", n, rep, err)
		}
		a, b := rand.IntN(6), rand.IntN(6)
		lost := c.without(a, b)
		mustVerify(t, v, lost.open(t), "next")
		c.drained(t, r)
		mustVerify(t, v, r, "next")
	}
}

// Stores are added; old packs stay where they are, new ones are spread over all.
func TestAddStores(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	for n := range 2 {
		m := memstore.New(fmt.Sprint("added ", n))
		w.mem = append(w.mem, m)
		w.faulty = append(w.faulty, memstore.WithFaults(m, memstore.Faults{}))
		if done, err := r.AddStore(t.Context(), w.faulty[6+n], nil); err != nil || done.Joined == "" || !done.Repair.OK() {
			t.Fatalf("%+v, %v", done, err)
		}
		w.intact(t, r, "added")
	}
	packs := make([]int, 8)
	var last *content
	for n := range 24 {
		last = randomContent(seeded(uint64(n)), 60, 20)
		last.mustBackup(t, r, fmt.Sprint("b", n), "", nil)
	}
	for i, m := range w.mem {
		for _, name := range m.Names() {
			if id, ok := parsePackName(name); ok && id.Epoch() > 0 {
				packs[i]++
			}
		}
	}
	for i, n := range packs {
		if n == 0 {
			t.Errorf("store %d got no new pack: %v", i, packs)
		}
	}
	again := w.open(t)
	w.intact(t, again, "opened again")
	for a := range 8 {
		for b := range a {
			lost := w.without(a, b)
			mustVerify(t, last, lost.open(t), "b23")
		}
	}
	w.drained(t, again)
	w.intact(t, again, "pruned")
	if rep, err := again.Check(t.Context(), CheckOptions{ReadData: true}); err != nil || !rep.OK() {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// When every store has been replaced, one after the other, nobody is left who
// voted for the backups: certificates prove them.
func TestReplaceEveryStore(t *testing.T) {
	w := newWorld(t)
	for n := range 6 {
		r := w.open(t)
		id := w.memberAt(t, n)
		w.wipe(n)
		if n%2 == 0 {
			r = w.open(t)
		}
		if done, err := r.ReplaceStore(t.Context(), id, w.faulty[n], nil); err != nil || len(done.Repair.Lost) > 0 {
			t.Fatalf("store %d: %+v, %v", n, done, err)
		}
		w.intact(t, w.open(t), fmt.Sprintf("%d replaced", n+1))
	}
	r := w.open(t)
	w.drained(t, r)
	w.intact(t, r, "pruned")
}

// A prune that runs while a store is added must not miss it. Without the mark: the
// new store is filled; the prune puts its list on the old one and looks for the
// last time; the new store becomes a member; a writer that reaches only the new one
// sees no list, and uses again what the prune then deletes.
func TestAddStoreAgainstPrune(t *testing.T) {
	c := newCluster(1)
	c.init(t, 1, 0)
	cache := t.TempDir()
	v := randomContent(seeded(1), 100, 30)
	r := c.open(t, func(o *Options) { o.CacheDir = cache })
	v.mustBackup(t, r, "old", "", nil)
	if err := errors.Join(r.Delete(t.Context(), "old"), r.index.close()); err != nil {
		t.Fatal(err)
	}
	r.index = nil
	mustPrune(t, c.open(t)) // it has aged

	pruning := memstore.WithFaults(c.mem[0], memstore.Faults{})
	reached, release, pruned := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var once sync.Once
	pruning.SetFaults(memstore.Faults{Before: func(_ context.Context, k memstore.Call) error {
		if k.Op == "delete" && strings.HasPrefix(k.Name, packPrefix) {
			once.Do(func() { close(reached); <-release })
		}
		return nil
	}})
	pruner := (&cluster{c.mem, []*memstore.Faulty{pruning}}).open(t)
	c.faulty[0].SetFaults(memstore.Faults{Before: func(_ context.Context, k memstore.Call) error {
		if k.Op == "put" && k.Name == membersName(2) {
			go func() {
				_, err := pruner.Prune(context.Background(), hasty)
				pruned <- err
			}()
			select {
			case <-reached:
			case err := <-pruned:
				pruned <- err
			}
		}
		return nil
	}})
	to := memstore.New("new")
	adding := c.open(t)
	if _, err := adding.AddStore(t.Context(), to, nil); err != nil {
		t.Fatal(err)
	}
	// A writer that reaches the old store only when it has the lists it needs.
	old := memstore.WithFaults(c.mem[0], memstore.Faults{Before: func(_ context.Context, k memstore.Call) error {
		if k.Op == "put" && strings.HasSuffix(k.Name, "/"+openLeaf) {
			return objstore.ErrDown
		}
		return nil
	}})
	writing := (&cluster{[]*memstore.Store{c.mem[0], to}, []*memstore.Faulty{old, memstore.WithFaults(to, memstore.Faults{})}}).open(t, func(o *Options) { o.CacheDir = cache })
	if o, err := v.backup(t.Context(), writing, "new", "", nil); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	close(release)
	if err := <-pruned; !errors.Is(err, ErrChange) && !errors.Is(err, ErrEnded) {
		t.Errorf("the prune: %v", err)
	}
	both := &cluster{mem: []*memstore.Store{c.mem[0], to}}
	mustVerify(t, v, both.process().open(t), "new")
}

// 11. Zombie and new store: all stores abort a session; one is replaced; its writer
// wakes up and votes.
func TestTrace11ZombieAndNewStore(t *testing.T) {
	w := newWorld(t)
	r, other := w.open(t), w.open(t)
	v := w.second.clone()
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", Volume: "disk", ParentBackup: "second"})
	if err != nil {
		t.Fatal(err)
	}
	top, err := v.write(t.Context(), s, v.change(seeded(4), 3))
	if err != nil {
		t.Fatal(err)
	}
	if d, ferr := other.FenceSession(t.Context(), s.ID()); ferr != nil || d != Aborted {
		t.Fatal(d, ferr)
	}
	for n := range 2 {
		id := w.memberAt(t, n)
		w.wipe(n)
		if _, err = w.open(t).ReplaceStore(t.Context(), id, w.faulty[n], nil); err != nil {
			t.Fatal(err)
		}
	}
	o, err := s.Commit(t.Context(), Root{BackupID: "zombie", Geometry: v.geometry(), Top: top})
	if o == OutcomeCommitted || err == nil {
		t.Fatalf("the zombie committed: %v, %v", o, err)
	}
	r = w.open(t)
	if _, err := r.Image(t.Context(), "zombie"); err == nil {
		if b, berr := r.Backup(t.Context(), "zombie"); berr != nil || b.State == Available {
			t.Fatalf("the zombie lives: %+v, %v", b, berr)
		}
	}
	w.drained(t, r)
	w.intact(t, r, "pruned")
}

// 13. Votes gathered across a replacement: of two votes that are counted one is on
// a store that is not the one any more that it was.
func TestTrace13VotesAcrossAReplacement(t *testing.T) {
	c := newCluster(3)
	c.init(t, 1, 2)
	r := c.open(t)
	v := randomContent(seeded(1), 40, 10)
	id, to := c.memberAt(t, 0), memstore.New("new")
	var replaced error
	var once sync.Once
	voted := make(chan struct{})
	for n, f := range c.faulty {
		f.SetFaults(memstore.Faults{Before: func(ctx context.Context, k memstore.Call) error {
			if k.Op != "put" || !strings.HasSuffix(k.Name, "/"+verdictLeaf) {
				return nil
			}
			switch n {
			case 0: // votes at once, and is lost then
				once.Do(func() { close(voted) })
				return nil
			case 1: // votes when the first has been replaced
				<-voted
				for range 200 {
					if _, err := c.mem[0].Stat(ctx, k.Name); err == nil {
						break
					}
					time.Sleep(time.Millisecond)
				}
				_, replaced = c.process().open(t).ReplaceStore(ctx, id, to, nil)
				return nil
			default:
				return objstore.ErrDown
			}
		}})
	}
	o, err := v.backup(t.Context(), r, "b", "", nil)
	if replaced != nil {
		t.Fatal(replaced)
	}
	if o == OutcomeCommitted || err == nil {
		t.Fatalf("told committed with one vote that counts: %v, %v", o, err)
	}
}

// 14. A prune that survives a replacement: it looked for sessions on stores that
// were replaced meanwhile, where a writer had opened.
func TestTrace14PruneSurvivesAReplacement(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	listed := 0
	var ids []string
	for n := range 2 {
		ids = append(ids, w.memberAt(t, n))
	}
	var mu sync.Mutex
	var next *content
	done := false
	for _, f := range w.faulty {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, k memstore.Call) error {
			mu.Lock()
			defer mu.Unlock()
			if k.Op == "list" && k.Name == sessionPrefix {
				listed++
			}
			if done || listed <= 12 { // P3 and P4 have looked; P6 is looking
				return nil
			}
			done = true
			plain := func() *Repository { return w.process().open(t) }
			next = w.gone.clone()
			next.mustBackup(t, plain(), "next", "gone", next.change(seeded(8), 3))
			for n, id := range ids {
				w.mem[n] = memstore.New(strconv.Itoa(n))
				if _, err := plain().ReplaceStore(context.Background(), id, w.mem[n], nil); err != nil {
					t.Error(err)
				}
			}
			return nil
		}})
	}
	_, err := r.Prune(t.Context(), hasty)
	if !done {
		t.Fatal("the prune did not come to its second listing")
	}
	if err == nil {
		t.Error("a prune went on past a replacement")
	}
	w.cluster = w.process()
	again := w.open(t)
	mustVerify(t, next, again, "next")
	w.drained(t, again)
	mustVerify(t, next, again, "next")
	w.intact(t, again, "pruned")
}

// A mark that no store has whole is in the way of everything, and can be removed by
// its ID; one that is finished and was left on a store is in nobody's way, and goes
// with the next prune.
func TestMarksThatAreLeft(t *testing.T) {
	w := newWorld(t)
	r := w.open(t)
	id, err := newIdent()
	if err != nil {
		t.Fatal(err)
	}
	c, err := r.beginChange(t.Context(), changeRecord{Change: id, What: changeAdd, Joining: ident{1}})
	if err != nil {
		t.Fatal(err)
	}
	name := changeName(c.Change)
	mark, err := w.mem[0].Get(t.Context(), name, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range w.mem {
		m.Replace(name, []byte("damaged"))
	}
	for what, err := range map[string]error{
		"prune": second(r.Prune(t.Context(), hasty)), "add a store": second(r.AddStore(t.Context(), memstore.New("new"), nil)),
	} {
		if err == nil || !strings.Contains(err.Error(), "changes --abandon "+c.Change.String()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := r.AbandonChange(t.Context(), strings.Repeat("1", 32)); !errors.Is(err, ErrNotFound) {
		t.Errorf("abandon another one: %v", err)
	}
	if err := r.AbandonChange(t.Context(), c.Change.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddStore(t.Context(), memstore.New("added"), nil); err != nil {
		t.Fatal(err)
	}
	w.mem[3].Replace(name, mark) // it was down when the change ended
	mustPrune(t, r)
	if _, err := w.mem[3].Stat(t.Context(), name); !errors.Is(err, objstore.ErrNotExist) {
		t.Errorf("the finished mark is still there: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A damaged vote is not made an abort because the one store with the root record
// did not list it in time.
func TestRepairDoesNotAbortWhatItDidNotSee(t *testing.T) {
	c := newCluster(2)
	none := 0
	if _, err := Init(t.Context(), InitOptions{Stores: c.stores(), Data: 1, Parity: 1, Losses: &none, Password: password, KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	refuse := func(prefix, suffix string) memstore.Faults {
		return memstore.Faults{Before: func(_ context.Context, k memstore.Call) error {
			if k.Op == "put" && strings.HasPrefix(k.Name, prefix) && strings.HasSuffix(k.Name, suffix) {
				return objstore.ErrNoSpace
			}
			return nil
		}}
	}
	c.faulty[0].SetFaults(refuse(sessionPrefix, "/"+verdictLeaf)) // the vote is on 1 only
	c.faulty[1].SetFaults(refuse(rootPrefix, ""))                 // the root record on 0 only
	r := c.open(t)
	v := randomContent(seeded(1), 40, 10)
	s, err := r.Begin(t.Context(), SessionOptions{VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o, cerr := s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top}); o == OutcomeFailed {
		t.Fatal(o, cerr)
	}
	name := verdictName(must(parseIdent(s.ID())))
	vote, err := c.mem[1].Get(t.Context(), name, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	vote[len(vote)/2] ^= 1
	c.mem[1].Replace(name, vote)
	c.faulty[0].SetFaults(memstore.Faults{Before: func(_ context.Context, k memstore.Call) error {
		if k.Op == "list" && k.Name == rootPrefix {
			return objstore.ErrBusy
		}
		return nil
	}})
	c.faulty[1].SetFaults(memstore.Faults{})
	rep, err := r.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
	if err != nil || len(rep.Lost) == 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	got, err := c.mem[1].Get(t.Context(), name, 0, -1, nil)
	if err != nil || string(got) != string(vote) {
		t.Errorf("the vote was written anew: %v", err)
	}
}
