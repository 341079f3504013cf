package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/backup"
	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// ReadAt makes a content the source of a backup run.
func (c *content) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, c.bytes()[off:])
	return nil
}

// runSession lets a backup run write to a session.
type runSession struct{ *Session }

func (s runSession) Worker() (backup.Worker, error) { return s.Session.Worker() }

// runBackup makes a backup as an agent does: an incremental reads only what changed,
// and what is known to be damaged.
func (c *content) runBackup(ctx context.Context, r *Repository, volume, id, parent string, changed ...int64) (backup.Result, Outcome, error) {
	s, err := r.Begin(ctx, SessionOptions{Project: "p", VolumeID: volume, Volume: volume, ParentBackup: parent})
	if err != nil {
		return backup.Result{}, OutcomeFailed, err
	}
	p := backup.Plan{Geometry: c.geometry(), Bad: s.Bad(), Dirty: []blockmap.Extent{}, Workers: 1}
	slices.Sort(changed)
	for _, b := range slices.Compact(changed) {
		p.Dirty = append(p.Dirty, blockmap.Extent{Offset: b * testBlock, Length: testBlock, State: blockmap.Dirty})
	}
	res, err := backup.Run(ctx, c, runSession{s}, p, nil)
	if err != nil {
		return res, OutcomeFailed, errors.Join(err, s.Abort(ctx))
	}
	o, err := s.Commit(ctx, Root{BackupID: id, Name: id, Created: time.Unix(1_760_000_000, 0), Geometry: c.geometry(), Top: res.Top})
	return res, o, err
}

func (c *content) mustRun(tb testing.TB, r *Repository, volume, id, parent string, changed ...int64) backup.Result {
	tb.Helper()
	res, o, err := c.runBackup(tb.Context(), r, volume, id, parent, changed...)
	if err != nil || o != OutcomeCommitted {
		tb.Fatalf("backup %s: %v, %v", id, o, err)
	}
	return res
}

// packNames returns the packs that are on the first store, in order.
func (c *cluster) packNames() []string {
	return slices.DeleteFunc(c.mem[0].Names(), func(name string) bool { _, ok := parsePackName(name); return !ok })
}

// lose deletes the shards of a pack on some stores, or changes one byte of them.
func (c *cluster) lose(tb testing.TB, name string, stores []int, flip bool) {
	tb.Helper()
	for _, i := range stores {
		body, err := c.mem[i].Get(tb.Context(), name, 0, -1, nil)
		if err != nil {
			tb.Fatal(err)
		}
		if flip {
			body[min(1000, len(body)-1)] ^= 1
			c.mem[i].Replace(name, body)
		} else if err := c.mem[i].Delete(tb.Context(), name); err != nil {
			tb.Fatal(err)
		}
	}
}

func mustCheck(tb testing.TB, r *Repository) CheckReport {
	tb.Helper()
	rep, err := r.Check(tb.Context(), CheckOptions{ReadData: true, Publish: true})
	if err != nil || rep.Unpublished != "" {
		tb.Fatalf("%+v, %v", rep, err)
	}
	return rep
}

// whole tells which backups a report says to be whole.
func whole(rep CheckReport) map[string]bool {
	out := make(map[string]bool)
	for _, b := range rep.Backups {
		out[b.Backup.ID] = b.Restorable && len(b.Problems) == 0 && len(b.Damaged) == 0
	}
	return out
}

func indexed(dir string) func(*Options) {
	return func(o *Options) { o.CacheDir = dir; o.Cache.Index = 1 << 20 }
}

// What is beyond repair is stored again by the next backup that still has it, in
// whatever way it was lost; the old backup stays damaged and is said to be so.
func TestNextBackupHeals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		stores []int
		flip   bool
	}{
		{"m+1 shards gone", []int{0, 2, 5}, false},
		{"all shards gone", []int{0, 1, 2, 3, 4, 5}, false},
		{"one cell of m+1 shards", []int{0, 1, 2}, true},
	} {
		for _, fresh := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/reopened=%v", tt.name, fresh), func(t *testing.T) {
				c := newCluster(6)
				c.init(t, 4, 2)
				dir := t.TempDir()
				r := c.open(t, indexed(dir))
				reopen := func() {
					if !fresh {
						return
					}
					dir = t.TempDir() // its index is built from the backups
					r = c.open(t, indexed(dir))
				}
				v := randomContent(seeded(7), 400, 150)
				v.mustRun(t, r, "v", "one", "")
				for _, name := range c.packNames() {
					c.lose(t, name, tt.stores, tt.flip)
				}
				if rep := mustCheck(t, c.open(t)); whole(rep)["one"] || rep.Beyond == 0 {
					t.Fatalf("%+v", rep)
				}
				reopen()
				other := v.clone()
				other.mustRun(t, r, "other volume", "other", "")
				reopen()
				res := v.mustRun(t, r, "v", "two", "one")
				if res.Healed+res.Reread == 0 {
					t.Errorf("nothing was healed: %+v", res)
				}
				mustVerify(t, v, c.open(t), "two")
				mustVerify(t, other, c.open(t), "other")
				rep := mustCheck(t, c.open(t))
				if got := whole(rep); !maps.Equal(got, map[string]bool{"one": false, "two": true, "other": true}) {
					t.Errorf("%v, %+v", got, rep)
				}
				// From a whole parent nothing has to be looked through again, nor read.
				changed := v.change(seeded(8), 3)
				if res = v.mustRun(t, r, "v", "three", "two", changed...); res.Healed+res.Reread != 0 {
					t.Errorf("healed twice: %+v", res)
				}
				mustVerify(t, v, c.open(t), "three")
			})
		}
	}
}

// A list that turns out to be wrong is superseded by the next check, and a prune
// removes what is out of date without ever making an older list count again.
func TestDamageIsSuperseded(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	before := c.clone()
	for _, name := range c.packNames() {
		c.lose(t, name, []int{1, 2, 3}, false)
	}
	mustCheck(t, c.open(t))
	if rep := mustCheck(t, c.open(t)); rep.Beyond == 0 || c.count(damagedPrefix) != 6 {
		t.Fatalf("the same again: %+v, %d lists", rep, c.count(damagedPrefix))
	}
	c.putBack(t, before)
	if rep := mustCheck(t, c.open(t)); !rep.OK() || rep.Beyond != 0 || c.count(damagedPrefix) != 12 {
		t.Fatalf("all is well: %+v, %d lists", rep, c.count(damagedPrefix))
	}
	r = c.open(t)
	if res := v.mustRun(t, r, "v", "two", "one"); res.Healed != 0 || res.BytesNew != 0 {
		t.Errorf("%+v", res)
	}
	for _, left := range []int{6, 0} {
		if _, err := r.Prune(t.Context(), PruneOptions{}); err != nil || c.count(damagedPrefix) != left {
			t.Errorf("a prune left %d lists, want %d: %v", c.count(damagedPrefix), left, err)
		}
	}
}

// count returns how many objects below a prefix all stores have together.
func (c *cluster) count(prefix string) int {
	n := 0
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, prefix) {
				n++
			}
		}
	}
	return n
}

// putBack gives the stores the shards again that they had.
func (c *cluster) putBack(tb testing.TB, before *cluster) {
	tb.Helper()
	for i, m := range before.mem {
		for _, name := range m.Names() {
			if _, ok := parsePackName(name); ok {
				body, err := m.Get(tb.Context(), name, 0, -1, nil)
				if err != nil {
					tb.Fatal(err)
				}
				c.mem[i].Replace(name, body)
			}
		}
	}
}

// Stores that are down are no damage; what they hide stays as it was known to be.
func TestDamageBehindStoresThatAreDown(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(10), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	for _, name := range c.packNames() {
		c.lose(t, name, []int{1}, true)
	}
	c.faulty[2].SetDown(true)
	c.faulty[3].SetDown(true)
	if rep := mustCheck(t, c.open(t)); whole(rep)["one"] || rep.Beyond != 0 || c.count(damagedPrefix) != 0 {
		t.Fatalf("nothing can be read, and two stores are down: %+v", rep)
	}
	c.heal()
	for _, name := range c.packNames() {
		c.lose(t, name, []int{2, 3}, true)
	}
	known := mustCheck(t, c.open(t)).Beyond
	c.faulty[1].SetDown(true)
	if rep := mustCheck(t, c.open(t)); rep.Beyond != known || c.count(damagedPrefix) != 6 {
		t.Fatalf("one store down: %+v, %d known", rep, known)
	}
}

// A share of the data says nothing about the other packs, and a repair that mends
// takes back what was said.
func TestDamageByShares(t *testing.T) {
	c, r := fresh(t)
	for i := range 6 { // a pack each, at least
		v := randomContent(seeded(uint64(20+i)), 100, 30)
		v.mustRun(t, r, "v", fmt.Sprint("b", i), "")
	}
	names := c.packNames()
	for _, name := range names {
		c.lose(t, name, []int{0, 1, 2}, true)
	}
	after, known := "", 0
	for range 100 / 10 {
		rep, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Share: 10, After: after, Publish: true})
		if err != nil || rep.Unpublished != "" || rep.Beyond < known {
			t.Fatalf("%+v, %v", rep, err)
		}
		after, known = rep.Position, rep.Beyond
	}
	if known != len(names) {
		t.Fatalf("%d of %d packs known", known, len(names))
	}
	for _, name := range names[1:] { // the third shard is right again
		c.lose(t, name, []int{2}, true)
	}
	rep, err := c.open(t).Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
	if err != nil || rep.Beyond != 1 || len(rep.Lost) != 1 || rep.Unpublished != "" {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// A check that publishes, the backup that heals, and the prune that removes what is
// out of date, killed at any of their calls: the same again ends well, and no backup
// that was told committed is worse than its source.
func TestHealKilledAtAnyCall(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(11), 160, 50)
	v.mustRun(t, r, "v", "one", "")
	sound := c.clone()
	for _, name := range c.packNames() {
		c.lose(t, name, []int{0, 3, 4}, false)
	}
	heals := func(n int64, c *cluster) {
		t.Helper()
		r := c.process().open(t)
		rep := mustCheck(t, r)
		if rep.Beyond == 0 || whole(rep)["one"] {
			t.Errorf("killed at call %d: %+v", n, rep)
		}
		for _, b := range rep.Backups {
			if b.Backup.ID == "two" && !b.Restorable {
				t.Errorf("killed at call %d: the backup that heals is not whole: %+v", n, rep)
			}
		}
		v.mustRun(t, r, "v", "three", "one")
		mustVerify(t, v, c.process().open(t), "three")
	}
	t.Run("check", func(t *testing.T) {
		c.killedAt(t, stride(7, 41), func(ctx context.Context, r *Repository) error {
			_, err := r.Check(ctx, CheckOptions{ReadData: true, Publish: true})
			return err
		}, heals)
	})
	mustCheck(t, c.open(t))
	t.Run("backup", func(t *testing.T) {
		c.killedAt(t, stride(7, 41), func(ctx context.Context, r *Repository) error {
			_, _, err := v.runBackup(ctx, r, "v", "two", "one")
			return err
		}, heals)
	})
	t.Run("prune", func(t *testing.T) {
		c.putBack(t, sound) // which a check says
		mustCheck(t, c.open(t))
		c.killedAt(t, stride(3, 17), func(ctx context.Context, r *Repository) error {
			_, err := r.Prune(ctx, hasty)
			return err
		}, func(n int64, c *cluster) {
			r := c.process().open(t)
			if s, err := r.readDamage(t.Context()); err != nil || s.size() != 0 {
				t.Errorf("killed at call %d: an older list counts: %+v, %v", n, s, err)
			}
			mustVerify(t, v, r, "one")
			for range 3 {
				mustPrune(t, r)
			}
			if left := c.count(damagedPrefix); left != 0 {
				t.Errorf("killed at call %d: %d lists left", n, left)
			}
		})
	})
}

// A list that a store made up, or that nobody can read, says nothing, and neither
// does its number.
func TestDamageMadeUp(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(12), 160, 50)
	v.mustRun(t, r, "v", "one", "")
	for _, name := range c.packNames() {
		c.lose(t, name, []int{0, 3, 4}, false)
	}
	known := mustCheck(t, c.open(t)).Beyond
	var genuine string
	for _, name := range c.mem[2].Names() {
		if strings.HasPrefix(name, damagedPrefix) {
			genuine = name
		}
	}
	body, err := c.mem[2].Get(t.Context(), genuine, 0, -1, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := newIdent()
	if err != nil {
		t.Fatal(err)
	}
	c.mem[2].Replace(damageName(1<<64-1, id), body)
	c.mem[2].Replace(damagedPrefix+"01/"+id.String(), body)
	c.mem[2].Replace(damagedPrefix+"nonsense", body)
	c.mem[2].Replace(genuine, body[:len(body)-1])
	d, err := c.open(t).readDamage(t.Context())
	if err != nil || d.version != 1 || d.size() != known {
		t.Errorf("%+v, %v", d, err)
	}
}

// Names that stores make up, however many, take the place of no list that another
// has, and cost few reads.
func TestDamageIsNotCrowdedOut(t *testing.T) {
	for _, tt := range []struct {
		name  string
		liars []int
		names int
		holds []int // who has the list; nil: everybody
	}{
		{"one store", []int{2}, maxDamageLists, nil},
		{"many names", []int{2}, 20 * maxDamageLists, nil},
		{"two stores that agree", []int{2, 5}, maxDamageLists + 1, nil},
		{"five stores that agree", []int{0, 1, 2, 3, 4}, maxDamageLists + 1, []int{5}},
		{"one other store has it", []int{2}, maxDamageLists, []int{4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, r := fresh(t)
			v := randomContent(seeded(12), 160, 50)
			v.mustRun(t, r, "v", "one", "")
			for _, name := range c.packNames() {
				c.lose(t, name, []int{0, 3, 4}, false)
			}
			known := mustCheck(t, c.open(t)).Beyond
			for i, m := range c.mem {
				for _, name := range m.Names() {
					if strings.HasPrefix(name, damagedPrefix) && tt.holds != nil && !slices.Contains(tt.holds, i) {
						if err := m.Delete(t.Context(), name); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			for range tt.names {
				id, err := newIdent()
				if err != nil {
					t.Fatal(err)
				}
				for _, i := range tt.liars {
					c.mem[i].Replace(damageName(1<<60, id), []byte("x"))
				}
			}
			reads := 0
			for _, f := range c.faulty {
				f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
					if call.Op == "get" && strings.HasPrefix(call.Name, damagedPrefix) {
						reads++
					}
					return memstore.None
				}})
			}
			r = c.open(t)
			d, err := r.readDamage(t.Context())
			if err != nil || d.size() != known || d.version != 1 {
				t.Errorf("%d of %d, %v", d.size(), known, err)
			}
			if reads > 1+maxWrongLists*len(tt.liars) {
				t.Errorf("%d lists were read", reads)
			}
			if res := v.mustRun(t, r, "v", "two", "one"); res.Healed+res.Reread == 0 {
				t.Errorf("nothing was healed: %+v", res)
			}
		})
	}
}

// A list is read back as it was written, and nothing else is taken for one.
func TestDamageCodec(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d := newDamage()
		for _, b := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 32, 32), 0, 20).Draw(rt, "packs") {
			d.packs[chunk.PackID(b)] = struct{}{}
		}
		got, payload := newDamage(), d.encode()
		if err := got.decode(payload); err != nil || !maps.Equal(got.packs, d.packs) {
			rt.Fatalf("%v, %v", got, err)
		}
		i := rapid.IntRange(0, len(payload)-1).Draw(rt, "at")
		payload[i] ^= byte(rapid.IntRange(1, 255).Draw(rt, "flip"))
		got = newDamage()
		if err := got.decode(payload); err == nil && !bytes.Equal(got.encode(), payload) {
			rt.Fatalf("another payload for the same packs: %x", payload)
		}
		if err := newDamage().decode(payload[:i]); err == nil {
			rt.Fatal("cut and not noticed")
		}
	})
}

// A listing that fails says nothing of the packs.
func TestDamageAndAListingThatFails(t *testing.T) {
	c := newCluster(1)
	c.init(t, 1, 0)
	r := c.open(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	failed := false
	c.faulty[0].SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
		if !failed && call.Op == "list" && call.Name == packPrefix {
			failed = true
			return memstore.FailBefore
		}
		return memstore.None
	}})
	rep := mustCheck(t, c.open(t))
	c.heal()
	res := v.mustRun(t, c.open(t), "v", "two", "one")
	if rep.Beyond != 0 || res.BytesNew != 0 {
		t.Errorf("beyond %d of %d packs; the next incremental without a change stored %d bytes: %+v", rep.Beyond, rep.Packs, res.BytesNew, rep.Stores)
	}
}

// Reads that fail for a moment, on the only store, are no damage.
func TestDamageAndAReadThatFails(t *testing.T) {
	c := newCluster(1)
	c.init(t, 1, 0)
	r := c.open(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	failed := 0
	rr := c.open(t)
	rep, err := rr.Check(t.Context(), CheckOptions{ReadData: true, Publish: true, Progress: func(p CheckProgress) {
		if p.Phase != "packs" {
			return
		}
		c.faulty[0].SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if _, ok := parsePackName(call.Name); ok && call.Op == "get" && failed == 0 {
				failed++
				return memstore.Down
			}
			return memstore.None
		}})
	}})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Beyond != 0 {
		t.Errorf("%d of %d packs beyond repair by %d read that failed", rep.Beyond, rep.Packs, failed)
	}
}
