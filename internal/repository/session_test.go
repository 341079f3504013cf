package repository

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

func TestFullThenIncremental(t *testing.T) {
	for _, g := range []struct {
		name         string
		data, parity int
	}{{"4+2", 4, 2}, {"1+0", 1, 0}, {"1+1", 1, 1}, {"2+1", 2, 1}, {"3+0", 3, 0}} {
		t.Run(g.name, func(t *testing.T) {
			c := newCluster(g.data + g.parity)
			c.init(t, g.data, g.parity)
			r := c.open(t)
			rnd := seeded(1)
			v1 := randomContent(rnd, 700, 200)
			v1.mustBackup(t, r, "b1", "", nil)
			v2 := v1.clone()
			changed := v2.change(rnd, 20)
			v2.mustBackup(t, r, "b2", "b1", changed)
			mustVerify(t, v1, r, "b1")
			mustVerify(t, v2, r, "b2")

			// Another process, from the stores alone.
			again := c.open(t)
			list, err := again.Backups(t.Context())
			if err != nil || len(list) != 2 {
				t.Fatalf("Backups = %v, %v", list, err)
			}
			for _, b := range list {
				if b.State != Available || b.Volume != "disk" || b.Size != v1.size {
					t.Errorf("%+v", b)
				}
				if want := b.ID == "b2"; b.Incremental != want || (b.Parent == "b1") != want {
					t.Errorf("%s: incremental %v, parent %q", b.ID, b.Incremental, b.Parent)
				}
			}
			mustVerify(t, v2, again, "b2")
			if b, failed := again.Backup(t.Context(), "name-b2"); failed != nil || b.ID != "b2" {
				t.Errorf("by name: %+v, %v", b, failed)
			}
			for _, s := range c.mem {
				for _, name := range s.Names() {
					if _, isOpen := markSession(name, sessionPrefix); isOpen {
						t.Errorf("left over: %s", name)
					}
				}
			}
			rep, err := again.Check(t.Context(), CheckOptions{ReadData: true})
			if err != nil || !rep.OK() {
				t.Errorf("check: %+v, %v", rep, err)
			}
		})
	}
}

func TestIncrementalStoresOnlyWhatChanged(t *testing.T) {
	_, r := fresh(t)
	rnd := seeded(2)
	v := randomContent(rnd, 2000, 600)
	v.mustBackup(t, r, "b1", "", nil)
	changed := v.change(rnd, 3)
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", Volume: "disk", ParentBackup: "b1"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Parent() == nil {
		t.Fatal(s.ParentProblem())
	}
	if _, failed := v.write(t.Context(), s, changed); failed != nil {
		t.Fatal(failed)
	}
	st := s.Stored()
	if limit := int64(3*testBlock + 64<<10); st.BytesStored > limit {
		t.Errorf("%d bytes were stored for 3 changed blocks", st.BytesStored)
	}
	if err = s.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestParentThatIsNotLive(t *testing.T) {
	tests := []struct {
		name string
		harm func(t *testing.T, c *cluster, r *Repository)
		o    SessionOptions
	}{
		{"unknown", nil, SessionOptions{Project: "p", VolumeID: "v", ParentBackup: "nobody"}},
		{"other volume", nil, SessionOptions{Project: "p", VolumeID: "w", ParentBackup: "b1"}},
		{"other project", nil, SessionOptions{Project: "q", VolumeID: "v", ParentBackup: "b1"}},
		{"deleted", func(t *testing.T, _ *cluster, r *Repository) {
			t.Helper()
			if err := r.Delete(t.Context(), "b1"); err != nil {
				t.Fatal(err)
			}
		}, SessionOptions{Project: "p", VolumeID: "v", ParentBackup: "b1"}},
		{"purged on one store", func(t *testing.T, c *cluster, r *Repository) {
			t.Helper()
			list, err := r.Backups(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s, err := parseIdent(list[0].Session)
			if err != nil {
				t.Fatal(err)
			}
			object, err := r.keys.sealEnvelope(kindPurged, purgedName(s), nil)
			if err != nil {
				t.Fatal(err)
			}
			c.mem[3].Replace(purgedName(s), object)
		}, SessionOptions{Project: "p", VolumeID: "v", ParentBackup: "b1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, r := fresh(t)
			v := randomContent(seeded(3), 100, 20)
			v.mustBackup(t, r, "b1", "", nil)
			if tt.harm != nil {
				tt.harm(t, c, r)
			}
			s, err := r.Begin(t.Context(), tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if s.Parent() != nil || s.ParentProblem() == "" {
				t.Errorf("parent %v, problem %q", s.Parent(), s.ParentProblem())
			}
			if err := s.Abort(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// condemn puts the list of a prune on all stores.
func condemn(t *testing.T, c *cluster, r *Repository, list condemned) ident {
	t.Helper()
	id, err := newIdent()
	if err != nil {
		t.Fatal(err)
	}
	object, err := r.keys.sealEnvelope(kindCondemned, condemnedName(id), list.encode())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.mem {
		m.Replace(condemnedName(id), object)
	}
	return id
}

func TestCondemnedPacksAreNotUsedAgain(t *testing.T) {
	c, _ := fresh(t)
	dir := t.TempDir()
	r := c.open(t, func(o *Options) { o.CacheDir = dir; o.Cache.Index = 1 << 20 })
	v := randomContent(seeded(4), 300, 100)
	v.mustBackup(t, r, "b1", "", nil)

	list := newCondemned()
	for _, name := range c.mem[0].Names() {
		if p, ok := parsePackName(name); ok {
			list.packs[p] = struct{}{}
		}
	}
	if len(list.packs) == 0 {
		t.Fatal("no packs")
	}
	condemn(t, c, r, list)
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", ParentBackup: "b1"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Parent() != nil {
		t.Error("a parent on condemned packs was taken")
	}
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if o, failed := s.Commit(t.Context(), Root{BackupID: "b2", Geometry: v.geometry(), Top: top}); o != OutcomeCommitted {
		t.Fatal(o, failed)
	}
	// The prune goes on.
	for _, m := range c.mem {
		for p := range list.packs {
			if err = m.Delete(t.Context(), packName(p)); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustVerify(t, v, c.open(t), "b2")
}

func TestStoreDownDuringBackup(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(5), 400, 150)
	c.faulty[2].SetDown(true)
	v.mustBackup(t, r, "b1", "", nil)
	for _, s := range r.Status(t.Context()) {
		if down := s.URL == "mem:2"; (s.State == StoreDown) != down || (s.Owed > 0) != down {
			t.Errorf("%+v", s)
		}
	}
	c.faulty[2].SetDown(false)
	for _, s := range r.Status(t.Context()) {
		if s.State != StoreUp || (s.Owed > 0) != (s.URL == "mem:2") {
			t.Errorf("back again: %+v", s)
		}
	}
	rep, err := r.Check(t.Context(), CheckOptions{})
	if err != nil || rep.OK() || !rep.Backups[0].Restorable || rep.Stores[2].Missing == 0 {
		t.Errorf("check: %+v, %v", rep, err)
	}
	// And one more may be lost: d = 1.
	c.faulty[4].SetDown(true)
	mustVerify(t, v, c.open(t), "b1")
}

func TestTooFewStoresForABackup(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(6), 100, 30)
	v.mustBackup(t, r, "b1", "", nil)
	c.faulty[1].SetDown(true)
	c.faulty[2].SetDown(true)
	if o, err := v.backup(t.Context(), r, "b2", "", nil); o != OutcomeFailed || !errors.Is(err, ErrTooFewStores) {
		t.Errorf("two stores down: %v, %v", o, err)
	}
	// Reading goes on.
	mustVerify(t, v, r, "b1")
	mustVerify(t, v, c.open(t), "b1")
}

func TestStoreLostWhilePacksAreSent(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(7), 100, 30)
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	c.faulty[0].SetDown(true)
	c.faulty[5].SetDown(true)
	top, err := v.write(t.Context(), s, nil)
	if err == nil {
		var o Outcome
		if o, err = s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top}); o != OutcomeFailed {
			t.Errorf("outcome %v", o)
		}
	}
	if !errors.Is(err, ErrTooFewStores) {
		t.Errorf("error %v", err)
	}
	c.heal()
	if list, err := c.open(t).Backups(t.Context()); err != nil || len(ids(list, Available)) != 0 {
		t.Errorf("Backups = %v, %v", list, err)
	}
}

// A store that never answers must not stop a backup, nor a listing, nor a read.
func TestHangingStore(t *testing.T) {
	c, _ := fresh(t)
	r := c.open(t, func(o *Options) {
		o.Timing = Timing{Call: 10 * time.Second, Grace: time.Millisecond, Read: 50 * time.Millisecond, Aside: time.Hour}
	})
	v := randomContent(seeded(8), 3000, 900)
	release := make(chan struct{})
	hang := memstore.Faults{Before: func(context.Context, memstore.Call) error { <-release; return objstore.ErrDown }}
	c.faulty[3].SetFaults(hang)
	v.mustBackup(t, r, "b1", "", nil)
	mustVerify(t, v, r, "b1")
	close(release)
	c.heal()
	mustVerify(t, v, c.open(t), "b1")
}

func TestReplacedStoreDoesNotCount(t *testing.T) {
	// A store is wiped and another put in its place while a session runs.
	c := newCluster(2)
	losses := 1
	if _, err := Init(t.Context(), InitOptions{Stores: c.stores(), Data: 1, Parity: 1, Losses: &losses, Password: password, KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	r := c.open(t)
	v := randomContent(seeded(9), 50, 10)
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range c.mem[1].Names() {
		if name == storeName {
			other := newCluster(1)
			other.init(t, 1, 0)
			object, failed := other.mem[0].Get(t.Context(), storeName, 0, -1, nil)
			if failed != nil {
				t.Fatal(failed)
			}
			c.mem[1].Replace(storeName, object)
		}
	}
	o, err := s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top})
	if o == OutcomeCommitted || err == nil {
		t.Errorf("told %v although one of two stores was replaced", o)
	}
}

func TestFence(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(10), 100, 30)
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
	if err != nil {
		t.Fatal(err)
	}
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := c.open(t)
	if d, failed := other.Verdict(t.Context(), s.ID()); d != Undecided || failed != nil {
		t.Errorf("Verdict = %v, %v", d, failed)
	}
	if d, failed := other.FenceSession(t.Context(), s.ID()); d != Aborted || failed != nil {
		t.Errorf("FenceSession = %v, %v", d, failed)
	}
	if o, failed := s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top}); o != OutcomeFailed || failed == nil {
		t.Errorf("the zombie was told %v, %v", o, failed)
	}
	if list, failed := other.Backups(t.Context()); failed != nil || len(list) != 0 {
		t.Errorf("Backups = %v, %v", list, failed)
	}

	v.mustBackup(t, r, "b2", "", nil)
	list, err := other.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d, err := other.FenceSession(t.Context(), list[0].Session); d != Committed || err != nil {
		t.Errorf("fencing a committed session = %v, %v", d, err)
	}
}

func TestDeleteAndTrash(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(11), 100, 30)
	v.mustBackup(t, r, "b1", "", nil)
	if err := r.Delete(t.Context(), "b1"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Repository{r, c.open(t)} {
		if list, err := r.Backups(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("Backups = %v, %v", list, err)
		}
		if list, err := r.Trash(t.Context()); err != nil || len(list) != 1 || list[0].State != Deleted {
			t.Errorf("Trash = %v, %v", list, err)
		}
		if _, err := r.Image(t.Context(), "b1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("Image = %v", err)
		}
	}
	if err := r.Delete(t.Context(), "b1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("second Delete = %v", err)
	}
}

// What may be on stores that do not answer is not called absent: whoever hears
// that a backup is not there forgets it.
func TestNotFoundIsCertain(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(12), 20, 5)
	c.faulty[5].SetDown(true)
	v.mustBackup(t, r, "b1", "", nil)
	c.faulty[5].SetDown(false)
	r = c.open(t) // that has not read its root record
	for i := range 5 {
		c.faulty[i].SetDown(true)
	}
	if err := r.Delete(t.Context(), "b1"); !errors.Is(err, ErrTooFewStores) || errors.Is(err, ErrNotFound) {
		t.Errorf("delete with the one store that lacks it: %v", err)
	}
	c.heal()
	// Listed, and away before it is read.
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			if (call.Op == "get" || call.Op == "stat") && strings.HasPrefix(call.Name, rootPrefix) {
				return objstore.ErrDown
			}
			return nil
		}})
	}
	if err := r.Delete(t.Context(), "b1"); !errors.Is(err, ErrTooFewStores) || errors.Is(err, ErrNotFound) {
		t.Errorf("delete while the root record cannot be read: %v", err)
	}
	c.heal()
	if err := r.Delete(t.Context(), "b1"); err != nil {
		t.Error(err)
	}
	c.faulty[0].SetDown(true)
	if err := r.Delete(t.Context(), "b2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("delete of what no store can have: %v", err)
	}
}

func TestNames(t *testing.T) {
	_, r := fresh(t)
	v := randomContent(seeded(12), 20, 5)
	for _, id := range []string{"x1", "x2"} {
		s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
		if err != nil {
			t.Fatal(err)
		}
		top, err := v.write(t.Context(), s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := s.Commit(t.Context(), Root{BackupID: id, Name: "same", Geometry: v.geometry(), Top: top}); o != OutcomeCommitted {
			t.Fatal(err)
		}
		if o, err := s.Commit(t.Context(), Root{BackupID: id, Geometry: v.geometry(), Top: top}); o == OutcomeCommitted || !errors.Is(err, ErrEnded) {
			t.Errorf("second Commit = %v, %v", o, err)
		}
		if err := s.Abort(t.Context()); err != nil {
			t.Errorf("Abort behind Commit = %v", err)
		}
	}
	if _, err := r.Backup(t.Context(), "same"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("ambiguous name: %v", err)
	}
	if _, err := r.Backup(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown name: %v", err)
	}
	if b, err := r.Backup(t.Context(), "x2"); err != nil || b.Name != "same" {
		t.Errorf("%+v, %v", b, err)
	}
}
