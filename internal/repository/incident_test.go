package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// What other backup programs lost data by, each as a test of this one. The
// table in PROTOCOL.md names these and those that are elsewhere.

// Proxmox PSA-2025-00019-1: the parent of a running backup was pruned while the
// chunks in use were being marked, and the new backup's chunks went with it.
// Fails without lookAgain (P7).
func TestIncidentProxmoxParentPruned(t *testing.T) {
	s := newScene(t, 4, 2, 1)
	s.gone.mustBackup(t, s.r, "gone", "", nil)
	writer := s.process().open(t)
	w, err := writer.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", ParentBackup: "gone"})
	if err != nil {
		t.Fatal(err)
	}
	if w.Parent() == nil {
		t.Fatal(w.ParentProblem())
	}
	s.delete("gone")
	v := s.gone.clone()
	// The first prune sees the deletion, and that the writer is alive.
	aging := PruneOptions{Silence: time.Second, Progress: func(p PruneProgress) {
		if p.Step == "sessions" {
			w.progress(t)
		}
	}}
	if rep, err := s.r.Prune(t.Context(), aging); err != nil || rep.Fenced != 0 {
		t.Fatalf("prune: %+v, %v", rep, err)
	}
	// The next waits for the writer, which has named its parent and commits now.
	o := PruneOptions{Silence: time.Minute, MaxShare: 1}
	announced, done := false, false
	o.Progress = func(p PruneProgress) {
		announced = announced || p.Step == "announce"
		if done || !announced || p.Step != "sessions" {
			return
		}
		done = true
		top, failed := v.write(t.Context(), w, v.change(seeded(73), 3))
		if failed != nil {
			t.Error(failed)
			return
		}
		if told, err := w.Commit(t.Context(), Root{BackupID: "new", Geometry: v.geometry(), Top: top}); told != OutcomeCommitted {
			t.Errorf("told %v: %v", told, err)
		}
	}
	if rep, err := s.r.Prune(t.Context(), o); err != nil || rep.Backups != 1 || rep.Fenced != 0 || !done {
		t.Errorf("prune: %+v, %v", rep, err)
	}
	for range 3 {
		mustVerify(t, v, s.process().open(t), "new")
		mustPrune(t, s.r)
	}
	if got := s.listed("gone"); len(got) > 0 {
		t.Errorf("the parent is %v", got)
	}
}

// Proxmox 5982: garbage collection trusted in access times that some file
// systems do not keep. What a prune trusts in – a name is created once, and
// listed from then on – each store proves before every prune.
// Fails without probeOnce in begin (P0).
func TestIncidentProxmoxAssumedProperty(t *testing.T) {
	for name, fault := range map[string]memstore.Fault{"overwrites": memstore.Overwrite, "lists late": memstore.Lagging} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, 4, 2, 1).aged()
			p := s.process()
			r := p.open(t)
			p.fault(fault, func(memstore.Call) bool { return true }, 3)
			before := s.clone()
			if _, err := r.Prune(t.Context(), hasty); err == nil || !strings.Contains(err.Error(), "mem:3") || !strings.Contains(err.Error(), "safely") {
				t.Errorf("prune = %v", err)
			}
			for i, m := range s.mem {
				if !slices.Equal(m.Names(), before.mem[i].Names()) {
					t.Errorf("a refused prune changed store %d", i)
				}
			}
			s.end()
		})
	}
}

// kopia 1087 and 1949: two maintainers at once, and one whose laptop slept for
// hours in the middle. A prune sleeps at each of its steps while others prune,
// back up and take back what it saw.
// Fails without settle (P6), and without lookAgain (P7).
func TestIncidentKopiaSuspendedPrune(t *testing.T) {
	w := newWorld(t)
	for n := 1; ; n += int(stride(3, 11)) {
		c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
		asleep, wake, end := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		sleeper := c.process().open(t)
		steps := 0
		o := hasty
		o.Progress = func(PruneProgress) {
			if steps++; steps == n {
				close(asleep)
				<-wake
			}
		}
		go func() {
			_, err := sleeper.Prune(t.Context(), o)
			end <- err
		}()
		select {
		case <-asleep:
		case err := <-end:
			if err != nil || n < 12 {
				t.Fatalf("%d steps: %v", n, err)
			}
			return
		}
		r := c.process().open(t)
		v := c.second.clone()
		v.mustBackup(t, r, "third", "second", v.change(seeded(74), 5))
		_, undeleted := r.Undelete(t.Context(), "gone")
		for range 2 {
			if _, err := r.Prune(t.Context(), hasty); err != nil {
				t.Logf("step %d: %v", n, err) // stopped, which is never wrong
			}
		}
		close(wake)
		if err := <-end; err != nil {
			t.Logf("step %d: the one that slept: %v", n, err)
		}
		check := func(when string) {
			when = fmt.Sprintf("asleep at step %d, %s", n, when)
			reader := c.process().open(t)
			c.intact(t, reader, when)
			err := v.verify(t.Context(), reader, "third")
			if err == nil && undeleted == nil {
				err = c.gone.verify(t.Context(), reader, "gone")
			}
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
		check("at once")
		c.drained(t, r)
		check("three prunes later")
		if t.Failed() {
			return
		}
	}
}

// Longhorn 9784 and 1385: an object that was there was taken for the right one.
// A store that keeps half of what it is given, says that it failed, and refuses
// the next attempt because the name exists, has nothing.
// Fails when put or putSame takes ErrExist for success.
func TestIncidentLonghornExistsIsNotValid(t *testing.T) {
	everything := func(memstore.Call) bool { return true }
	s := newScene(t, 4, 2, 1)
	w := s.process()
	r := w.open(t)
	w.fault(memstore.Partial, everything, 3)
	s.gone.mustBackup(t, r, "gone", "", nil)
	for lost := range s.mem { // d = 1
		left := s.process()
		left.faulty[lost].SetDown(true)
		mustVerify(t, s.gone, left.open(t), "gone")
	}
	for _, tt := range []struct {
		name   string
		on     match
		stores []int
	}{
		{"everything", everything, []int{3, 4}},
		{"shards", putting(packPrefix, ""), []int{3, 4}},
		{"root records", putting(rootPrefix, ""), []int{1, 2, 3, 4, 5}},
	} {
		w.fault(memstore.None, everything)
		w.fault(memstore.Partial, tt.on, tt.stores...)
		if told, err := s.gone.backup(t.Context(), r, "second", "", nil); told != OutcomeFailed || !errors.Is(err, ErrTooFewStores) {
			t.Errorf("half of %s: told %v, %v", tt.name, told, err)
		}
		if got := s.listed("second"); slices.Contains(got, Available) {
			t.Errorf("half of %s: it is listed as %v", tt.name, got)
		}
	}
	s.end()
}

// borg check --repair deleted what it could not read. A repair that cannot mend
// leaves everything where it is, for a better day.
// Fails when object removes a wrong copy before a right one is at hand.
func TestIncidentBorgRepairNeverDeletes(t *testing.T) {
	w := newWorld(t)
	wrong := make(map[string]bool)
	harm := func(name string, stores ...int) {
		for _, i := range stores {
			body, err := w.mem[i].Get(t.Context(), name, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			body[len(body)/2] ^= 1
			w.mem[i].Replace(name, body)
			wrong[w.mem[i].URL()+" "+name] = true
		}
	}
	packs, others := 0, 0
	for _, name := range w.mem[0].Names() {
		switch {
		case strings.HasPrefix(name, packPrefix) && packs < 3:
			packs++
			harm(name, 0, 2, 5) // beyond repair
		case strings.HasPrefix(name, rootPrefix), strings.HasPrefix(name, deletedPrefix):
			if others++; others%2 == 0 {
				harm(name, 0, 1, 2, 3, 4, 5)
			} else {
				harm(name, 1) // five others have it
			}
		}
	}
	before := w.clone()
	rep, err := w.open(t).Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
	if err != nil || rep.OK() || len(rep.Lost) == 0 || others < 3 {
		t.Errorf("%d control objects harmed: %+v, %v", others, rep, err)
	}
	mended := 0
	for i, m := range w.mem {
		for _, name := range before.mem[i].Names() {
			was, err := before.mem[i].Get(t.Context(), name, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			is, err := m.Get(t.Context(), name, 0, -1, nil)
			switch {
			case err != nil:
				t.Errorf("a repair removed %s from %s: %v", name, m.URL(), err)
			case bytes.Equal(was, is):
			case !wrong[m.URL()+" "+name]:
				t.Errorf("a repair changed %s on %s, which was right", name, m.URL())
			default:
				mended++
			}
		}
	}
	if mended == 0 {
		t.Error("a repair mended nothing that it could")
	}
}

// borg CVE-2023-36811: archives could be shown in each other's place, as what an
// object is was not authenticated with it. Here every object is bound to its
// name, kind, project, repository and, where it is a store's own, to that store.
// Fails without the name in the tag of an envelope, and without the store in a
// vote.
func TestIncidentBorgSwappedObjects(t *testing.T) {
	ctx := t.Context()
	c := newCluster(3)
	c.initLosing(t, 2, 1, 1)
	r := c.open(t)
	v := randomContent(seeded(75), 40, 8)
	start := func(project string) *Session {
		s, err := r.Begin(ctx, SessionOptions{Project: project, VolumeID: "v", Volume: "disk"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	finish := func(s *Session, id string) Outcome {
		top, err := v.write(ctx, s, nil)
		if err != nil {
			t.Fatal(err)
		}
		told, _ := s.Commit(ctx, Root{BackupID: id, Name: id, Geometry: v.geometry(), Top: top})
		return told
	}
	mine, theirs, weak := start("mine"), start("theirs"), start("mine")
	if a, b := finish(mine, "mine"), finish(theirs, "theirs"); a != OutcomeCommitted || b != OutcomeCommitted {
		t.Fatal(a, b)
	}
	c.fault(memstore.FailBefore, putting(sessionPrefix, verdictLeaf), 1, 2)
	if told := finish(weak, "weak"); told != OutcomeUnknown { // one vote, on store 0
		t.Fatal(told)
	}
	c.heal()
	c.fault(memstore.FailBefore, putting(sessionPrefix, verdictLeaf))
	none := start("mine")
	if told := finish(none, "none"); told != OutcomeUnknown { // no vote at all
		t.Fatal(told)
	}
	c.heal()
	if err := r.Delete(ctx, "theirs"); err != nil {
		t.Fatal(err)
	}
	root := func(s *Session) string {
		for _, name := range c.mem[0].Names() {
			if id, ok := rootSession(name); ok && id == s.id {
				return name
			}
		}
		t.Fatalf("no root record of session %s", s.id)
		return ""
	}
	show := func(c *cluster, from int, object, as string, to ...int) {
		body, err := c.mem[from].Get(ctx, object, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range to {
			c.mem[i].Replace(as, body)
		}
	}
	all := []int{0, 1, 2}
	for _, tt := range []struct {
		name string
		harm func(c *cluster)
		want map[string]State // of the four
	}{
		{"nothing", func(*cluster) {}, map[string]State{"mine": Available, "theirs": Deleted, "weak": Available, "none": Unconfirmed}},
		{"a root record as another project's", func(c *cluster) {
			show(c, 0, root(theirs), root(mine), all...)
		}, map[string]State{"theirs": Deleted, "weak": Available, "none": Unconfirmed}},
		{"a root record as another session's", func(c *cluster) {
			show(c, 0, root(mine), root(none), all...)
		}, map[string]State{"mine": Available, "theirs": Deleted, "weak": Available}},
		{"a tombstone as a purged mark", func(c *cluster) {
			show(c, 0, deletedName(theirs.id), purgedName(theirs.id), all...)
		}, map[string]State{"mine": Available, "theirs": Deleted, "weak": Available, "none": Unconfirmed}},
		{"another session's tombstone", func(c *cluster) {
			show(c, 0, deletedName(theirs.id), deletedName(mine.id), all...)
		}, map[string]State{"mine": Available, "theirs": Deleted, "weak": Available, "none": Unconfirmed}},
		{"another session's votes", func(c *cluster) {
			for i := range all {
				show(c, i, verdictName(mine.id), verdictName(none.id), i)
			}
		}, map[string]State{"mine": Available, "theirs": Deleted, "weak": Available, "none": Unconfirmed}},
		{"another store's vote", func(c *cluster) {
			show(c, 0, verdictName(weak.id), verdictName(weak.id), 1, 2)
			c.faulty[0].SetDown(true)
		}, map[string]State{"mine": Available, "theirs": Deleted, "weak": Unconfirmed, "none": Unconfirmed}},
		{"another repository's store", func(c *cluster) {
			foreign := newCluster(3)
			foreign.initLosing(t, 2, 1, 1)
			body, err := foreign.mem[0].Get(ctx, membersName(1), 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			c.mem[1].Replace(membersName(9), body)
		}, map[string]State{"mine": Available, "theirs": Deleted, "weak": Available, "none": Unconfirmed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			hurt := c.clone()
			tt.harm(hurt)
			reader := hurt.open(t)
			backups, err := reader.Backups(ctx)
			if err != nil {
				t.Fatal(err)
			}
			trash, err := reader.Trash(ctx)
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[string]State)
			for _, b := range slices.Concat(backups, trash) {
				got[b.ID] = b.State
				if b.Project != "theirs" && b.ID == "theirs" {
					t.Errorf("%+v is shown as of another project", b)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("shown are %v, want %v", got, tt.want)
			}
			if got["mine"] == Available {
				mustVerify(t, v, reader, "mine")
			}
		})
	}
}

// Any three of six stores that lost their shards, or are away, are too many for
// 4+2, and what is lost is named.
func TestAnyThreeStoresAreNamed(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(76), 60, 30)
	v.mustBackup(t, r, "b1", "", nil)
	for a := range 6 {
		for b := range a {
			for d := range b {
				lost := []int{a, b, d}
				down := c.process()
				for _, i := range lost {
					down.faulty[i].SetDown(true)
				}
				_, err := Open(t.Context(), Options{Stores: down.stores(), Password: password, Timing: eager})
				if !errors.Is(err, ErrTooFewStores) {
					t.Errorf("stores %v down: %v", lost, err)
				}
				for _, i := range lost {
					if err != nil && !strings.Contains(err.Error(), down.faulty[i].URL()) {
						t.Errorf("stores %v down, and %s is not named: %v", lost, down.faulty[i].URL(), err)
					}
				}
				hurt := c.clone()
				for _, i := range lost {
					dropPacks(t, hurt.mem[i])
				}
				reader := hurt.open(t)
				if err = v.verify(t.Context(), reader, "b1"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "pack ") {
					t.Errorf("stores %v without packs: %v", lost, err)
				}
				rep, err := reader.Check(t.Context(), CheckOptions{})
				if err != nil || len(rep.Backups) != 1 || rep.Backups[0].Restorable || len(rep.Backups[0].Problems) == 0 {
					t.Errorf("stores %v without packs: %+v, %v", lost, rep.Backups, err)
				}
				for i, s := range rep.Stores {
					if rep.Packs == 0 {
						break // the manifest is lost, too: nobody knows the packs
					}
					if missing := s.Missing > 0; missing != slices.Contains(lost, i) {
						t.Errorf("stores %v without packs: store %d misses %d", lost, i, s.Missing)
					}
				}
			}
		}
	}
}

func dropPacks(t *testing.T, m *memstore.Store) {
	t.Helper()
	for _, name := range m.Names() {
		if strings.HasPrefix(name, packPrefix) {
			if err := m.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// killedAt runs do until it was killed at each call to a store in turn, on a
// copy of the cluster each time, and lets check look at what is left.
func (c *cluster) killedAt(t *testing.T, every int64, do func(context.Context, *Repository) error, check func(n int64, c *cluster)) {
	t.Helper()
	for n := int64(1); ; n += every {
		hit := c.clone()
		r := hit.open(t)
		ctx, kill := context.WithCancelCause(t.Context())
		hit.onCalls(func(call int64) error {
			if call < n {
				return nil
			}
			kill(errKilled)
			return errKilled
		})
		err := do(ctx, r)
		killed := ctx.Err() != nil
		kill(nil)
		hit.heal()
		if !killed && err != nil && !errors.Is(err, objstore.ErrNotExist) {
			t.Fatalf("nobody killed it: %v", err)
		}
		check(n, hit)
		if !killed || t.Failed() {
			return
		}
	}
}

// A deletion, an undeletion and a repair that are killed at any of their calls
// leave nothing worse than what they began with, and can be done again.
func TestKilledAtAnyCall(t *testing.T) {
	w := newWorld(t)
	whole := func(what string) func(int64, *cluster) {
		return func(n int64, c *cluster) {
			t.Helper()
			x := &world{cluster: c, second: w.second}
			r := c.process().open(t)
			when := fmt.Sprintf("%s killed at call %d", what, n)
			x.intact(t, r, when)
			if _, err := r.Undelete(t.Context(), "trashed"); err != nil && !errors.Is(err, ErrInvalid) {
				t.Errorf("%s: undelete: %v", when, err)
			}
			mustVerify(t, w.trashed, r, "trashed")
			c.drained(t, r)
			x.intact(t, r, when+", then pruned")
			mustVerify(t, w.trashed, r, "trashed")
		}
	}
	t.Run("undelete", func(t *testing.T) {
		w.killedAt(t, stride(3, 17), func(ctx context.Context, r *Repository) error {
			_, err := r.Undelete(ctx, "trashed")
			return err
		}, whole("undelete"))
	})
	t.Run("delete", func(t *testing.T) {
		c := w.clone()
		if _, err := c.open(t).Undelete(t.Context(), "trashed"); err != nil {
			t.Fatal(err)
		}
		c.killedAt(t, stride(3, 17), func(ctx context.Context, r *Repository) error { return r.Delete(ctx, "trashed") }, whole("delete"))
	})
	t.Run("repair", func(t *testing.T) {
		c := w.clone()
		c.hurt(seeded(77), []int{1, 4}, 0.5)
		c.killedAt(t, stride(7, 41), func(ctx context.Context, r *Repository) error {
			_, err := r.Repair(ctx, RepairOptions{Apply: true, ReadData: true})
			return err
		}, func(n int64, c *cluster) {
			x := &world{cluster: c, second: w.second}
			r := c.process().open(t)
			x.intact(t, r, fmt.Sprintf("repair killed at call %d", n))
			if rep, err := r.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true}); err != nil || !rep.OK() {
				t.Errorf("killed at call %d, then again: %+v, %v", n, rep, err)
			}
			// Any two others may be lost now.
			c.faulty[0].SetDown(true)
			c.faulty[3].SetDown(true)
			x.intact(t, c.open(t), fmt.Sprintf("repaired behind call %d, two others lost", n))
		})
	})
}
