package repository

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/pack"
)

// compactor moves packs as a prune does, step by step.
type compactor struct {
	tb testing.TB
	c  *cluster
	r  *Repository
}

// packs returns all packs, in order.
func (x *compactor) packs() []chunk.PackID {
	x.tb.Helper()
	seen := make(map[chunk.PackID]bool)
	for _, m := range x.c.mem {
		for _, name := range m.Names() {
			if id, ok := parsePackName(name); ok {
				seen[id] = true
			}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), comparePacks)
}

// copy stores the chunks of a pack in a new one and returns the forwarding.
func (x *compactor) copy(old chunk.PackID, number byte) *forwarding {
	x.tb.Helper()
	ctx := x.tb.Context()
	d, err := x.r.domain("p")
	if err != nil {
		x.tb.Fatal(err)
	}
	length, err := x.r.containerLength(ctx, old)
	if err != nil {
		x.tb.Fatal(err)
	}
	toc, err := pack.ParseTOC(d, old, length, func(p []byte, off int64) error { return x.r.readContainer(ctx, old, p, off) })
	if err != nil {
		x.tb.Fatal(err)
	}
	slices.Reverse(toc) // nothing lies where it lay
	to := chunk.NewPackID([16]byte{0xcc, number}, uint16(x.r.membership().Active), [14]byte{1, number})
	b, err := pack.NewBuilder(d, to, nil)
	if err != nil {
		x.tb.Fatal(err)
	}
	f := &forwarding{old: old}
	for _, e := range toc {
		at := chunk.Ref{ID: e.ID, Location: chunk.Location{Pack: old, Offset: e.Offset, Length: e.Length}}
		plain, rerr := x.r.readChunkHere(ctx, d, e.Kind, at)
		if rerr != nil {
			x.tb.Fatal(rerr)
		}
		ref, rerr := b.Add(e.Kind, e.ID, plain)
		if rerr != nil {
			x.tb.Fatal(rerr)
		}
		f.chunks = append(f.chunks, movedChunk{kind: e.Kind, id: e.ID, to: ref.Location})
	}
	slices.SortFunc(f.chunks, compareMoved)
	container, err := b.Finish()
	if err != nil {
		x.tb.Fatal(err)
	}
	shards, err := x.r.coder.Encode(to, container, nil)
	if err != nil {
		x.tb.Fatal(err)
	}
	for i, s := range shards {
		x.holder(to, i).Replace(packName(to), s)
	}
	return f
}

// holder is the memory store that keeps a shard.
func (x *compactor) holder(id chunk.PackID, slot int) *memstore.Store {
	m := x.r.holders(id)[slot]
	for i, f := range x.c.faulty {
		if m.store == f {
			return x.c.mem[i]
		}
	}
	x.tb.Fatalf("no store has shard %d", slot)
	return nil
}

// announce puts a forwarding on every store.
func (x *compactor) announce(f *forwarding, prune ident) string {
	x.tb.Helper()
	name := forwardName(f.old, prune)
	_, epoch := x.r.newestMaster()
	object, err := x.r.keys.sealForwarding(epoch, x.r.id, name, f)
	if err != nil {
		x.tb.Fatal(err)
	}
	for _, m := range x.c.mem {
		m.Replace(name, object)
	}
	return name
}

// drop deletes the first n shards of a pack.
func (x *compactor) drop(id chunk.PackID, n int) {
	x.tb.Helper()
	for _, m := range x.c.mem[:n] {
		if err := m.Delete(x.tb.Context(), packName(id)); err != nil {
			x.tb.Fatal(err)
		}
	}
}

// twoBackups makes a full and an incremental backup and a compactor.
func twoBackups(t *testing.T, seed uint64) (x *compactor, full, second *content) {
	t.Helper()
	c, r := fresh(t)
	rnd := seeded(seed)
	v := randomContent(rnd, 300, 120)
	v.mustBackup(t, r, "b1", "", nil)
	full = v.clone()
	v.mustBackup(t, r, "b2", "b1", v.change(rnd, 20))
	return &compactor{t, c, r}, full, v
}

func TestMovedPacksAreRead(t *testing.T) {
	for _, gone := range []int{3, 6} { // of six shards; four are needed
		x, full, second := twoBackups(t, uint64(gone))
		for n, old := range x.packs() {
			f := x.copy(old, byte(n))
			x.announce(f, ident{1})
			x.drop(old, gone)
		}
		for _, r := range []*Repository{x.r, x.c.open(t)} {
			mustVerify(t, full, r, "b1")
			mustVerify(t, second, r, "b2")
			mustVerify(t, full, r, "b1") // by what was remembered
		}
		// Two stores down: the forwardings are on the others.
		x.c.faulty[4].SetDown(true)
		x.c.faulty[5].SetDown(true)
		mustVerify(t, second, x.c.open(t), "b2")
		x.c.heal()
		smallReads(t, x.c.open(t), second)
		for _, o := range []CheckOptions{{}, {ReadData: true}} {
			rep, err := x.c.open(t).Check(t.Context(), o)
			if err != nil || !rep.OK() || rep.Packs != len(x.packs())-len(stale(x)) {
				t.Errorf("%d shards gone, %+v: %+v, %v", gone, o, rep, err)
			}
		}
		// Backups go on from there.
		r := x.c.open(t)
		third := second.clone()
		third.mustBackup(t, r, "b3", "b2", third.change(seeded(9), 10))
		mustVerify(t, third, r, "b3")
	}
}

// stale returns the packs of which only a part is left.
func stale(x *compactor) []chunk.PackID {
	return slices.DeleteFunc(x.packs(), func(id chunk.PackID) bool {
		_, err := x.c.mem[0].Stat(x.tb.Context(), packName(id))
		return err == nil
	})
}

// smallReads goes through a backup as a kernel does, with read-ahead.
func smallReads(t *testing.T, r *Repository, c *content) {
	t.Helper()
	img, err := r.Image(t.Context(), "b2")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	}()
	want := c.bytes()
	p := make([]byte, 40<<10)
	for off := int64(0); off < c.size; off += int64(len(p)) {
		p = p[:min(int64(len(p)), c.size-off)]
		if err := img.ReadAt(t.Context(), p, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p, want[off:off+int64(len(p))]) {
			t.Fatalf("at %d: other bytes", off)
		}
	}
}

// Nobody looks for a forwarding while packs are whole, or damaged but there.
func TestHealthyReadsAskForNoForwarding(t *testing.T) {
	x, full, _ := twoBackups(t, 11)
	var asked atomic.Int32
	for _, f := range x.c.faulty {
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
			if strings.HasPrefix(c.Name, forwardPrefix) {
				asked.Add(1)
			}
			return nil
		}})
	}
	x.c.faulty[0].SetDown(true)
	x.drop(x.packs()[0], 2)
	mustVerify(t, full, x.c.open(t), "b1")
	if n := asked.Load(); n != 0 {
		t.Errorf("%d calls", n)
	}
}

func TestForwardingsAreNotBelieved(t *testing.T) {
	other := newCluster(6)
	other.init(t, 4, 2)
	foreign := other.open(t)
	tests := []struct {
		name    string
		spoil   func(x *compactor, f *forwarding, name string, object []byte) []byte
		problem string
	}{
		{"bit flipped", func(_ *compactor, _ *forwarding, _ string, o []byte) []byte { o[len(o)/2] ^= 1; return o }, "authentication"},
		{"cut", func(_ *compactor, _ *forwarding, _ string, o []byte) []byte { return o[:len(o)-1] }, "damaged or foreign"},
		{"too long", func(*compactor, *forwarding, string, []byte) []byte { return make([]byte, maxForwarding+1) }, "bytes"},
		{"newer", func(_ *compactor, _ *forwarding, _ string, o []byte) []byte { o[9] = sealedVersion + 1; return o }, "newer version"},
		{"of another repository", func(_ *compactor, f *forwarding, name string, _ []byte) []byte {
			o, _ := foreign.keys.sealForwarding(0, foreign.id, name, f)
			return o
		}, "authentication"},
		{"of another pack, by a holder of the keys", func(x *compactor, f *forwarding, name string, _ []byte) []byte {
			g := *f
			g.old[3] ^= 1
			o, _ := x.r.keys.sealForwarding(0, x.r.id, name, &g)
			return o
		}, "another pack or repository"},
		{"of another kind", func(x *compactor, _ *forwarding, name string, _ []byte) []byte {
			o, _ := x.r.keys.sealEnvelope(kindTombstone, name, nil)
			return o
		}, "kind"},
		{"without the chunk", func(x *compactor, f *forwarding, name string, _ []byte) []byte {
			g := &forwarding{old: f.old, chunks: []movedChunk{{chunk.Data, chunk.ID{1}, f.chunks[0].to}}}
			o, _ := x.r.keys.sealForwarding(0, x.r.id, name, g)
			return o
		}, "does not name the"},
		{"with another chunk in its place", func(x *compactor, f *forwarding, name string, _ []byte) []byte {
			g := &forwarding{old: f.old, chunks: slices.Clone(f.chunks)}
			for i := range g.chunks {
				g.chunks[i].to = f.chunks[(i+1)%len(f.chunks)].to
			}
			o, _ := x.r.keys.sealForwarding(0, x.r.id, name, g)
			return o
		}, "not the one asked for"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x, full, _ := twoBackups(t, 12)
			old := x.packs()[0]
			if session := x.session("b1"); [16]byte(old[:16]) != session {
				old = x.packs()[1]
			}
			f := x.copy(old, 1)
			name := x.announce(f, ident{1})
			x.drop(old, 6)
			genuine, err := x.c.mem[0].Get(t.Context(), name, 0, -1, nil)
			if err != nil {
				t.Fatal(err)
			}
			bad := tt.spoil(x, f, name, slices.Clone(genuine))
			if len(bad) == 0 {
				t.Fatal("nothing to try")
			}
			for _, m := range x.c.mem {
				m.Replace(name, bad)
			}
			err = full.verify(t.Context(), x.c.open(t), "b1")
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), tt.problem) {
				t.Errorf("read: %v", err)
			}
			rep, err := x.c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
			if err != nil || rep.OK() || rep.Backups[0].Restorable {
				t.Errorf("check: %+v, %v", rep, err)
			}
			// A single genuine one is enough, whatever the others say.
			x.c.mem[5].Replace(name, genuine)
			if tt.problem != "does not name the" && tt.problem != "not the one asked for" {
				mustVerify(t, full, x.c.open(t), "b1")
			}
		})
	}
}

// session returns the session of a backup.
func (x *compactor) session(backup string) ident {
	x.tb.Helper()
	b, err := x.r.Backup(x.tb.Context(), backup)
	if err != nil {
		x.tb.Fatal(err)
	}
	id, err := parseIdent(b.Session)
	if err != nil {
		x.tb.Fatal(err)
	}
	return id
}

// A pack that was moved twice is read by a forwarding of its own or not at all.
func TestSecondMoveIsNotFollowed(t *testing.T) {
	x, full, second := twoBackups(t, 13)
	var firsts []*forwarding
	for n, old := range x.packs() {
		f := x.copy(old, byte(n))
		x.announce(f, ident{1})
		x.drop(old, 6)
		firsts = append(firsts, f)
	}
	mustVerify(t, second, x.r, "b2") // and remembers where all is
	var direct []*forwarding
	for n, f := range firsts {
		g := x.copy(f.targets()[0], byte(100+n))
		x.announce(g, ident{2})
		x.drop(g.old, 6)
		direct = append(direct, &forwarding{old: f.old, chunks: g.chunks})
	}
	for _, r := range []*Repository{x.r, x.c.open(t)} {
		if err := full.verify(t.Context(), r, "b1"); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "second move") {
			t.Errorf("moved twice: %v", err)
		}
	}
	rep, err := x.c.open(t).Check(t.Context(), CheckOptions{})
	if err != nil || rep.OK() || rep.Backups[0].Restorable {
		t.Errorf("check: %+v, %v", rep, err)
	}
	// What a compaction of the new pack has to write.
	for _, f := range direct {
		x.announce(f, ident{2})
	}
	for _, r := range []*Repository{x.r, x.c.open(t)} {
		mustVerify(t, full, r, "b1")
		mustVerify(t, second, r, "b2")
	}
	if rep, err = x.c.open(t).Check(t.Context(), CheckOptions{}); err != nil || !rep.OK() {
		t.Errorf("check: %+v, %v", rep, err)
	}
}

// A forwarding whose pack is still whole changes nothing; one that a store
// lacks is told.
func TestCheckOfForwardings(t *testing.T) {
	x, _, _ := twoBackups(t, 14)
	old := x.packs()[0]
	f := x.copy(old, 1)
	name := x.announce(f, ident{1})
	for _, o := range []CheckOptions{{}, {ReadData: true}} {
		if rep, err := x.c.open(t).Check(t.Context(), o); err != nil || !rep.OK() {
			t.Errorf("before the pack goes: %+v, %v", rep, err)
		}
	}
	x.drop(old, 6)
	if err := x.c.mem[2].Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	rep, err := x.c.open(t).Check(t.Context(), CheckOptions{})
	if err != nil || rep.OK() || len(rep.Stores[2].Problems) != 1 || !rep.Backups[0].Restorable || !rep.Backups[1].Restorable {
		t.Errorf("a store without the forwarding: %+v, %v", rep, err)
	}
	x.announce(f, ident{1})
	// The new pack lost as well.
	x.drop(f.targets()[0], 3)
	for _, o := range []CheckOptions{{}, {ReadData: true}} {
		rep, err = x.c.open(t).Check(t.Context(), o)
		if err != nil || rep.OK() || rep.Backups[0].Restorable && rep.Backups[1].Restorable {
			t.Errorf("the new pack lost, %+v: %+v, %v", o, rep, err)
		}
	}
}
