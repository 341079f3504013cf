package repository

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// The counterexamples of PROTOCOL.md, "What each must stay impossible", one test
// each against this code. Two processes are two repositories over the same
// memory stores, each with faults of its own; what one does between two calls of
// the other is done from a hook, so that every run is the same. "Fails without"
// names the line that guards: each was taken out once to see the test fail.

// process is the cluster as another process sees it: the objects are the same,
// the faults are its own.
func (c *cluster) process() *cluster {
	out := &cluster{mem: c.mem}
	for _, m := range c.mem {
		out.faulty = append(out.faulty, memstore.WithFaults(m, memstore.Faults{}))
	}
	return out
}

// match says which calls a fault or a hook is about.
type match func(memstore.Call) bool

func putting(prefix, suffix string) match {
	return func(c memstore.Call) bool {
		return c.Op == "put" && strings.HasPrefix(c.Name, prefix) && strings.HasSuffix(c.Name, suffix)
	}
}

func deleting(prefix string) match {
	return func(c memstore.Call) bool { return c.Op == "delete" && strings.HasPrefix(c.Name, prefix) }
}

// fault makes matching calls of a process fail on some stores, all if none is
// given.
func (c *cluster) fault(f memstore.Fault, on match, stores ...int) {
	for i, s := range c.faulty {
		if len(stores) > 0 && !slices.Contains(stores, i) {
			continue
		}
		s.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if on(call) {
				return f
			}
			return memstore.None
		}})
	}
}

// faultOnce is fault for the first matching call on each store.
func (c *cluster) faultOnce(f memstore.Fault, on match) {
	for _, s := range c.faulty {
		var hit atomic.Bool
		s.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if on(call) && !hit.Swap(true) {
				return f
			}
			return memstore.None
		}})
	}
}

// before runs do once, before the first matching call of a process on any store;
// other matching calls wait for its end.
func (c *cluster) before(on match, do func()) {
	var once sync.Once
	for _, s := range c.faulty {
		s.SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			if on(call) {
				once.Do(do)
			}
			return nil
		}})
	}
}

// hastyAt is a hasty prune that does something before one of its steps.
func hastyAt(step string, do func()) PruneOptions {
	o := hasty
	var once sync.Once
	o.Progress = func(p PruneProgress) {
		if p.Step == step {
			once.Do(do)
		}
	}
	return o
}

// initLosing is init with d given.
func (c *cluster) initLosing(tb testing.TB, data, parity, losses int) {
	tb.Helper()
	_, err := Init(tb.Context(), InitOptions{Stores: c.stores(), Data: data, Parity: parity, Losses: &losses, Password: password, KDF: cheapKDF})
	if err != nil {
		tb.Fatal(err)
	}
}

// scene is a repository with a live backup "kept" and another, "gone".
type scene struct {
	*cluster
	t          *testing.T
	r          *Repository // of a process that no fault ever hits
	kept, gone *content
}

// newScene makes the scene on k+m stores.
func newScene(t *testing.T, data, parity, losses int) *scene {
	t.Helper()
	s := &scene{cluster: newCluster(data + parity), t: t, kept: randomContent(seeded(70), 60, 10), gone: randomContent(seeded(71), 60, 10)}
	s.initLosing(t, data, parity, losses)
	s.r = s.process().open(t)
	s.kept.mustBackup(t, s.r, "kept", "", nil)
	return s
}

// aged also makes "gone", deletes it, and lets a prune see that: the next one
// takes it.
func (s *scene) aged() *scene {
	s.t.Helper()
	s.gone.mustBackup(s.t, s.r, "gone", "", nil)
	s.delete("gone")
	mustPrune(s.t, s.r)
	return s
}

func (s *scene) delete(id string) {
	s.t.Helper()
	if err := s.r.Delete(s.t.Context(), id); err != nil {
		s.t.Fatal(err)
	}
}

// end checks what every trace ends with: what is available can be restored, and
// behind three quiet prunes, too; no root record and no pack is left over.
func (s *scene) end() {
	s.t.Helper()
	s.heal()
	r := s.process().open(s.t)
	check := func(when string) {
		all, err := r.Backups(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		for id := range ids(all, Available) {
			v := s.kept
			if id == "gone" {
				v = s.gone
			}
			if err := v.verify(s.t.Context(), r, id); err != nil {
				s.t.Errorf("%s: %v", when, err)
			}
		}
		if !ids(all, Available)["kept"] {
			s.t.Errorf("%s: the backup that nobody touched is not there: %+v", when, all)
		}
	}
	check("at the end")
	s.drained(s.t, r)
	check("three prunes later")
	live := make(map[string]bool)
	all, err := r.standings(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, st := range all {
		live[st.root.name] = true
	}
	for _, m := range s.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, rootPrefix) && !live[name] {
				s.t.Errorf("%s: %s is left of a backup that is not there", m.URL(), name)
			}
		}
	}
}

// listed returns the states in which a backup is shown, by anybody.
func (s *scene) listed(id string) []State {
	s.t.Helper()
	r := s.process().open(s.t)
	all, err := r.Backups(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	trash, err := r.Trash(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	var out []State
	for _, b := range slices.Concat(all, trash) {
		if b.ID == id {
			out = append(out, b.State)
		}
	}
	return out
}

// The verdict's PUT takes effect, its answer is lost or a library's retry of it
// is refused: the writer is told committed, never failed. And 412 is no consent:
// where a prune was faster, failed is what it is told.
// Fails when putVote takes ErrExist for another's vote, or for its own.
func TestTrace01VerdictRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		fault  memstore.Fault
		fenced bool
		told   Outcome
	}{
		{"412 behind the deed", memstore.LostAck, false, OutcomeCommitted},
		{"answer lost", memstore.FailAfter, false, OutcomeCommitted},
		{"412 behind a fence", memstore.None, true, OutcomeFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, 2, 1, 1)
			w := s.process()
			r := w.open(t)
			if tt.fenced {
				w.before(putting(sessionPrefix, verdictLeaf), func() { fenceAll(t, s.process()) })
			} else {
				w.faultOnce(tt.fault, putting(sessionPrefix, verdictLeaf))
			}
			told, err := s.gone.backup(t.Context(), r, "gone", "", nil)
			if told != tt.told {
				t.Errorf("told %v: %v", told, err)
			}
			if there := slices.Contains(s.listed("gone"), Available); there != (tt.told == OutcomeCommitted) {
				t.Errorf("told %v, and it is listed as %v", told, s.listed("gone"))
			}
			s.end()
		})
	}
}

// A backup is taken out of the trash while a prune removes it: it is either
// refused or whole.
// Fails without settle (P6) in the prune; and, opened behind the announcement,
// when reuse looks neither at the condemned backups nor at the condemned packs.
func TestTrace02UndeleteAgainstPrune(t *testing.T) {
	t.Run("a prune behind W3", func(t *testing.T) {
		s := newScene(t, 4, 2, 1).aged()
		w := s.process()
		r := w.open(t)
		w.before(putting(rootPrefix, ""), func() { mustPrune(t, s.r) })
		if _, err := r.Undelete(t.Context(), "gone"); err == nil {
			mustVerify(t, s.gone, s.process().open(t), "gone")
		}
		s.end()
	})
	t.Run("behind P5", func(t *testing.T) {
		s := newScene(t, 4, 2, 1).aged()
		o := hastyAt("remove backups", func() {
			if _, err := s.process().open(t).Undelete(t.Context(), "gone"); !errors.Is(err, ErrNotFound) {
				t.Errorf("undelete of what is condemned: %v", err)
			}
		})
		if _, err := s.r.Prune(t.Context(), o); err != nil {
			t.Error(err)
		}
		s.end()
	})
}

// Deleted, seen by a prune, taken back, deleted again: the second deletion has
// not aged before a whole prune saw it.
// Fails when finish (P10) says that the tombstones have aged that there are then,
// not those of P1.
func TestTrace03DeletedTwice(t *testing.T) {
	s := newScene(t, 4, 2, 1).aged()
	o := hastyAt("packs", func() { // behind P1
		if _, err := s.process().open(t).Undelete(t.Context(), "gone"); err != nil {
			t.Error(err)
		}
		s.delete("gone")
	})
	if _, err := s.r.Prune(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, s.r) // the first whole one since the second deletion
	if _, err := s.r.Undelete(t.Context(), "gone"); err != nil {
		t.Errorf("one prune after it was deleted again: %v", err)
	}
	mustVerify(t, s.gone, s.r, "gone")
	s.end()
}

// Calls of a deletion and of a prune land when everybody has given them up.
// Fails when Undelete removes the tombstone instead of making a new root record:
// nothing is moved, and a name says one thing for ever.
func TestTrace04LateCalls(t *testing.T) {
	t.Run("tombstones", func(t *testing.T) {
		s := newScene(t, 4, 2, 1)
		s.gone.mustBackup(t, s.r, "gone", "", nil)
		d := s.process()
		r := d.open(t)
		d.fault(memstore.Held, putting(deletedPrefix, ""), 1, 2, 3, 4, 5)
		if err := r.Delete(t.Context(), "gone"); !errors.Is(err, ErrTooFewStores) {
			t.Errorf("a tombstone on one store: %v", err)
		}
		if _, err := s.r.Undelete(t.Context(), "gone"); err != nil {
			t.Error(err)
		}
		d.heal() // they land
		if got := s.listed("gone"); !slices.Equal(got, []State{Available}) {
			t.Errorf("it is listed as %v", got)
		}
		s.end()
		mustVerify(t, s.gone, s.r, "gone")
	})
	t.Run("the removal of a root record", func(t *testing.T) {
		s := newScene(t, 4, 2, 1).aged()
		p := s.process()
		r := p.open(t)
		p.fault(memstore.Held, deleting(rootPrefix), 2, 3)
		if _, err := r.Prune(t.Context(), hasty); err == nil {
			t.Error("a prune that could not delete says that it did")
		}
		if _, err := s.r.Undelete(t.Context(), "gone"); !errors.Is(err, ErrNotFound) {
			t.Errorf("undelete of what is purged: %v", err)
		}
		p.heal()
		s.end()
	})
}

// A writer that named a parent dies, its parent goes, and its root record lands
// when all of that is over: prunes get past it, and take it away.
// Fails without the look at Aborted in markRoot.
func TestTrace05DeadSession(t *testing.T) {
	s := newScene(t, 4, 2, 1)
	s.gone.mustBackup(t, s.r, "gone", "", nil)
	w := s.process()
	r := w.open(t)
	var dead atomic.Bool
	for _, f := range w.faulty {
		f.SetFaults(memstore.Faults{
			Before: func(_ context.Context, c memstore.Call) error {
				if dead.Load() && !putting(rootPrefix, "")(c) {
					return errKilled
				}
				return nil
			},
			Decide: func(c memstore.Call) memstore.Fault {
				if putting(rootPrefix, "")(c) {
					dead.Store(true)
					return memstore.Held
				}
				return memstore.None
			},
		})
	}
	v := s.gone.clone()
	if told, err := v.backup(t.Context(), r, "dead", "gone", v.change(seeded(72), 5)); told == OutcomeCommitted {
		t.Fatalf("told %v: %v", told, err)
	}
	s.delete("gone")
	for range 2 {
		mustPrune(t, s.r)
	}
	if got := s.listed("gone"); len(got) > 0 {
		t.Errorf("the parent is %v", got)
	}
	w.heal() // the root record lands
	if got := s.listed("dead"); len(got) > 0 {
		t.Errorf("what died is %v", got)
	}
	s.end()
}

// A prune freezes when it has looked for the last time; another tidies up; a
// writer opens; the first wakes and deletes. The list of the first protects what
// it names from the writer as long as any of it exists.
// Fails without the look at meets in tidyLists.
func TestTrace06FrozenPrune(t *testing.T) {
	s := newScene(t, 4, 2, 1)
	s.gone.mustBackup(t, s.r, "gone", "", nil)
	s.delete("gone")
	frozen, wake, woken := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	// The prune that tidies up began before the deletion aged, and so leaves
	// alone what the frozen one is about to remove.
	tidier := hastyAt("packs", func() {
		mustPrune(t, s.process().open(t))
		sleeper := s.process().open(t)
		go func() {
			_, err := sleeper.Prune(t.Context(), hastyAt("remove backups", func() { close(frozen); <-wake }))
			woken <- err
		}()
		<-frozen
	})
	if _, err := s.r.Prune(t.Context(), tidier); err != nil {
		t.Fatal(err)
	}
	_, err := s.r.Undelete(t.Context(), "gone")
	close(wake)
	if failed := <-woken; failed != nil {
		t.Log(failed)
	}
	if err == nil {
		mustVerify(t, s.gone, s.process().open(t), "gone")
	} else if !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	s.end()
}

// The root record of a purged backup, and its vote, land late: nobody takes them
// for a backup, nor for a parent.
// Fails without the look at purged in survey.
func TestTrace07LateRoot(t *testing.T) {
	s := newScene(t, 4, 2, 1)
	w := s.process()
	r := w.open(t)
	w.fault(memstore.Held, func(c memstore.Call) bool {
		return putting(rootPrefix, "")(c) || putting(sessionPrefix, verdictLeaf)(c)
	}, 5)
	s.gone.mustBackup(t, r, "gone", "", nil)
	s.delete("gone")
	for range 2 {
		mustPrune(t, s.r)
	}
	w.heal() // they land
	landed := 0
	for _, name := range s.mem[5].Names() {
		if strings.HasPrefix(name, rootPrefix) {
			landed++
		}
	}
	if landed != 2 { // and that of "kept"
		t.Fatalf("%d root records on the store", landed)
	}
	if got := s.listed("gone"); len(got) > 0 {
		t.Errorf("a purged backup is %v", got)
	}
	other := s.process().open(t)
	if _, err := other.Image(t.Context(), "gone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("its image: %v", err)
	}
	if _, err := other.Undelete(t.Context(), "gone"); !errors.Is(err, ErrNotFound) {
		t.Errorf("its undeletion: %v", err)
	}
	se, err := other.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", ParentBackup: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	if se.Parent() != nil || se.ParentProblem() == "" {
		t.Error("a purged backup is taken for a parent")
	}
	if err := se.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	s.end()
}

// A repair has read a root record that one store lacks; a prune purges the
// backup; the repair puts it back. It stays dead, and goes again.
// Fails without the look at purged in survey.
func TestTrace08RepairBringsBack(t *testing.T) {
	s := newScene(t, 4, 2, 1)
	w := s.process()
	r := w.open(t)
	w.fault(memstore.FailBefore, putting(rootPrefix, ""), 5)
	s.gone.mustBackup(t, r, "gone", "", nil)
	s.delete("gone")
	mustPrune(t, s.r)
	m := s.process()
	mender := m.open(t)
	ran := false
	m.before(putting(rootPrefix, ""), func() { ran = true; mustPrune(t, s.r) })
	if _, err := mender.Repair(t.Context(), RepairOptions{Apply: true}); err != nil {
		t.Log(err) // what it was about to mend is gone: it may say so
	}
	if !ran {
		t.Fatal("the repair put no root record back")
	}
	if got := s.listed("gone"); len(got) > 0 {
		t.Errorf("a purged backup is %v", got)
	}
	s.end()
}

// Of three stores two abort a session for a prune, the third does not answer: the
// prune stops, because the writer's one vote there would be proof for a reader.
// Fails when fence counts a voter that did not answer as an abort.
func TestTrace09Majority(t *testing.T) {
	s := newScene(t, 2, 1, 0).aged()
	w, p := s.process(), s.process()
	r, pruner := w.open(t), p.open(t)
	p.fault(memstore.FailBefore, putting(sessionPrefix, verdictLeaf), 2)
	w.before(putting(sessionPrefix, verdictLeaf), func() {
		if _, err := pruner.Prune(t.Context(), hasty); err == nil {
			t.Error("a prune went on without the vote of a store")
		}
	})
	if _, err := r.Undelete(t.Context(), "gone"); err != nil {
		t.Errorf("one vote is enough where no loss is to be survived: %v", err)
	}
	if got := s.listed("gone"); !slices.Equal(got, []State{Available}) {
		t.Errorf("it is listed as %v", got)
	}
	s.end()
	mustVerify(t, s.gone, s.r, "gone")
}

// Told committed with two votes of three, then one of these stores is lost: the
// backup is available, not unconfirmed. With one vote nobody is told committed.
// Fails when decide asks for more than one vote, and when Commit is content with
// one.
func TestTrace10ToldThenALoss(t *testing.T) {
	for lost := range 3 {
		s := newScene(t, 2, 1, 1)
		w := s.process()
		r := w.open(t)
		w.fault(memstore.FailBefore, putting(sessionPrefix, verdictLeaf), 2)
		s.gone.mustBackup(t, r, "gone", "", nil)
		left := s.process()
		left.faulty[lost].SetDown(true)
		reader := left.open(t)
		if all, err := reader.Backups(t.Context()); err != nil || !ids(all, Available)["gone"] {
			t.Errorf("store %d lost: %+v, %v", lost, all, err)
		}
		mustVerify(t, s.gone, reader, "gone")
		s.end()
	}
	s := newScene(t, 2, 1, 1)
	w := s.process()
	r := w.open(t)
	w.fault(memstore.FailBefore, putting(sessionPrefix, verdictLeaf), 1, 2)
	if told, err := s.gone.backup(t.Context(), r, "gone", "", nil); told != OutcomeUnknown {
		t.Errorf("told %v with one vote: %v", told, err)
	}
	s.end()
}

// A session is open on one store only, as its geometry allows, and a prune does
// not reach that store: it removes nothing.
// Fails when everywhere lets one member be silent.
func TestTrace12PruneNeedsEveryStore(t *testing.T) {
	s := newScene(t, 1, 2, 0).aged()
	w, p := s.process(), s.process()
	r, pruner := w.open(t), p.open(t)
	ran := false
	isOpen := putting(sessionPrefix, openLeaf)
	for i, f := range w.faulty {
		var once sync.Once
		f.SetFaults(memstore.Faults{
			Decide: func(c memstore.Call) memstore.Fault {
				if i < 2 && isOpen(c) {
					return memstore.FailBefore
				}
				return memstore.None
			},
			Before: func(_ context.Context, c memstore.Call) error {
				if i == 2 && putting(rootPrefix, "")(c) {
					once.Do(func() {
						ran = true
						p.faulty[2].SetDown(true)
						before := [][]string{s.mem[0].Names(), s.mem[1].Names()}
						if _, err := pruner.Prune(t.Context(), hasty); !errors.Is(err, ErrTooFewStores) {
							t.Errorf("a prune without a store: %v", err)
						}
						for m, names := range before {
							for _, name := range names {
								if !slices.Contains(s.mem[m].Names(), name) {
									t.Errorf("a prune without a store removed %s from %s", name, s.mem[m].URL())
								}
							}
						}
					})
				}
				return nil
			},
		})
	}
	if _, err := r.Undelete(t.Context(), "gone"); err != nil || !ran {
		t.Fatalf("undelete: %v, the prune ran: %v", err, ran)
	}
	s.end()
	if rep, err := s.r.Check(t.Context(), CheckOptions{ReadData: true}); err != nil || !rep.OK() {
		t.Errorf("check: %+v, %v", rep, err)
	}
}
