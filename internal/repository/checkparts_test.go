package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// manyPacks is a cluster with some packs, of several backups that share blocks.
func manyPacks(t *testing.T) *cluster {
	t.Helper()
	c, r := fresh(t)
	v := randomContent(seeded(30), 200, 60)
	for i := range 8 {
		parent := ""
		if i > 0 {
			parent = fmt.Sprint("b", i-1)
		}
		v.mustRun(t, r, "v", fmt.Sprint("b", i), parent, v.change(seeded(uint64(40+i)), 8)...)
	}
	return c
}

// recorder remembers what a check tells, as whoever goes on with it does.
func recorder(to map[string]bool) func(string, bool) error {
	return func(pack string, sound bool) error {
		to[pack] = sound
		return nil
	}
}

// Packs that were compacted are none that are damaged: nothing is told of them.
func TestCheckInPartsBehindACompaction(t *testing.T) {
	c, _ := manyMoved(t, 2)
	read := make(map[string]bool)
	rep, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Read: recorder(read)})
	if err != nil || !rep.OK() || len(read) != rep.Packs {
		t.Errorf("%d packs told: %+v, %v", len(read), rep, err)
	}
	for pack, sound := range read {
		if !sound {
			t.Errorf("pack %s is told to be damaged", pack)
		}
	}
}

// A check that is told of and goes in parts finds the same as one that does not.
func TestCheckInParts(t *testing.T) {
	for seed := range uint64(6) {
		c := manyPacks(t)
		rng := seeded(seed)
		c.hurt(rng, rng.Perm(6)[:int(seed%4)], 0.4)
		want, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
		if err != nil {
			t.Fatal(err)
		}
		read := make(map[string]bool)
		got, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Read: recorder(read)})
		if err != nil || len(read) != got.Packs {
			t.Fatalf("%d of %d packs told, %v", len(read), got.Packs, err)
		}
		for i := range want.Backups {
			if w, g := want.Backups[i], got.Backups[i]; w.Restorable != g.Restorable || !reflect.DeepEqual(w.Damaged, g.Damaged) {
				t.Errorf("seed %d: %+v, want %+v", seed, g, w)
			}
		}
		for i := range want.Stores {
			if w, g := want.Stores[i], got.Stores[i]; w.Missing != g.Missing || w.Damaged != g.Damaged || len(w.Problems) != len(g.Problems) {
				t.Errorf("seed %d: %+v, want %+v", seed, g, w)
			}
		}
	}
}

// A check that is killed at any call and goes on from what it told reads everything
// once at least, finds what there is to find, and is not clean when its first part
// was not.
func TestCheckKilledAtAnyCall(t *testing.T) {
	c := manyPacks(t)
	names := c.packNames()
	c.lose(t, names[0], []int{1}, true)
	c.lose(t, names[len(names)-1], []int{0, 3, 4}, true)
	want := mustCheckData(t, c, CheckOptions{ReadData: true})
	var read map[string]bool
	recalled := 0
	c.killedAt(t, stride(11, 67), func(ctx context.Context, r *Repository) error {
		read = make(map[string]bool)
		_, err := r.Check(ctx, CheckOptions{ReadData: true, Read: recorder(read)})
		return err
	}, func(n int64, c *cluster) {
		before := maps.Clone(read)
		got := mustCheckData(t, c.process(), CheckOptions{ReadData: true, Before: before, Read: recorder(read)})
		sound := 0
		for _, s := range before {
			if s {
				sound++
			}
		}
		recalled = max(recalled, got.Recalled)
		if got.Read != got.Packs || got.Packs != want.Packs || got.Recalled != sound || len(read) != got.Packs {
			t.Errorf("killed at call %d: %d packs, %d read, %d recalled of %d", n, got.Packs, got.Read, got.Recalled, sound)
		}
		for i, b := range got.Backups {
			if w := want.Backups[i]; b.Restorable != w.Restorable || !reflect.DeepEqual(b.Damaged, w.Damaged) {
				t.Errorf("killed at call %d: %+v, want %+v", n, b, w)
			}
		}
		if got.OK() {
			t.Errorf("killed at call %d: clean", n)
		}
	})
	if recalled != want.Packs-2 {
		t.Errorf("at most %d packs were recalled, of %d that are sound", recalled, want.Packs-2)
	}
}

func mustCheckData(t *testing.T, c *cluster, o CheckOptions) CheckReport {
	t.Helper()
	rep, err := c.open(t).Check(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// What was damaged when a check began makes it unclean even if it is right at the end;
// what was lost since it was read is found; and what is behind a store that is down is
// read when that is back.
func TestCheckGoesOn(t *testing.T) {
	c := manyPacks(t)
	names := c.packNames()
	c.lose(t, names[0], []int{1}, true)
	read := make(map[string]bool)
	stop := errors.New("stop")
	_, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Read: func(pack string, sound bool) error {
		read[pack] = sound
		if len(read) == 4 {
			return stop
		}
		return nil
	}})
	if !errors.Is(err, stop) {
		t.Fatal(err)
	}
	sound := 0
	for _, s := range read {
		if s {
			sound++
		}
	}
	if sound == 4 {
		t.Fatal("the damaged pack is not among the first")
	}
	c.lose(t, names[0], []int{1}, true) // it is right again
	rep := mustCheckData(t, c, CheckOptions{ReadData: true, Before: read, Read: recorder(map[string]bool{})})
	if rep.OK() || rep.Recalled != sound || !strings.Contains(strings.Join(rep.Problems, " "), "was damaged when this check began") {
		t.Errorf("%+v", rep)
	}
	for pack, s := range read {
		if s {
			c.lose(t, findPack(names, pack), []int{2}, false)
		}
	}
	rep = mustCheckData(t, c, CheckOptions{ReadData: true, Before: read, Read: recorder(map[string]bool{})})
	if rep.OK() || rep.Recalled != 0 || rep.Stores[2].Missing != int64(sound) {
		t.Errorf("lost meanwhile: %+v", rep)
	}
	c.faulty[5].SetFaults(memstore.Faults{Before: func(context.Context, memstore.Call) error { return objstore.ErrDown }})
	down := make(map[string]bool)
	mustCheckData(t, c, CheckOptions{ReadData: true, Read: recorder(down)})
	for pack, s := range down {
		if s {
			t.Errorf("pack %s is called sound, and a store is down", pack)
		}
	}
}

func findPack(names []string, pack string) string {
	for _, name := range names {
		if id, ok := parsePackName(name); ok && id.String() == pack {
			return name
		}
	}
	return ""
}

// A shard whose store does not answer while it is read is neither sound nor damaged:
// the check is not clean, and the one that goes on reads the pack again.
func TestShardThatIsNotRead(t *testing.T) {
	c := manyPacks(t)
	victim := ""
	c.faulty[0].SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
		id, ok := parsePackName(call.Name)
		if !ok || call.Op != "get" {
			return memstore.None
		}
		if victim == "" {
			victim = id.String()
		}
		if id.String() == victim {
			return memstore.Down
		}
		return memstore.None
	}})
	told := make(map[string]bool)
	rep, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Publish: true, Read: recorder(told)})
	if err != nil || rep.OK() || rep.Beyond != 0 || rep.Stores[0].Damaged != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if _, ok := told[victim]; ok || len(told) != rep.Packs-1 {
		t.Errorf("%d of %d packs count as read; the one that was not does: %v", len(told), rep.Packs, ok)
	}
	c.heal()
	rep, err = c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Publish: true, Read: recorder(told), Before: maps.Clone(told)})
	if err != nil || !rep.OK() || rep.Recalled != rep.Packs-1 || !told[victim] {
		t.Errorf("going on: %+v, %v, %v", rep, err, told[victim])
	}
}

// Stores that do not answer while a check reads say nothing of the packs.
func TestCheckOfStoresThatAreAwayForAMoment(t *testing.T) {
	c := manyPacks(t)
	down := func(yes bool) {
		for _, f := range c.faulty {
			f.SetDown(yes)
		}
	}
	r := c.open(t)
	told := make(map[string]bool)
	rep, err := r.Check(t.Context(), CheckOptions{ReadData: true, Publish: true, Read: recorder(told), Progress: func(p CheckProgress) {
		if p.Phase == "data" {
			down(p.Done == 1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Beyond != 0 {
		t.Errorf("%d packs are beyond repair, and nothing is damaged: %q", rep.Beyond, rep.Unpublished)
	}
	if rep.OK() || len(told) >= rep.Packs {
		t.Errorf("%d of %d packs count as read, ok %v", len(told), rep.Packs, rep.OK())
	}
}

// What was damaged is told until a check has ended, however often it is interrupted.
func TestCheckInterruptedTwice(t *testing.T) {
	c := manyPacks(t)
	names := c.packNames()
	c.lose(t, names[0], []int{1}, true)
	stop := errors.New("stop")
	read := make(map[string]bool)
	part := func(most int) (CheckReport, error) {
		n := 0
		return c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Before: maps.Clone(read), Read: func(pack string, sound bool) error {
			read[pack] = sound
			if n++; n == most {
				return stop
			}
			return nil
		}})
	}
	if _, err := part(4); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	found := false
	for _, s := range read {
		found = found || !s
	}
	if !found {
		t.Fatal("not found")
	}
	c.lose(t, names[0], []int{1}, true) // it is right again: a store that flaps
	if _, err := part(2); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	rep, err := part(-1)
	if err != nil {
		t.Fatal(err)
	}
	if rep.OK() {
		t.Errorf("clean, %d recalled, and nobody was told of the damage", rep.Recalled)
	}
}
