package repository

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/objstore/s3test"
)

// clock is time that a test moves.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

// locking returns a cluster whose first stores retain.
func locking(tb testing.TB, stores int) (*cluster, *clock, *Repository) {
	tb.Helper()
	at := &clock{time.Date(2026, 1, 1, 12, 0, 0, 1, time.UTC)}
	c := newCluster(6)
	for _, m := range c.mem[:stores] {
		m.Retains(at.now)
	}
	c.init(tb, 4, 2)
	cache := tb.TempDir()
	return c, at, c.open(tb, func(o *Options) { o.Now, o.CacheDir = at.now, cache })
}

// retained is content.backup with a retention.
func (c *content) retained(ctx context.Context, r *Repository, id, parent, volume string, changed []int64, keep time.Duration) (Outcome, error) {
	s, err := r.Begin(ctx, SessionOptions{VolumeID: volume, Volume: volume, ParentBackup: parent, Retain: keep})
	if err != nil {
		return OutcomeFailed, err
	}
	if s.Parent() == nil {
		changed = nil
		for b := range c.blocks {
			changed = append(changed, b)
		}
	}
	top, err := c.write(ctx, s, changed)
	if err != nil {
		return OutcomeFailed, errors.Join(err, s.Abort(ctx))
	}
	return s.Commit(ctx, Root{BackupID: id, Created: r.o.Now(), Geometry: c.geometry(), Top: top})
}

// robbed is what is left when somebody with all keys deletes what he can on
// some of the stores.
func (c *cluster) robbed(stores int) *cluster {
	c = c.clone()
	for _, m := range c.mem[:stores] {
		for _, name := range m.Names() {
			if err := m.Delete(context.Background(), name); err != nil && !errors.Is(err, objstore.ErrRetained) {
				panic(err)
			}
		}
	}
	return c
}

func TestRetention(t *testing.T) {
	c, at, r := locking(t, 6)
	day := 24 * time.Hour
	v := randomContent(seeded(1), 200, 40)
	if o, err := v.retained(t.Context(), r, "one", "", "v", nil, 10*day); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	b, err := r.Backup(t.Context(), "one")
	if err != nil || b.RetainUntil.Before(at.t.Add(10*day)) || b.RetainUntil.After(at.t.Add(10*day+time.Second)) {
		t.Fatalf("%+v, %v", b, err)
	}
	if err = r.Delete(t.Context(), "one"); !errors.Is(err, ErrRetained) || !strings.Contains(err.Error(), "2026-01-11 12:00") {
		t.Fatalf("deleted: %v", err)
	}
	mustVerify(t, v, c.robbed(6).open(t), "one")
	// A tombstone that somebody wrote all the same ages, and takes nothing.
	if err = r.entomb(t.Context(), "one", must(parseIdent(b.Session))); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		mustPrune(t, r)
	}
	if _, err = r.Undelete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err = r.Delete(t.Context(), "one"); !errors.Is(err, ErrRetained) {
		t.Fatalf("deleted when it was undeleted: %v", err)
	}
	mustVerify(t, v, r, "one")
	// Its time is over; that of the locks, which end with a period, is not.
	at.t = at.t.Add(10*day + time.Hour)
	if err = r.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, r)
	if rep := mustPrune(t, r); rep.Backups == 0 || rep.Locked == 0 {
		t.Fatalf("%+v", rep)
	}
	at.t = at.t.Add(6 * day)
	c.drained(t, r)
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, packPrefix) || strings.HasPrefix(name, rootPrefix) {
				t.Errorf("%s: %s is left", m.URL(), name)
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Backups of two volumes that share chunks, with and without retention, deleted
// and pruned as time goes by: whatever somebody deletes then on all stores, or on
// the few that lock, each backup whose time has not come is whole.
func TestRetentionModel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			stores := 4 + rng.IntN(3)
			c, at, r := locking(t, stores)
			want := make(map[string]*content)
			until := make(map[string]time.Time)
			last := make(map[string]string)
			base := randomContent(rng, 150, 40)
			state := map[string]*content{"v": base, "w": base.clone()}
			for n := range 14 {
				volume := []string{"v", "w"}[rng.IntN(2)]
				v := state[volume].clone()
				changed := v.change(rng, 6)
				state[volume] = v
				keep := time.Duration(rng.IntN(3)) * time.Duration(1+rng.IntN(40)) * time.Hour
				id := fmt.Sprintf("b%d", n)
				if o, err := v.retained(t.Context(), r, id, last[volume], volume, changed, keep); err != nil || o != OutcomeCommitted {
					t.Fatal(o, err)
				}
				want[id], until[id], last[volume] = v, at.t.Add(keep), id
				for old := range want {
					if rng.IntN(4) > 0 {
						continue
					}
					err := r.Delete(t.Context(), old)
					if refused := errors.Is(err, ErrRetained); err != nil && !refused || refused != until[old].After(at.t) && until[old].Sub(at.t) > time.Second {
						t.Fatalf("delete %s, which is retained until %s, at %s: %v", old, until[old], at.t, err)
					} else if err == nil {
						delete(want, old)
					}
				}
				if rng.IntN(3) == 0 {
					mustPrune(t, r)
				}
				at.t = at.t.Add(time.Duration(rng.IntN(20)) * time.Hour)
				var again *Repository // nothing is left of it before the first retention
				for id, v := range want {
					if !until[id].After(at.t) {
						continue
					}
					if again == nil {
						again = c.robbed(stores).open(t)
					}
					if err := v.verify(t.Context(), again, id); err != nil {
						t.Fatalf("step %d, %d stores lock: %s: %v", n, stores, id, err)
					}
				}
			}
			at.t = at.t.Add(1000 * time.Hour)
			for id := range want {
				if err := r.Delete(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			c.drained(t, r)
		})
	}
}

// As many stores may fail to retain as may fail to write; one more, and the
// backup fails as a whole.
func TestRetentionRefused(t *testing.T) {
	for _, tt := range []struct {
		fail int
		want Outcome
	}{{1, OutcomeCommitted}, {2, OutcomeFailed}} {
		c, _, r := locking(t, 6)
		for _, f := range c.faulty[:tt.fail] {
			f.SetFaults(memstore.Faults{Decide: func(k memstore.Call) memstore.Fault {
				if k.Op == "retain" {
					return memstore.FailBefore
				}
				return memstore.None
			}})
		}
		v := randomContent(seeded(3), 60, 20)
		o, err := v.retained(t.Context(), r, "one", "", "v", nil, time.Hour)
		if o != tt.want || (err == nil) != (tt.want == OutcomeCommitted) {
			t.Errorf("%d stores do not retain: %v, %v", tt.fail, o, err)
		}
		c.heal()
		if bs, err := r.Backups(t.Context()); err != nil || (len(bs) == 1) != (tt.want == OutcomeCommitted) {
			t.Errorf("%d stores do not retain: listed %+v, %v", tt.fail, bs, err)
		}
	}
	// Without stores that lock it is Cairn's own promise.
	_, _, r := locking(t, 0)
	v := randomContent(seeded(3), 60, 20)
	if o, err := v.retained(t.Context(), r, "one", "", "v", nil, time.Hour); o != OutcomeCommitted || err != nil {
		t.Fatal(o, err)
	}
	if err := r.Delete(t.Context(), "one"); !errors.Is(err, ErrRetained) {
		t.Fatal(err)
	}
}

// Somebody with the keys of all buckets deletes, overwrites and deletes with all
// versions. What was retained comes back from the versions that were first.
func TestRetentionOnS3(t *testing.T) {
	s3test.Keys(t)
	srv := s3test.New(t, s3test.MinIO)
	var stores, first []objstore.Store
	buckets := []string{"one", "two", "three"}
	for _, b := range buckets {
		srv.LockingBucket(t, b)
		stores = append(stores, openS3(t, srv.URL(b, "lock=compliance")))
		first = append(first, openS3(t, srv.URL(b, "versions=first")))
	}
	if _, err := Init(t.Context(), InitOptions{Stores: stores, Data: 2, Parity: 1, Password: password, KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	r := must(Open(t.Context(), Options{Stores: stores, Password: password}))
	v := randomContent(seeded(5), 100, 30)
	if o, err := v.retained(t.Context(), r, "one", "", "v", nil, time.Hour); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	next := v.clone()
	if o, err := next.retained(t.Context(), r, "two", "one", "v", next.change(seeded(6), 5), time.Hour); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	for i, b := range buckets {
		var names []string
		if err := stores[i].List(t.Context(), "", func(o objstore.Info) error { names = append(names, o.Name); return nil }); err != nil {
			t.Fatal(err)
		}
		plain := openS3(t, srv.URL(b))
		for n, name := range names {
			if n%3 == 0 {
				srv.Overwrite(t, b, name, []byte("pay"))
			}
			if n%3 == 1 {
				if err := stores[i].Delete(t.Context(), name); err != nil && !errors.Is(err, objstore.ErrRetained) {
					t.Fatal(err)
				}
			}
			if err := plain.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := Open(t.Context(), Options{Stores: stores, Password: password}); err == nil {
		t.Error("the repository opens as if nothing had happened")
	}
	again := must(Open(t.Context(), Options{Stores: first, Password: password}))
	mustVerify(t, v, again, "one")
	mustVerify(t, next, again, "two")
}
