package repository

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

var rounds = flag.Int("rounds", 40, "seeded fault runs of whole sessions")

// outcomes remembers what the writers of a run were told.
type outcomes struct {
	told     map[string]Outcome
	contents map[string]*content
}

// audit checks the promises on a copy of the stores: told committed can be
// restored with d more stores lost, told failed is not available, and whatever
// is available can be restored.
func (o *outcomes) audit(t *testing.T, c *cluster, lost ...int) {
	t.Helper()
	c = c.clone()
	for _, i := range lost {
		c.faulty[i].SetDown(true)
	}
	r := c.open(t)
	list, err := r.Backups(t.Context())
	if err != nil {
		t.Fatalf("lost %v: %v", lost, err)
	}
	available := ids(list, Available)
	for id, told := range o.told {
		switch {
		case told == OutcomeCommitted && !available[id]:
			t.Errorf("lost %v: %s was told committed and is not available", lost, id)
		case told == OutcomeFailed && available[id]:
			t.Errorf("lost %v: %s was told failed and is available", lost, id)
		}
	}
	for id := range available {
		if err = o.contents[id].verify(t.Context(), r, id); err != nil {
			t.Errorf("lost %v: %s (told %v): %v", lost, id, o.told[id], err)
		}
	}
}

// Whole sessions against stores that fail before and behind the deed, lose
// answers, answer late, and lie.
func TestSeededFaults(t *testing.T) {
	n := *rounds
	if testing.Short() {
		n = 10
	}
	committed := 0
	for seed := range uint64(n) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { committed += faultRun(t, seed) })
	}
	if committed == 0 {
		t.Error("no session was ever committed: the faults are too many to test anything")
	}
}

func faultRun(t *testing.T, seed uint64) int {
	t.Helper()
	c := newCluster(6)
	c.init(t, 4, 2)
	dir := t.TempDir()
	r := c.open(t, func(o *Options) { o.CacheDir = dir; o.Cache.Index = 1 << 20 })
	rnd := seeded(seed)
	out := &outcomes{told: map[string]Outcome{}, contents: map[string]*content{}}
	v := randomContent(rnd, 150, 40)
	parent := ""
	var changed []int64
	for n := range 5 {
		rate := []float64{0, 0.02, 0.1, 0.3}[rnd.IntN(4)]
		for i, f := range c.faulty {
			f.SetFaults(memstore.Faults{Decide: memstore.Seeded(seed*100+uint64(n*10+i), rate,
				memstore.FailBefore, memstore.FailAfter, memstore.LostAck, memstore.Late, memstore.WrongBytes, memstore.Truncated)})
			f.SetDown(rnd.IntN(8) == 0)
		}
		id := fmt.Sprint("b", n)
		changed = append(changed, v.change(rnd, 10)...)
		told, err := v.backup(t.Context(), r, id, parent, changed)
		if (err == nil) != (told == OutcomeCommitted) {
			t.Errorf("%s: told %v with error %v", id, told, err)
		}
		out.told[id], out.contents[id] = told, v.clone()
		if told == OutcomeCommitted {
			parent, changed = id, nil
		}
		c.heal()
	}
	// d = 1: any one further store may be lost.
	out.audit(t, c)
	for range 2 {
		out.audit(t, c, rnd.IntN(6))
	}
	n := 0
	for _, told := range out.told {
		if told == OutcomeCommitted {
			n++
		}
	}
	return n
}

// Sessions that were told failed or unknown, or died, are decided by a fence,
// and stay so.
func TestFenceDecidesForEver(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := newCluster(3)
		losses := 1
		if _, err := Init(t.Context(), InitOptions{Stores: c.stores(), Data: 2, Parity: 1, Losses: &losses, Password: password, KDF: cheapKDF}); err != nil {
			rt.Fatal(err)
		}
		r := c.open(t)
		v := randomContent(seeded(rapid.Uint64().Draw(rt, "content")), 20, 4)
		s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"})
		if err != nil {
			rt.Fatal(err)
		}
		top, err := v.write(t.Context(), s, nil)
		if err != nil {
			rt.Fatal(err)
		}
		seed := rapid.Uint64().Draw(rt, "faults")
		for i, f := range c.faulty {
			f.SetFaults(memstore.Faults{Decide: memstore.Seeded(seed+uint64(i), 0.3, memstore.FailBefore, memstore.FailAfter, memstore.LostAck, memstore.Late, memstore.Down)})
		}
		told, _ := s.Commit(t.Context(), Root{BackupID: "b", Geometry: v.geometry(), Top: top})
		c.heal()
		other := c.open(t)
		d, err := other.FenceSession(t.Context(), s.ID())
		if err != nil {
			rt.Fatal(err)
		}
		if d == Undecided {
			rt.Fatal("undecided although every store answers")
		}
		if told == OutcomeCommitted && d != Committed || told == OutcomeFailed && d != Aborted {
			rt.Fatalf("told %v, decided %v", told, d)
		}
		list, err := other.Backups(t.Context())
		if err != nil {
			rt.Fatal(err)
		}
		if (len(list) == 1) != (d == Committed) {
			rt.Fatalf("decided %v, listed %v", d, list)
		}
		if d == Committed {
			if err := v.verify(t.Context(), other, "b"); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

var errCrash = errors.New("the writer is dead")

// The writer dies at every call to a store, before it or behind it. What is
// left is opened by another, who decides the session.
func TestCrashAtEveryCall(t *testing.T) {
	base := newCluster(6)
	base.init(t, 4, 2)
	first := randomContent(seeded(20), 200, 30)
	first.mustBackup(t, base.open(t), "b1", "", nil)
	second := first.clone()
	changed := second.change(seeded(21), 5)

	for at := int64(0); ; at++ {
		c := base.clone()
		ctx, cancel := context.WithCancel(t.Context())
		calls := make(chan int64, 1)
		calls <- 0
		for _, f := range c.faulty {
			f.SetFaults(memstore.Faults{
				Before: func(context.Context, memstore.Call) error {
					n := <-calls
					calls <- n + 1
					if n > at {
						return errCrash
					}
					return nil
				},
				Decide: func(memstore.Call) memstore.Fault {
					n := <-calls
					calls <- n
					if n == at+1 && at%2 == 0 {
						cancel()
						return memstore.FailAfter // done, but nobody heard of it
					}
					return memstore.None
				},
			})
		}
		out := &outcomes{told: map[string]Outcome{"b1": OutcomeCommitted}, contents: map[string]*content{"b1": first, "b2": second}}
		r, err := Open(ctx, Options{Stores: c.stores(), Password: password, Timing: eager})
		told := OutcomeUnknown
		if err == nil {
			told, _ = second.backup(ctx, r, "b2", "b1", changed)
		}
		cancel()
		total := <-calls
		c.heal()
		if told == OutcomeCommitted {
			out.told["b2"] = told
		}
		out.audit(t, c)
		after := c.clone()
		fenceAll(t, after)
		out.audit(t, after)
		if t.Failed() {
			t.Fatalf("crash behind call %d", at)
		}
		if total <= at {
			if at < 50 {
				t.Fatalf("only %d calls", at)
			}
			return
		}
		at += at / 40 // early calls one by one, later ones more sparsely
	}
}

// fenceAll decides every session that is open.
func fenceAll(t *testing.T, c *cluster) {
	t.Helper()
	r := c.open(t)
	for _, name := range c.mem[0].Names() {
		var s string
		if n, _ := fmt.Sscanf(name, "sessions/%32s", &s); n != 1 {
			continue
		}
		if d, err := r.FenceSession(t.Context(), s); err != nil || d == Undecided {
			t.Errorf("fence %s: %v, %v", s, d, err)
		}
	}
}

// Any two of six stores missing or lying: every image byte for byte.
func TestAnyTwoStores(t *testing.T) {
	c, r := fresh(t)
	rnd := seeded(30)
	v1 := randomContent(rnd, 200, 60)
	v1.mustBackup(t, r, "b1", "", nil)
	v2 := v1.clone()
	changed := v2.change(rnd, 20)
	v2.mustBackup(t, r, "b2", "b1", changed)
	lie := memstore.Faults{Decide: func(c memstore.Call) memstore.Fault {
		switch {
		case c.Op != "get":
			return memstore.None
		case c.N%3 == 0:
			return memstore.Truncated
		default:
			return memstore.WrongBytes
		}
	}}
	wrongShards := func(m *memstore.Store) {
		// Shards swapped with each other's, and cut.
		var last []byte
		for _, name := range m.Names() {
			if _, ok := parsePackName(name); !ok {
				continue
			}
			body, err := m.Get(t.Context(), name, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if last == nil {
				m.Replace(name, body[:len(body)/2])
			} else {
				m.Replace(name, last)
			}
			last = body
		}
	}
	pair := int64(-1)
	for a := range 6 {
		for b := range a {
			if pair++; pair%stride(1, 7) != 0 { // in short two data shards, one, none
				continue
			}
			for mode, harm := range map[string]func(*cluster, int){
				"missing": func(c *cluster, i int) { c.faulty[i].SetDown(true) },
				"lying":   func(c *cluster, i int) { c.faulty[i].SetFaults(lie) },
				"swapped": func(c *cluster, i int) { wrongShards(c.mem[i]) },
				"empty":   func(c *cluster, i int) { wipe(t, c.mem[i]) },
			} {
				hurt := c.clone()
				harm(hurt, a)
				harm(hurt, b)
				reader := hurt.open(t)
				for id, v := range map[string]*content{"b1": v1, "b2": v2} {
					if err := v.verify(t.Context(), reader, id); err != nil {
						t.Errorf("%s %d and %d: %s: %v", mode, a, b, id, err)
					}
				}
			}
		}
	}
	// One more is too many, and said so.
	for _, i := range []int{0, 2, 4} {
		c.faulty[i].SetDown(true)
	}
	if _, err := Open(t.Context(), Options{Stores: c.stores(), Password: password, Timing: eager}); !errors.Is(err, ErrTooFewStores) {
		t.Errorf("three stores down: %v", err)
	}
	// Nothing is damaged as long as they may come back.
	if err := v1.verify(t.Context(), r, "b1"); !errors.Is(err, ErrTooFewStores) || errors.Is(err, ErrDamaged) {
		t.Errorf("reading with three stores down: %v", err)
	}
	for _, i := range []int{0, 2, 4} {
		c.faulty[i].SetDown(false)
		for _, name := range c.mem[i].Names() {
			if strings.HasPrefix(name, "packs/") {
				if err := c.mem[i].Delete(t.Context(), name); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := v1.verify(t.Context(), r, "b1"); !errors.Is(err, ErrDamaged) {
		t.Errorf("reading with three stores that lost their packs: %v", err)
	}
}

func wipe(t *testing.T, m *memstore.Store) {
	t.Helper()
	for _, name := range m.Names() {
		if err := m.Delete(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCheckNamesDamage(t *testing.T) {
	c, r := fresh(t)
	rnd := seeded(40)
	v := randomContent(rnd, 600, 150)
	v.mustBackup(t, r, "b1", "", nil)
	before := make([][]string, 6)
	for i, m := range c.mem {
		before[i] = m.Names()
	}
	flip := func(m *memstore.Store, name string) {
		body, err := m.Get(t.Context(), name, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		body[1000] ^= 1 // in the first cell
		m.Replace(name, body)
	}
	var shards []string
	for _, name := range c.mem[0].Names() {
		if _, ok := parsePackName(name); ok {
			shards = append(shards, name)
		}
	}
	flip(c.mem[0], shards[0])
	rep, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || rep.OK() || rep.Stores[0].Damaged != 1 || !rep.Backups[0].Restorable {
		t.Errorf("one damaged shard: %+v, %v", rep, err)
	}
	if rep, err = c.open(t).Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("without reading data: %+v, %v", rep, err)
	}
	// The same cell of three shards is beyond repair.
	flip(c.mem[1], shards[0])
	flip(c.mem[2], shards[0])
	rep, err = c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || rep.Backups[0].Restorable || len(rep.Backups[0].Damaged) == 0 || len(rep.Backups[0].Problems) == 0 {
		t.Fatalf("three damaged shards: %+v, %v", rep, err)
	}
	// Exactly the blocks named cannot be read.
	img, err := c.open(t).Image(t.Context(), "b1")
	if err != nil {
		t.Fatal(err)
	}
	bad := make(map[int64]bool)
	for _, d := range rep.Backups[0].Damaged {
		for b := d.First; b < d.First+d.Count; b++ {
			bad[b] = true
		}
	}
	for b := range v.geometry().Blocks() {
		p := make([]byte, v.geometry().BlockLen(b))
		if err = img.ReadAt(t.Context(), p, b*testBlock); (err != nil) != bad[b] {
			t.Errorf("block %d: named %v, read %v", b, bad[b], err)
		}
	}
	if err = img.Close(); err != nil {
		t.Error(err)
	}
	// Two thirds of a pack's shards missing.
	for _, i := range []int{3, 4} {
		if err = c.mem[i].Delete(t.Context(), shards[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err = c.mem[0].Delete(t.Context(), shards[0]); err != nil {
		t.Fatal(err)
	}
	rep, err = c.open(t).Check(t.Context(), CheckOptions{})
	if err != nil || rep.Backups[0].Restorable || rep.Stores[3].Missing != 1 {
		t.Errorf("missing shards: %+v, %v", rep, err)
	}
	// It never writes.
	for i, m := range c.mem {
		if i == 5 && len(m.Names()) != len(before[i]) {
			t.Error("check wrote to a store")
		}
	}
}
