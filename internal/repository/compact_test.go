package repository

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// history is a volume that is backed up again and again, and of which only the
// newest backups are kept.
type history struct {
	v    *content
	kept map[string]*content
	ids  []string
}

func (h *history) backup(tb testing.TB, r *Repository, changes int) {
	tb.Helper()
	id, parent := fmt.Sprint("b", len(h.ids)), ""
	var changed []int64
	if len(h.ids) > 0 {
		parent = h.ids[len(h.ids)-1]
		changed = h.v.change(seeded(uint64(100+len(h.ids))), changes)
	}
	h.v.mustBackup(tb, r, id, parent, changed)
	h.ids, h.kept[id] = append(h.ids, id), h.v.clone()
}

func (h *history) delete(tb testing.TB, r *Repository, id string) {
	tb.Helper()
	if err := r.Delete(tb.Context(), id); err != nil {
		tb.Fatal(err)
	}
	delete(h.kept, id)
}

func (h *history) verify(tb testing.TB, r *Repository) {
	tb.Helper()
	for id, v := range h.kept {
		mustVerify(tb, v, r, id)
	}
}

func newHistory(blocks int64) *history {
	return &history{v: randomContent(seeded(5), blocks, int(4*blocks)), kept: make(map[string]*content)}
}

func (c *cluster) size() (n int64) {
	for _, m := range c.mem {
		_ = m.List(context.Background(), packPrefix, func(i objstore.Info) error { n += i.Size; return nil })
	}
	return n
}

// A repository from which old backups go stays about as large as what is left
// needs, however long it is used, and all of that restores.
func TestCompact(t *testing.T) {
	c, r := fresh(t)
	h := newHistory(40)
	const keep = 3
	compacted := 0
	for n := range 12 {
		h.backup(t, r, 12)
		if n >= keep {
			h.delete(t, r, h.ids[n-keep])
		}
		rep := mustPrune(t, r)
		if len(rep.Problems) > 0 {
			t.Errorf("round %d: %q", n, rep.Problems)
		}
		compacted += rep.Compacted
		h.verify(t, r)
	}
	if compacted < 3 {
		t.Errorf("%d packs were compacted", compacted)
	}
	c.drained(t, r)
	h.verify(t, c.open(t))
	check, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || !check.OK() {
		t.Errorf("check: %+v, %v", check, err)
	}
	// The same backups in a new repository, without anything dead.
	plain, pr := fresh(t)
	parent := ""
	for n, id := range h.ids[len(h.ids)-keep:] {
		var changed []int64
		v := h.kept[id]
		if n > 0 {
			changed = differing(h.kept[parent], v)
		}
		v.clone().mustBackup(t, pr, id, parent, changed)
		parent = id
	}
	if got, want := c.size(), plain.size(); got > 5*want/2 {
		t.Errorf("%d bytes are stored, %d without anything dead", got, want)
	}
}

// differing returns the blocks in which two volumes differ.
func differing(a, b *content) []int64 {
	var out []int64
	for i := range b.geometry().Blocks() {
		if !slices.Equal(a.blocks[i], b.blocks[i]) {
			out = append(out, i)
		}
	}
	return out
}

// What a dry run says is what the prune does; a part that is not dead enough is
// left alone, and so is everything with Compact 1.
func TestCompactThreshold(t *testing.T) {
	c, r := fresh(t)
	h := newHistory(40)
	h.backup(t, r, 0)
	h.backup(t, r, 30)
	h.delete(t, r, "b0")
	mustPrune(t, r)
	for share, want := range map[float64]bool{0.05: true, 0.99: false, 1: false} {
		o := hasty
		o.Compact, o.DryRun = share, true
		before := c.count("")
		rep, err := r.Prune(t.Context(), o)
		if err != nil || (rep.Compacted > 0) != want || want && rep.Freed <= 0 || c.count("") != before {
			t.Errorf("more than %v: %+v, %v", share, rep, err)
		}
	}
	o := hasty
	o.Compact = 1
	if rep, err := r.Prune(t.Context(), o); err != nil || rep.Compacted > 0 || c.count(forwardPrefix) > 0 {
		t.Errorf("without compaction: %+v, %v", rep, err)
	}
	o.Compact = 0.05
	if rep, err := r.Prune(t.Context(), o); err != nil || rep.Compacted == 0 || c.count(forwardPrefix) == 0 || rep.Freed <= 0 || rep.Moved <= 0 {
		t.Errorf("with it: %+v, %v", rep, err)
	}
	h.verify(t, r)
}

// halfDead is a repository in which the next prune compacts, and what is in it.
func halfDead(t *testing.T) (*cluster, *history) {
	t.Helper()
	c, r := fresh(t)
	h := newHistory(40)
	h.backup(t, r, 0)
	h.backup(t, r, 60)
	h.delete(t, r, "b0")
	mustPrune(t, r)
	return c, h
}

// A pack that cannot be read is not compacted, which is told, and everything else
// goes on.
func TestCompactDamagedPack(t *testing.T) {
	c, h := halfDead(t)
	r := c.open(t)
	dry := hasty
	dry.DryRun = true
	if rep, err := r.Prune(t.Context(), dry); err != nil || rep.Compacted != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if _, ok := parsePackName(name); ok {
				object, err := m.Get(t.Context(), name, 0, -1, nil)
				if err != nil {
					t.Fatal(err)
				}
				object[len(object)/3] ^= 1 // a cell of every shard, some of them the same one
				m.Replace(name, object)
			}
		}
	}
	rep, err := c.open(t).Prune(t.Context(), hasty)
	if err != nil && !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("%+v, %v", rep, err)
	}
	if err == nil && (rep.Compacted > 0 || len(rep.Problems) == 0) {
		t.Errorf("%+v", rep)
	}
	if c.count(packPrefix) < 2*len(c.mem) || c.count(forwardPrefix) > 0 {
		t.Error("a pack went")
	}
	_ = h
}

// Stores that are replaced one after the other, all of them, behind a compaction
// take nothing from it: its decision goes with them, though no root record says
// what was decided.
func TestCompactThenReplaceEveryStore(t *testing.T) {
	c, h := halfDead(t)
	r := c.open(t)
	if rep := mustPrune(t, r); rep.Compacted == 0 {
		t.Fatalf("%+v", rep)
	}
	for n := range c.mem {
		lost := c.memberAt(t, n)
		c.wipe(n)
		if _, err := c.open(t).ReplaceStore(t.Context(), lost, c.faulty[n], nil); err != nil {
			t.Fatal(err)
		}
	}
	r = c.open(t)
	c.drained(t, r)
	h.verify(t, c.open(t))
}

// A compaction that another prune aborts changes nothing, and its remains go.
func TestCompactAborted(t *testing.T) {
	c, h := halfDead(t)
	other := c.process().open(t)
	r := c.open(t)
	fenced := false
	c.before(putting(forwardPrefix, ""), func() {
		fenced = true
		mustPrune(t, other)
	})
	rep, err := r.Prune(t.Context(), hasty)
	c.heal()
	if !fenced || err != nil || rep.Compacted > 0 || len(rep.Problems) == 0 {
		t.Errorf("aborted half-way: %+v, %v, fenced %v", rep, err, fenced)
	}
	h.verify(t, c.open(t))
	c.drained(t, c.open(t))
	h.verify(t, c.open(t))
	if n := c.count(forwardPrefix); n == 0 {
		t.Error("and it was never compacted")
	}
}

// What is retained could not go: it is compacted when its time has come.
func TestCompactRetained(t *testing.T) {
	c, clk, r := locking(t, 6)
	v := randomContent(seeded(5), 40, 160)
	if o, err := v.retained(t.Context(), r, "b0", "", "v", nil, 0); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	if o, err := v.retained(t.Context(), r, "b1", "b0", "v", v.change(seeded(6), 60), 48*time.Hour); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
	if err := r.Delete(t.Context(), "b0"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, r)
	before := c.size()
	if rep := mustPrune(t, r); rep.Compacted > 0 || c.size() != before {
		t.Fatalf("%+v, %d bytes, %d before", rep, c.size(), before)
	}
	mustVerify(t, v, r, "b1")
	clk.t = clk.t.Add(200 * time.Hour)
	if rep := mustPrune(t, r); rep.Compacted == 0 || rep.Locked > 0 || c.size() >= before {
		t.Fatalf("%+v, %d bytes, %d before", rep, c.size(), before)
	}
	mustVerify(t, v, c.open(t), "b1")
	c.drained(t, r)
}

// knownDead is a process with a local index, and a block that only its index knows:
// the backup that had it is deleted, and purged by the next prune, which compacts
// the pack that it is in.
func knownDead(t *testing.T) (c *cluster, h *history, r *Repository, dead []byte) {
	t.Helper()
	c, _ = fresh(t)
	cache := t.TempDir()
	r = c.open(t, func(o *Options) { o.CacheDir = cache })
	h = newHistory(40)
	h.backup(t, r, 0)
	h.backup(t, r, 60)
	changed := differing(h.kept["b0"], h.kept["b1"])
	dead = h.kept["b0"].blocks[changed[0]]
	h.delete(t, r, "b0")
	// The index goes on with what it knows if it sees each list while it is there.
	c.abandon(t, r)
	looked := false
	seen := hastyAt("announce", func() { looked = true })
	told := seen.Progress
	seen.Progress = func(p PruneProgress) {
		if p.Step == "backups" && looked { // P7
			looked = false
			s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "looks"})
			if err == nil {
				err = s.Abort(t.Context())
			}
			if err != nil {
				t.Error(err)
			}
		}
		told(p)
	}
	rep, err := c.process().open(t).Prune(t.Context(), seen)
	if err != nil || looked || rep.Waiting == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	return c, h, r, dead
}

// abandon leaves a session and a pack of a writer that died.
func (c *cluster) abandon(t *testing.T, r *Repository) {
	t.Helper()
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "dead"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = randomContent(seeded(1), 60, 10).write(t.Context(), s, nil); err != nil {
		t.Fatal(err)
	}
	if err = s.ship.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.release()
}

// The model's counterexamples of compaction, on the code: a writer begins to need
// a chunk of a pack that is being compacted and that nobody else needs. One that
// opened before the list is waited for, and the chunk moves; one that opened
// behind it does not use the pack.
func TestCompactAgainstIndex(t *testing.T) {
	for _, tt := range []struct {
		name         string
		open, commit string // before which step of the prune
		reuse        bool
	}{
		{"opened before the list, committed behind P4", "backups", "announce", true},
		{"opened behind P7", "compact", "remove packs", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, h, r, dead := knownDead(t)
			v := &content{size: testBlock, blocks: map[int64][]byte{0: dead}}
			var s *Session
			var outcome Outcome
			var failed error
			o := hasty
			o.Silence = time.Hour
			o.Progress = func(p PruneProgress) {
				switch {
				case p.Step == tt.open && s == nil && failed == nil:
					s, failed = r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "other", Volume: "other"})
				case p.Step == tt.commit && s != nil && outcome == 0 && failed == nil:
					var top []byte
					if top, failed = v.write(t.Context(), s, []int64{0}); failed == nil {
						if n := s.Stored().BytesStored; (n < testBlock/2) != tt.reuse {
							t.Errorf("%d bytes were stored", n)
						}
						outcome, failed = s.Commit(t.Context(), Root{BackupID: "late", Created: r.o.Now(), Geometry: v.geometry(), Top: top})
					}
				}
			}
			rep, err := c.process().open(t).Prune(t.Context(), o)
			if err != nil || failed != nil || outcome != OutcomeCommitted || rep.Compacted == 0 {
				t.Fatalf("%+v, %v; the writer: %v, %v", rep, err, outcome, failed)
			}
			for range 3 {
				mustVerify(t, v, c.open(t), "late")
				h.verify(t, c.open(t))
				mustPrune(t, c.open(t))
			}
		})
	}
}

// A compaction that got one vote only is committed, and the next prune removes
// the old pack. The store with that vote may then be lost.
func TestCompactVoteThenALoss(t *testing.T) {
	c, h := halfDead(t)
	dying := c.process()
	dying.fault(memstore.FailBefore, putting(sessionPrefix, "/"+verdictLeaf), 1, 2, 3, 4, 5)
	if rep, err := dying.open(t).Prune(t.Context(), hasty); err != nil || rep.Compacted > 0 || len(rep.Problems) == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	mustPrune(t, c.open(t))
	lost := c.memberAt(t, 0)
	c.wipe(0)
	if _, err := c.open(t).ReplaceStore(t.Context(), lost, c.faulty[0], nil); err != nil {
		t.Fatal(err)
	}
	c.drained(t, c.open(t))
	h.verify(t, c.open(t))
	if c.count(forwardPrefix) == 0 {
		t.Error("nothing was compacted")
	}
}

// A compaction's only vote rots: it is mended to what it was, because the
// certificate says so.
func TestCompactRottenVote(t *testing.T) {
	c := newCluster(1)
	c.init(t, 1, 0)
	r := c.open(t)
	h := newHistory(40)
	h.backup(t, r, 0)
	h.backup(t, r, 60)
	h.delete(t, r, "b0")
	mustPrune(t, r)
	if rep := mustPrune(t, r); rep.Compacted == 0 {
		t.Fatalf("%+v", rep)
	}
	rotten := 0
	for _, name := range c.mem[0].Names() {
		s, leaf, ok := sessionObject(name)
		if !ok || leaf != verdictLeaf || c.count(packPrefix+s.String()) == 0 || c.count(rootPrefix) == 0 {
			continue
		}
		object, err := c.mem[0].Get(t.Context(), name, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = c.mem[0].Stat(t.Context(), certificateName(s)); err != nil {
			continue
		}
		object[40] ^= 1
		c.mem[0].Replace(name, object)
		rotten++
	}
	if rotten == 0 {
		t.Fatal("no compaction with a certificate")
	}
	if rep, err := c.open(t).Repair(t.Context(), RepairOptions{Apply: true, ReadData: true}); err != nil {
		t.Fatalf("%+v, %v", rep, err)
	}
	c.drained(t, c.open(t))
	h.verify(t, c.open(t))
}

// Of several forwardings those count whose compactions are committed, the greatest
// ID first; what is not decided is nobody's business yet.
func TestForwardingCandidates(t *testing.T) {
	old := chunk.PackID{1}
	seen := func(n byte) forwardSeen { return forwardSeen{forwardName(old, ident{n}), ident{n}} }
	p := &pruner{owners: map[ident]Decision{{1}: Committed, {2}: Aborted, {3}: Committed, {4}: Committed, {5}: Undecided, {6}: Aborted}}
	for _, order := range [][]byte{{1, 2, 3, 4, 5, 6}, {4, 3, 6, 2, 1, 5}, {3, 4, 1, 5, 6, 2}} {
		p.moves = movesSeen{all: make(map[chunk.PackID][]forwardSeen)}
		for _, n := range order {
			p.moves.all[old] = append(p.moves.all[old], seen(n))
		}
		fs := p.candidates(old)
		strays := slices.Sorted(slices.Values(p.moves.strays))
		if !slices.Equal(fs, []forwardSeen{seen(4), seen(3), seen(1)}) || !slices.Equal(strays, []string{seen(2).name, seen(6).name}) {
			t.Errorf("%v: %v, %q", order, fs, strays)
		}
	}
}

// Behind a rotation of the key, what moves is sealed under the new one.
func TestCompactAcrossARotation(t *testing.T) {
	c, h := halfDead(t)
	r := c.open(t)
	mustRotate(t, r)
	h.backup(t, r, 1)
	rep := mustPrune(t, c.open(t))
	if rep.Compacted == 0 || len(rep.Problems) > 0 {
		t.Fatalf("%+v", rep)
	}
	h.verify(t, r)
	h.verify(t, c.open(t))
	c.drained(t, c.open(t))
	h.verify(t, c.open(t))
}
