package repository

import (
	"context"
	"encoding/binary"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

func (c *content) backupOf(t *testing.T, r *Repository, vol, id, parent string, changed []int64) {
	t.Helper()
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: vol, Volume: vol, ParentBackup: parent})
	if err != nil {
		t.Fatal(err)
	}
	top, err := c.write(t.Context(), s, changed)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := s.Commit(t.Context(), Root{BackupID: id, Name: "name-" + id, Created: time.Unix(1_760_000_000, 0), Geometry: c.geometry(), Top: top}); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
}

func noise(seed uint64, blocks, filled int64) *content {
	c := &content{size: blocks * testBlock, blocks: make(map[int64][]byte)}
	r := seeded(seed)
	for b := range filled {
		p := make([]byte, testBlock)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		c.blocks[b] = p
	}
	return c
}

func (c *content) renewed(seed uint64, from, to int64) []int64 {
	r := seeded(seed)
	var ch []int64
	for b := from; b < to; b++ {
		p := make([]byte, testBlock)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		c.blocks[b] = p
		ch = append(ch, b)
	}
	return ch
}

// twoInOne is a repository in which packs of two volumes were compacted into one.
func twoInOne(t *testing.T) (*cluster, *content, *content) {
	t.Helper()
	c, r := fresh(t)
	v, w := noise(1, 60, 40), noise(2, 60, 20)
	v.backupOf(t, r, "v", "v0", "", nil)
	w.backupOf(t, r, "w", "w0", "", nil)
	v.backupOf(t, r, "v", "v1", "v0", v.renewed(3, 0, 28))
	w.backupOf(t, r, "w", "w1", "w0", w.renewed(4, 0, 16))
	for _, id := range []string{"v0", "w0"} {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	mustPrune(t, r)
	rep := mustPrune(t, r)
	t.Logf("first compaction: %+v", rep)
	if rep.Compacted != 2 {
		t.Fatal("setting")
	}
	mustVerify(t, v, c.open(t), "v1")
	mustVerify(t, w, c.open(t), "w1")
	return c, v, w
}

// A backup that is undeleted between P4 and P5, and whose packs had moved to the one
// to which those of a live backup had, keeps it: it is not compacted this time.
func TestCompactRescuedTargetIsCompacted(t *testing.T) {
	c, v, w := twoInOne(t)
	r := c.open(t)
	if err := r.Delete(t.Context(), "v1"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, r)
	other := c.process().open(t)
	o := hastyAt("announce", func() {
		if _, err := other.Undelete(t.Context(), "v1"); err != nil {
			t.Error(err)
		}
	})
	rep, err := c.open(t).Prune(t.Context(), o)
	t.Logf("%+v %v", rep, err)
	if err := w.verify(t.Context(), c.open(t), "w1"); err != nil {
		t.Error("w1:", err)
	}
	if err := v.verify(t.Context(), c.open(t), "v1"); err != nil {
		t.Error("v1:", err)
	}
}

// The list of a prune that died before its compaction goes when a later one has
// finished that.
func TestCompactListStays(t *testing.T) {
	c, h := halfDead(t)
	dieBefore(t, c, "compact", hasty)
	o := hasty
	o.Compact = 1
	for i := range 4 {
		rep, err := c.open(t).Prune(t.Context(), o)
		t.Logf("%d without compaction: %+v %v; lists %d", i, rep, err, countLists(c))
	}
	if n := countLists(c); n > 0 {
		t.Logf("with Compact 1 %d list(s) stay for ever", n)
	}
	// Now default, but a threshold that it no longer meets: new backups make it alive again? Use default.
	for i := range 3 {
		rep, err := c.open(t).Prune(t.Context(), hasty)
		t.Logf("%d with: %+v %v; lists %d", i, rep, err, countLists(c))
	}
	if n := countLists(c); n > 0 {
		t.Errorf("%d lists stay", n)
	}
	h.verify(t, c.open(t))
}

func countLists(c *cluster) int {
	n := 0
	for _, name := range c.mem[0].Names() {
		if strings.HasPrefix(name, prunePrefix) && strings.HasSuffix(name, condemnedLeaf) {
			n++
		}
	}
	return n
}

// Who reads a backup for long goes on while its packs move twice.
func TestCompactReaderTwoCompactions(t *testing.T) {
	c, v, _ := twoInOne(t)
	img, err := c.open(t).Image(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = img.Close() }()
	got := make([]byte, v.size)
	if err := img.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	r := c.open(t)
	for i := range 3 {
		if i == 0 {
			if err := r.Delete(t.Context(), "w1"); err != nil {
				t.Fatal(err)
			}
		}
		o := hasty
		o.Compact = 0.01
		rep, err := r.Prune(t.Context(), o)
		t.Logf("%+v %v", rep, err)
		if err := img.ReadAt(t.Context(), got, 0); err != nil {
			t.Error("reader:", err)
		}
	}
	if string(got) != string(v.bytes()) {
		t.Error("differs")
	}
}

// dieBefore is a prune that dies before one of its steps.
func dieBefore(t *testing.T, c *cluster, step string, o PruneOptions) {
	t.Helper()
	ctx, kill := context.WithCancelCause(t.Context())
	defer kill(nil)
	o.Progress = func(p PruneProgress) {
		if p.Step == step {
			kill(errKilled)
		}
	}
	if _, err := c.process().open(t).Prune(ctx, o); err == nil {
		t.Fatal("did not die")
	}
}

// A prune that died behind the packs of a second compaction and before the
// forwardings that are superseded left no damage, and check and repair say so.
func TestCompactCheckSuperseded(t *testing.T) {
	c, v, w := twoInOne(t)
	if err := c.open(t).Delete(t.Context(), "w1"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, c.open(t))
	dying := c.process()
	dying.fault(memstore.FailBefore, deleting(forwardPrefix))
	o := hasty
	o.Compact = 0.01
	rep, err := dying.open(t).Prune(t.Context(), o)
	t.Logf("%+v %v", rep, err)
	if err == nil {
		t.Fatal("setting")
	}
	mustVerify(t, v, c.open(t), "v1")
	_ = w
	check, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || !check.OK() {
		t.Errorf("check: %+v, %v", check, err)
	}
	rr, err := c.open(t).Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
	t.Logf("repair: %+v %v", rr, err)
	mustVerify(t, v, c.open(t), "v1")
	c.drained(t, c.open(t))
	mustVerify(t, v, c.open(t), "v1")
}

// Some stores still have their shard of a pack that moved: nobody misses the others.
func TestCompactHalfRemoved(t *testing.T) {
	for _, left := range [][]int{{5}, {3, 4, 5}, {1, 2, 3, 4, 5}, {0, 1, 2, 3, 4, 5}} {
		c, h := halfDead(t)
		dying := c.process()
		dying.fault(memstore.FailBefore, deleting(packPrefix), left...)
		if _, err := dying.open(t).Prune(t.Context(), hasty); err == nil {
			t.Fatal("setting")
		}
		h.verify(t, c.open(t))
		check, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
		if err != nil || !check.OK() {
			t.Errorf("%v: check: %+v, %v", left, check, err)
		}
		rr, err := c.open(t).Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
		if err != nil {
			t.Errorf("repair: %+v %v", rr, err)
		}
		h.verify(t, c.open(t))
		c.drained(t, c.open(t))
		h.verify(t, c.open(t))
		if n := countLists(c); n > 0 {
			t.Errorf("%v: %d lists", left, n)
		}
	}
}

// A pack of chunks that compress well is not held in memory as plaintext.
func TestCompactMemory(t *testing.T) {
	c, r := fresh(t)
	const n = 8000
	v := &content{size: n * testBlock, blocks: make(map[int64][]byte)}
	fill := func(from, to int64, salt byte) (ch []int64) {
		for b := from; b < to; b++ {
			p := make([]byte, testBlock)
			for i := range p {
				p[i] = salt
			}
			binary.BigEndian.PutUint64(p, uint64(b)+1)
			for j := range 20 { // some 200 bytes that do not compress
				binary.BigEndian.PutUint64(p[16+8*j:], (uint64(b)*1000+uint64(j)+uint64(salt))*0x9E3779B97F4A7C15)
			}
			v.blocks[b] = p
			ch = append(ch, b)
		}
		return ch
	}
	fill(0, n, 1)
	v.backupOf(t, r, "v", "v0", "", nil)
	v.backupOf(t, r, "v", "v1", "v0", fill(0, n/2+200, 2))
	v.blocks = nil
	_ = r.Delete(t.Context(), "v0")
	mustPrune(t, r)
	r = c.open(t)
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	base := ms.HeapAlloc
	var peak atomic.Uint64
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				var ms runtime.MemStats
				runtime.ReadMemStats(&ms)
				peak.Store(max(peak.Load(), ms.HeapAlloc))
			}
		}
	}()
	rep := mustPrune(t, r)
	close(stop)
	t.Logf("%+v; base %d MiB, peak %d MiB", rep, base>>20, peak.Load()>>20)
	if rep.Compacted > 0 && peak.Load()-base > 150<<20 {
		t.Errorf("a pack of a few MiB took %d MiB", (peak.Load()-base)>>20)
	}
}

// What is retained is not copied: it could not go.
func TestCompactLockedGrows(t *testing.T) {
	c, _, r := locking(t, 6)
	v := noise(1, 60, 40)
	o, err := v.retained(t.Context(), r, "b0", "", "v", nil, 0)
	if err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	if o, err = v.retained(t.Context(), r, "b1", "b0", "v", v.renewed(6, 0, 28), 48*time.Hour); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	if err := r.Delete(t.Context(), "b0"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, r)
	before := c.size()
	rep := mustPrune(t, r)
	if c.size() > before && rep.Freed > 0 {
		t.Errorf("Freed %d, locked %d, and the repository grew from %d to %d", rep.Freed, rep.Locked, before, c.size())
	}
	for i := range 2 {
		rep = mustPrune(t, r)
		t.Logf("%d: %+v size %d", i, rep, c.size())
	}
}

// One store has no room for a shard: garbage goes all the same.
func TestCompactFullStore(t *testing.T) {
	c, h := halfDead(t)
	r := c.open(t)
	c.abandon(t, r) // garbage
	before := c.size()
	full := c.process()
	full.fault(memstore.FailBefore, putting(packPrefix, ""), 3)
	for range 4 {
		rep, err := full.open(t).Prune(t.Context(), hasty)
		t.Logf("%+v %v; size %d -> %d", rep, err, before, c.size())
	}
	if c.size() >= before {
		t.Error("nothing can ever be freed: the compaction stops the prune before P8 and P9")
	}
	h.verify(t, c.open(t))
}

// A forwarding with the greatest ID that a store makes up is in nobody's way.
func TestCompactInventedID(t *testing.T) {
	for _, last := range []string{"ffffffffffffffff", "fffffffffffffffe"} {
		c, h := halfDead(t)
		name := forwardName(chunk.PackID{9}, ident{})
		name = name[:len(name)-32] + last + strings.Repeat("0", 16)
		if err := c.mem[0].Put(t.Context(), name, []byte("lies")); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			rep, err := c.open(t).Prune(t.Context(), hasty)
			t.Logf("%s: %+v %v", last, rep, err)
			if err != nil {
				t.Errorf("%s: prune is stuck: %v", last, err)
			}
		}
		_ = c.mem[0].Delete(t.Context(), name) // the store is honest again
		genuine := ""
		for _, n := range c.mem[0].Names() {
			if _, s, ok := parseForwardName(n); ok && s.String()[:16] == "ffffffffffffffff" {
				genuine = n
			}
		}
		if genuine != "" {
			t.Errorf("%s: and a genuine forwarding has the greatest ID for ever: %s", last, genuine)
			// something new to compact
			r := c.open(t)
			v := noise(11, 60, 40)
			v.backupOf(t, r, "n", "n0", "", nil)
			v.backupOf(t, r, "n", "n1", "n0", v.renewed(12, 0, 30))
			_ = r.Delete(t.Context(), "n0")
			for range 3 {
				rep, err := r.Prune(t.Context(), hasty)
				t.Logf("   %+v %v", rep, err)
				if err != nil {
					t.Errorf("prune is stuck for ever: %v", err)
				}
			}
		}
		h.verify(t, c.open(t))
	}
}

// Nor is one under the session of a backup that is committed.
func TestCompactInventedCommitted(t *testing.T) {
	c, h := halfDead(t)
	var old chunk.PackID
	var s ident
	for _, n := range c.mem[0].Names() {
		if id, ok := parsePackName(n); ok {
			old, s = id, packSession(id)
		}
	}
	if err := c.mem[0].Put(t.Context(), forwardName(old, s), []byte("lies")); err != nil {
		t.Fatal(err)
	}
	_, err := c.open(t).Prune(t.Context(), hasty)
	t.Log(err)
	rr, rerr := c.open(t).Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})
	t.Logf("repair %+v %v", rr, rerr)
	if _, err := c.open(t).Prune(t.Context(), hasty); err != nil {
		t.Errorf("prune is stuck, repair does not help: %v", err)
	}
	h.verify(t, c.open(t))
}

// Packs that moved are told apart in parts, like all others.
func TestCompactAlwaysTracked(t *testing.T) {
	l := liveChunks{packs: make(map[chunk.PackID]*liveSet), moved: make(map[chunk.PackID]ident)}
	const packs = 2000
	for i := range packs {
		l.moved[chunk.PackID{byte(i), byte(i >> 8), 1}] = must(newIdent())
	}
	l.expect(maxTracked*1000, 0) // one in a thousand
	l.salt = 1 << 63
	for id := range l.moved {
		l.add("p", chunk.Ref{ID: chunk.ID{1}, Location: chunk.Location{Pack: id, Length: 5}})
	}
	if len(l.packs) > packs/10 {
		t.Errorf("of %d packs %d are tracked, where %d was meant", packs, len(l.packs), packs/1000)
	}
}

// What a prune that died was to compact the next one does, whatever its threshold, so
// that a backup of it can be undeleted again.
func TestCompactUndeleteRefused(t *testing.T) {
	c, _ := halfDead(t)
	o := hasty
	o.Compact = 0.2
	dieBefore(t, c, "compact", o)
	o.Compact = 0.9
	for range 3 {
		if _, err := c.open(t).Prune(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	r := c.open(t)
	if err := r.Delete(t.Context(), "b1"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Undelete(t.Context(), "b1"); err != nil {
		t.Errorf("lists %d: %v", countLists(c), err)
	}
}

// A project whose packs cannot be compacted takes nothing from another one.
func TestCompactSecondProjectFails(t *testing.T) {
	c, r := fresh(t)
	vs := map[string]*content{}
	for i, p := range []string{"p", "q"} {
		v := noise(uint64(20+i), 60, 40)
		for n, parent := range []string{"", p + "0"} {
			s, err := r.Begin(t.Context(), SessionOptions{Project: p, VolumeID: p, Volume: p, ParentBackup: parent})
			if err != nil {
				t.Fatal(err)
			}
			var ch []int64
			if n == 1 {
				ch = v.renewed(uint64(30+i), 0, 28)
			}
			top, err := v.write(t.Context(), s, ch)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Commit(t.Context(), Root{BackupID: p + string(rune('0'+n)), Created: r.o.Now(), Geometry: v.geometry(), Top: top}); err != nil {
				t.Fatal(err)
			}
		}
		vs[p+"1"] = v
		if err := r.Delete(t.Context(), p+"0"); err != nil {
			t.Fatal(err)
		}
	}
	mustPrune(t, r)
	dying := c.process()
	n := 0
	dying.faulty[0].SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
		if putting(sessionPrefix, "/"+openLeaf)(call) {
			if n++; n >= 2 {
				return memstore.FailBefore
			}
		}
		return memstore.None
	}})
	rep, err := dying.open(t).Prune(t.Context(), hasty)
	t.Logf("%+v %v", rep, err)
	if err != nil || rep.Compacted != 1 || len(rep.Problems) != 1 {
		t.Fatal("setting")
	}
	for range 3 {
		for id, v := range vs {
			mustVerify(t, v, c.open(t), id)
		}
		mustPrune(t, c.open(t))
	}
	c.drained(t, c.open(t))
	for id, v := range vs {
		mustVerify(t, v, c.open(t), id)
	}
	if countLists(c) > 0 {
		t.Error("lists")
	}
}
