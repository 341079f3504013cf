package repository

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/manifest"
)

// noisyContent is a volume whose blocks do not compress.
func noisyContent(seed uint64, blocks int64) *content {
	r := seeded(seed)
	c := &content{size: blocks * testBlock, blocks: make(map[int64][]byte)}
	for b := range blocks {
		c.blocks[b] = make([]byte, testBlock)
		for i := range c.blocks[b] {
			c.blocks[b][i] = byte(r.Uint32())
		}
	}
	return c
}

// backupApart makes a backup whose nodes are in another pack than its blocks, and
// returns the name of the pack with the blocks.
func (c *content) backupApart(t *testing.T, r *Repository, id string) string {
	t.Helper()
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", Volume: "v"})
	if err != nil {
		t.Fatal(err)
	}
	leaves, name := make(map[int64]*manifest.Leaf), ""
	data, err := s.Worker()
	if err != nil {
		t.Fatal(err)
	}
	for b, plain := range c.blocks {
		ref, _, failed := data.PutBlock(t.Context(), data.BlockID(plain), plain)
		if failed != nil {
			t.Fatal(failed)
		}
		n := b / manifest.LeafBlocks
		if leaves[n] == nil {
			leaves[n] = &manifest.Leaf{}
		}
		leaves[n].Set(int(b%manifest.LeafBlocks), ref)
		name = packName(ref.Pack)
	}
	if err = data.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes, err := s.Worker()
	if err != nil {
		t.Fatal(err)
	}
	b := manifest.NewBuilder(nil, c.geometry())
	for n, l := range leaves {
		if err = b.SetLeaf(t.Context(), nodes, n, l); err != nil {
			t.Fatal(err)
		}
	}
	top, err := b.Finish(t.Context(), nodes)
	if err = errors.Join(err, nodes.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	if o, err := s.Commit(t.Context(), Root{BackupID: id, Name: id, Created: time.Unix(1_760_000_000, 0), Geometry: c.geometry(), Top: top}); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	return name
}

// damagedOld is a repository with a backup whose data is beyond repair in one pack, which
// all stores are told, and with a later one that stored it again, but for the blocks that
// were changed in between.
func damagedOld(t *testing.T, stores []int, flip bool, changed ...int64) (c *cluster, old, now *content) {
	t.Helper()
	c, r := fresh(t)
	old = noisyContent(77, 30)
	c.lose(t, old.backupApart(t, r, "one"), stores, flip)
	if rep := mustCheck(t, c.open(t)); whole(rep)["one"] || rep.Beyond != 1 {
		t.Fatalf("%+v", rep)
	}
	now = old.clone()
	for _, b := range changed {
		now.blocks[b] = slices.Repeat([]byte{byte(b), 7}, testBlock/2)
	}
	if res := now.mustRun(t, c.open(t), "v", "two", "one", changed...); res.Healed+res.Reread == 0 {
		t.Fatalf("%+v", res)
	}
	return c, old, now
}

// A prune heals old backups from what a later one stored again.
func TestPruneHealsOldBackups(t *testing.T) {
	for _, tt := range []struct {
		name   string
		stores []int
		flip   bool
	}{
		{"shards are gone", []int{0, 3, 4}, false},
		{"all shards are gone", []int{0, 1, 2, 3, 4, 5}, false},
		{"shards are wrong", []int{0, 3, 4}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, old, now := damagedOld(t, tt.stores, tt.flip)
			r := c.process().open(t)
			dry := hasty
			dry.DryRun = true
			if rep, err := r.Prune(t.Context(), dry); err != nil || rep.Healed != 1 {
				t.Fatalf("%+v, %v", rep, err)
			}
			if rep := mustPrune(t, r); rep.Healed != 1 || rep.Compacted != 1 || len(rep.Problems) != 0 {
				t.Fatalf("%+v", rep)
			}
			mustVerify(t, old, c.process().open(t), "one")
			mustVerify(t, now, c.process().open(t), "two")
			rep := mustCheck(t, c.process().open(t))
			if !rep.OK() || rep.Beyond != 0 || !maps.Equal(whole(rep), map[string]bool{"one": true, "two": true}) {
				t.Errorf("%+v", rep)
			}
			// It stays healed without the backup that it was healed from.
			if err := r.Delete(t.Context(), "two"); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if rep := mustPrune(t, r); rep.Healed != 0 {
					t.Errorf("%+v", rep)
				}
			}
			mustVerify(t, old, c.process().open(t), "one")
			if rep = mustCheck(t, c.process().open(t)); !rep.OK() {
				t.Errorf("%+v", rep)
			}
			if err := r.Delete(t.Context(), "one"); err != nil {
				t.Fatal(err)
			}
			c.drained(t, r)
		})
	}
}

// A pack of which anything cannot be had stays as it is, with all that can be read of
// it: its shards may come back.
func TestPruneHealsAllOrNothing(t *testing.T) {
	c, old, now := damagedOld(t, []int{0, 1, 2, 3}, false, 17) // what is left has no chunk as it is
	r := c.process().open(t)
	before := c.count(packPrefix)
	for range 2 {
		if rep := mustPrune(t, r); rep.Healed+rep.Compacted != 0 || len(rep.Problems) != 0 {
			t.Fatalf("%+v", rep)
		}
	}
	if c.count(packPrefix) != before || c.count(forwardPrefix) != 0 {
		t.Error("something went")
	}
	mustVerify(t, now, c.process().open(t), "two")
	// The volume has the block again, as it was.
	old.mustRun(t, r, "v", "three", "two", 17)
	if rep := mustPrune(t, r); rep.Healed != 1 {
		t.Fatalf("%+v", rep)
	}
	mustVerify(t, old, c.process().open(t), "one")
	mustVerify(t, now, c.process().open(t), "two")
	if rep := mustCheck(t, c.process().open(t)); !rep.OK() || rep.Beyond != 0 {
		t.Errorf("%+v", rep)
	}
}

// What heals goes at the worst moment: the backup that has the copies is deleted, and
// another prune takes it for good, between looking and moving.
func TestPruneHealsFromWhatGoes(t *testing.T) {
	c, old, _ := damagedOld(t, []int{0, 3, 4}, false)
	r, other := c.open(t), c.process().open(t)
	fired := false
	c.before(putting(prunePrefix, condemnedLeaf), func() {
		fired = true
		if err := other.Delete(t.Context(), "two"); err != nil {
			t.Error(err)
		}
		o := hasty
		o.Compact = 1
		for range 3 {
			if _, err := other.Prune(t.Context(), o); err != nil {
				t.Log(err)
			}
		}
	})
	rep, err := r.Prune(t.Context(), hasty)
	c.heal()
	if !fired {
		t.Fatal("nothing happened meanwhile")
	}
	if err != nil {
		t.Error(err)
	}
	check := mustCheck(t, c.process().open(t))
	if rep.Healed > 0 {
		mustVerify(t, old, c.process().open(t), "one")
	} else if whole(check)["one"] || check.Beyond != 1 {
		t.Errorf("not healed, and %+v", check)
	}
}

// A prune that heals, killed at any call: the same again ends it, and whatever was
// whole stays whole.
func TestPruneHealKilledAtAnyCall(t *testing.T) {
	c, old, now := damagedOld(t, []int{0, 3, 4}, false)
	c.killedAt(t, stride(11, 67), func(ctx context.Context, r *Repository) error {
		_, err := r.Prune(ctx, hasty)
		return err
	}, func(n int64, c *cluster) {
		r := c.process().open(t)
		mustVerify(t, now, r, "two")
		for range 3 {
			mustPrune(t, r)
		}
		if err := old.verify(t.Context(), c.process().open(t), "one"); err != nil {
			t.Errorf("killed at call %d: %v", n, err)
		}
		mustVerify(t, now, c.process().open(t), "two")
		if rep := mustCheck(t, c.process().open(t)); !rep.OK() {
			t.Errorf("killed at call %d: %+v", n, rep)
		}
	})
}

// A backup that comes back behind the look needs a chunk that cannot be had: the pack
// stays.
func TestPruneHealsNothingThatSomebodyNeedsMeanwhile(t *testing.T) {
	c, r := fresh(t)
	old := noisyContent(78, 30)
	pack := old.backupApart(t, r, "one")
	now := old.clone()
	now.blocks[17] = slices.Repeat([]byte{1, 7}, testBlock/2)
	now.mustRun(t, r, "v", "like", "one", 17) // names all of the pack but one chunk
	c.lose(t, pack, []int{0, 1, 2, 3}, false) // what is left has no chunk as it is
	if rep := mustCheck(t, c.open(t)); rep.Beyond != 1 {
		t.Fatalf("%+v", rep)
	}
	r = c.open(t)
	now.mustRun(t, r, "v", "two", "like")
	if err := r.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if rep := mustPrune(t, r); rep.Healed != 0 { // it ages, and is needed still
		t.Fatalf("%+v", rep)
	}
	other, fired := c.process().open(t), false
	c.before(putting(prunePrefix, condemnedLeaf), func() {
		fired = true
		if _, err := other.Undelete(t.Context(), "one"); err != nil {
			t.Error(err)
		}
	})
	rep, err := r.Prune(t.Context(), hasty)
	c.heal()
	if err != nil || !fired || rep.Healed != 0 || rep.Compacted != 0 || c.count(forwardPrefix) != 0 || !slices.Contains(c.mem[5].Names(), pack) {
		t.Fatalf("%v, %+v, %v", fired, rep, err)
	}
	if err = other.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, r)
	if rep = mustPrune(t, r); rep.Healed != 1 {
		t.Fatalf("%+v", rep)
	}
	mustVerify(t, now, c.process().open(t), "like")
	mustVerify(t, now, c.process().open(t), "two")
}
