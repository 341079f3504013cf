package repository

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// hasty is a prune that waits for nobody and asks nobody.
var hasty = PruneOptions{Silence: time.Nanosecond, MaxShare: 1}

func mustPrune(tb testing.TB, r *Repository) PruneReport {
	tb.Helper()
	rep, err := r.Prune(tb.Context(), hasty)
	if err != nil {
		tb.Fatalf("prune: %v, %+v", err, rep)
	}
	return rep
}

// garbage returns the packs on the stores that no root record reaches, and what
// else is left that should not be. The list of a prune that was killed stays
// while anything on it exists: some of it may have turned out to be needed.
func (c *cluster) garbage(ctx context.Context, r *Repository) ([]string, error) {
	reached := make(map[chunk.PackID]struct{})
	all, err := r.standings(ctx)
	if err != nil {
		return nil, err
	}
	names, err := r.union(ctx, rootPrefix)
	if err != nil {
		return nil, err
	}
	for _, st := range all {
		rt, err := r.readRoot(ctx, names[st.root.name], st.root.name)
		if err != nil {
			return nil, err
		}
		img, err := r.image(rt, st.state)
		if err != nil {
			return nil, err
		}
		packs, err := img.tree.Packs(ctx)
		if err = errors.Join(err, img.Close()); err != nil {
			return nil, err
		}
		for p := range packs {
			reached[p] = struct{}{}
		}
	}
	// Of a pack that moved, what has its chunks now is needed, and no other
	// forwarding.
	moved := make(map[string]bool)
	for id := range maps.Clone(reached) {
		fs, err := r.forwardings(ctx, id)
		if err != nil {
			return nil, err
		}
		if len(fs) != 1 {
			continue // none, or too many: those that are not in moved are garbage
		}
		delete(reached, id)
		for _, t := range fs[0].targets() {
			reached[t] = struct{}{}
		}
		moved[forwardFolder(id)] = true
	}
	var left []string
	there := newCondemned()
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if id, ok := parsePackName(name); ok {
				there.packs[id] = struct{}{}
			}
			if s, ok := rootSession(name); ok {
				there.backups[s] = struct{}{}
			}
		}
	}
	for _, m := range c.mem {
		err := m.List(ctx, "", func(i objstore.Info) error {
			id, pack := parsePackName(i.Name)
			_, needed := reached[id]
			_, leaf, open := sessionObject(i.Name)
			list := false
			if strings.HasSuffix(i.Name, "/"+condemnedLeaf) {
				payload, err := r.getControl(ctx, m, kindCondemned, i.Name)
				c := newCondemned()
				if err = errors.Join(err, c.decode(payload)); err != nil {
					return err
				}
				list = !c.meets(there)
			}
			stray := strings.HasPrefix(i.Name, forwardPrefix) && !moved[i.Name[:len(i.Name)-32]]
			if stray || pack && !needed || open && leaf == openLeaf || list || strings.HasPrefix(i.Name, probePrefix) {
				left = append(left, m.URL()+": "+i.Name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return left, nil
}

// drained runs three quiet prunes, behind which nothing may be left over: I5.
func (c *cluster) drained(tb testing.TB, r *Repository) {
	tb.Helper()
	for range 3 {
		mustPrune(tb, r)
	}
	left, err := c.garbage(tb.Context(), r)
	if err != nil || len(left) > 0 {
		tb.Errorf("garbage after three prunes: %v, %v", left, err)
	}
}

func TestPrune(t *testing.T) {
	c, r := fresh(t)
	rng := seeded(1)
	one := randomContent(rng, 300, 40)
	one.mustBackup(t, r, "one", "", nil)
	two := one.clone()
	two.mustBackup(t, r, "two", "one", two.change(rng, 20))
	other := randomContent(rng, 100, 20)
	other.mustBackup(t, r, "other", "", nil)
	if rep := mustPrune(t, r); rep.Packs+rep.Backups+rep.Trash != 0 || rep.Kept == 0 {
		t.Errorf("nothing to prune: %+v", rep)
	}
	for _, id := range []string{"one", "other"} {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if rep := mustPrune(t, r); rep.Packs+rep.Backups != 0 || rep.Trash != 2 {
		t.Errorf("the first prune that sees the deletion: %+v", rep)
	}
	if _, err := r.Undelete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	dry := hasty
	dry.DryRun = true
	would, err := r.Prune(t.Context(), dry)
	if err != nil || would.Packs == 0 {
		t.Errorf("dry run: %+v, %v", would, err)
	}
	rep := mustPrune(t, r)
	if rep.Packs != would.Packs || rep.Bytes != would.Bytes || rep.Backups != would.Backups || rep.Backups != 2 { // "other", and the first record of "one"
		t.Errorf("second prune: %+v, the dry run said %+v", rep, would)
	}
	mustVerify(t, one, r, "one")
	mustVerify(t, two, r, "two")
	if _, err = r.Image(t.Context(), "other"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the purged backup: %v", err)
	}
	if _, err = r.Undelete(t.Context(), "other"); !errors.Is(err, ErrNotFound) {
		t.Errorf("undelete of what is gone: %v", err)
	}
	if _, err = r.Undelete(t.Context(), "two"); !errors.Is(err, ErrInvalid) {
		t.Errorf("undelete of what is not deleted: %v", err)
	}
	check, err := r.Check(t.Context(), CheckOptions{ReadData: true})
	if err != nil || !check.OK() {
		t.Errorf("check: %+v, %v", check, err)
	}
	// A backup with two root records is deleted with one call.
	if err := r.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if b, err := r.Backups(t.Context()); err != nil || len(b) != 1 || b[0].ID != "two" {
		t.Errorf("%+v, %v", b, err)
	}
	c.drained(t, r)
	mustVerify(t, two, r, "two")
}

func TestPruneRefusals(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(2), 100, 20)
	v.mustBackup(t, r, "one", "", nil)
	if err := r.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	c.faulty[3].SetDown(true)
	if _, err := r.Prune(t.Context(), hasty); !errors.Is(err, ErrTooFewStores) {
		t.Errorf("with a store down: %v", err)
	}
	c.faulty[3].SetDown(false)
	mustPrune(t, r)
	if _, err := r.Prune(t.Context(), PruneOptions{Silence: time.Nanosecond}); !errors.Is(err, ErrLargePrune) {
		t.Errorf("everything at once: %v", err)
	}
	if lists, err := r.union(t.Context(), prunePrefix); err != nil || len(lists) != 1 {
		t.Errorf("a refused prune left %v, %v", lists, err)
	}
	// A store that lets two writers create one name.
	c.faulty[2].SetFaults(memstore.Faults{Before: func(ctx context.Context, call memstore.Call) error {
		if call.Op == "put" && strings.HasPrefix(call.Name, probePrefix) {
			_ = c.mem[2].Delete(ctx, call.Name)
		}
		return nil
	}})
	if _, err := r.Prune(t.Context(), hasty); err == nil || !strings.Contains(err.Error(), "safely") {
		t.Errorf("a store that creates a name twice: %v", err)
	}
	c.heal()
	mustPrune(t, r)
	c.drained(t, r)
}

// A prune that begins while another ends keeps the probe that it is racing for.
func TestProbesOfTwoPrunes(t *testing.T) {
	w := newWorld(t)
	a := w.process()
	late := a.open(t)
	racing, end, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	var puts atomic.Int64
	a.faulty[0].SetFaults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
		if putting(probePrefix, "")(c) && puts.Add(1) == probeRacers {
			close(racing) // the others have been and gone, one of them with the name
			<-end
		}
		return nil
	}})
	first := hastyAt("tidy", func() {
		go func() {
			_, err := late.Prune(t.Context(), hasty)
			ended <- err
		}()
		<-racing
	})
	if _, err := w.process().open(t).Prune(t.Context(), first); err != nil {
		t.Error(err)
	}
	close(end)
	if err := <-ended; err != nil {
		t.Errorf("the prune that began meanwhile: %v", err)
	}
	// One that was killed leaves its probe; the next takes it away.
	w.mem[3].Replace(probePrefix+"0123456789abcdef0123456789abcdef", []byte("x"))
	w.drained(t, w.process().open(t))
}

// world is a repository in a state where a prune has much to do: a live chain, a
// backup whose deletion has aged, one that was deleted just now, and the packs
// of a writer that died.
type world struct {
	*cluster
	first, second, gone, trashed *content
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	c, r := fresh(tb)
	rng := seeded(3)
	w := &world{cluster: c, first: randomContent(rng, 200, 20), gone: randomContent(rng, 60, 10)}
	w.mostlyDead(tb, r, "twice")
	mustPrune(tb, r)
	if rep := mustPrune(tb, r); rep.Compacted == 0 || len(rep.Problems) > 0 {
		tb.Fatalf("nothing was compacted: %+v", rep)
	}
	if err := r.Delete(tb.Context(), "twice2"); err != nil {
		tb.Fatal(err)
	}
	w.mostlyDead(tb, r, "once")
	w.first.mustBackup(tb, r, "first", "", nil)
	w.second = w.first.clone()
	w.second.mustBackup(tb, r, "second", "first", w.second.change(rng, 10))
	w.gone.mustBackup(tb, r, "gone", "", nil)
	w.trashed = randomContent(rng, 60, 10)
	w.trashed.mustBackup(tb, r, "trashed", "", nil)
	for _, id := range []string{"first", "gone"} {
		if err := r.Delete(tb.Context(), id); err != nil {
			tb.Fatal(err)
		}
	}
	mustPrune(tb, r)
	if err := r.Delete(tb.Context(), "trashed"); err != nil {
		tb.Fatal(err)
	}
	s, err := r.Begin(tb.Context(), SessionOptions{Project: "p", VolumeID: "dead"})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err = randomContent(rng, 60, 10).write(tb.Context(), s, nil); err != nil {
		tb.Fatal(err)
	}
	if err = s.ship.flush(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	s.release() // and is heard of no more
	return w
}

// mostlyDead makes three backups of a volume, NAME1 to NAME3, most of which
// changed from one to the next, and deletes the first: its packs are worth
// compacting behind the next prune but one, and so is what the second needs of
// them once that is deleted.
func (w *world) mostlyDead(tb testing.TB, r *Repository, name string) {
	tb.Helper()
	v := randomContent(seeded(7), 24, 100)
	parent := ""
	for n := range 3 {
		id := fmt.Sprint(name, n+1)
		var changed []int64
		if n > 0 {
			changed = v.change(seeded(uint64(8+n)), 24)
		}
		v.mustBackup(tb, r, id, parent, changed)
		parent = id
	}
	if err := r.Delete(tb.Context(), name+"1"); err != nil {
		tb.Fatal(err)
	}
}

// intact checks what must hold whatever happened: I1, I2.
func (w *world) intact(tb testing.TB, r *Repository, when string) {
	tb.Helper()
	if err := w.second.verify(tb.Context(), r, "second"); err != nil {
		tb.Errorf("%s: the live backup: %v", when, err)
	}
	all, err := r.standings(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	for _, st := range all {
		names, err := r.union(tb.Context(), st.root.name)
		if err != nil {
			tb.Fatal(err)
		}
		rt, err := r.readRoot(tb.Context(), names[st.root.name], st.root.name)
		if err != nil {
			tb.Fatalf("%s: %v", when, err)
		}
		img, err := r.image(rt, st.state)
		if err != nil {
			tb.Fatalf("%s: %v", when, err)
		}
		if st.state == Available {
			if err := img.ReadAt(tb.Context(), make([]byte, img.Size()), 0); err != nil {
				tb.Errorf("%s: backup %s is %s and cannot be read: %v", when, st.root.rec.BackupID, st.state, err)
			}
		}
		_ = img.Close()
	}
}

var errKilled = fmt.Errorf("killed: %w", objstore.ErrDown)

// onCalls makes every call of the cluster's stores, counted over all of them from
// 1 on, do something first.
func (c *cluster) onCalls(do func(n int64) error) {
	var calls atomic.Int64
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Before: func(context.Context, memstore.Call) error { return do(calls.Add(1)) }})
	}
}

// stride is how far apart the places are that a test tries: every one of them in
// a long run.
func stride(usual, short int64) int64 {
	switch {
	case os.Getenv("CAIRN_ROUNDS") != "":
		return 1
	case testing.Short():
		return short
	default:
		return usual
	}
}

// A backup that cannot be read stops every prune; deleted, it stops only the one
// that sees the deletion first.
func TestPruneUnreadable(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(1), 60, 10)
	v.mustBackup(t, r, "good", "", nil)
	if err := r.Delete(t.Context(), "good"); err != nil {
		t.Fatal(err)
	}
	mustPrune(t, r)
	bad := randomContent(seeded(2), 60, 10)
	bad.mustBackup(t, r, "bad", "", nil)
	b, err := r.Backup(t.Context(), "bad")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, packPrefix+b.Session) {
				_ = m.Delete(t.Context(), name)
			}
		}
	}
	r = c.open(t)
	if rep, err := r.Prune(t.Context(), hasty); err == nil || !strings.Contains(err.Error(), "delete it") || rep.Packs+rep.Backups > 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if err := r.Delete(t.Context(), "bad"); err != nil {
		t.Fatal(err)
	}
	if rep := mustPrune(t, r); rep.Packs+rep.Backups > 0 || len(rep.Problems) != 1 || c.count(purgedPrefix) > 0 {
		t.Errorf("the first that sees it: %+v", rep)
	}
	if rep := mustPrune(t, r); rep.Backups != 2 || len(rep.Problems) > 0 {
		t.Errorf("the second: %+v", rep)
	}
	c.drained(t, r)
}

// A prune that is killed at any of its calls damages nothing, and what it leaves
// goes with the next ones.
func TestPruneKilled(t *testing.T) {
	w := newWorld(t)
	for n := int64(1); ; n += stride(5, 29) {
		c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
		ctx, kill := context.WithCancelCause(t.Context())
		r := c.open(t)
		c.onCalls(func(call int64) error {
			if call < n {
				return nil
			}
			kill(errKilled)
			return errKilled
		})
		_, err := r.Prune(ctx, hasty)
		killed := ctx.Err() != nil
		kill(nil)
		c.heal()
		if !killed {
			if err != nil {
				t.Fatalf("the prune that nobody killed: %v", err)
			}
			break
		}
		r = c.open(t)
		c.intact(t, r, fmt.Sprintf("killed at call %d", n))
		c.drained(t, r)
		c.intact(t, r, fmt.Sprintf("killed at call %d, then pruned", n))
		if t.Failed() {
			return
		}
	}
}

// Whatever somebody else does between two calls of a prune, what is committed
// stays.
func TestPruneAgainst(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name string
		do   func(ctx context.Context, w *world, r *Repository) (string, *content, error)
	}{
		{"incremental", func(ctx context.Context, w *world, r *Repository) (string, *content, error) {
			v := w.second.clone()
			o, err := v.backup(ctx, r, "third", "second", v.change(seeded(9), 5))
			return committed("third", v, o, err)
		}},
		{"incremental of what goes", func(ctx context.Context, w *world, r *Repository) (string, *content, error) {
			v := w.gone.clone()
			o, err := v.backup(ctx, r, "third", "gone", v.change(seeded(9), 5))
			return committed("third", v, o, err)
		}},
		{"undelete", func(ctx context.Context, w *world, r *Repository) (string, *content, error) {
			if _, err := r.Undelete(ctx, "gone"); err == nil {
				return "gone", w.gone, nil
			}
			return "", nil, nil // too late: nothing is promised
		}},
		{"undelete from the trash", func(ctx context.Context, w *world, r *Repository) (string, *content, error) {
			_, err := r.Undelete(ctx, "trashed")
			return "trashed", w.trashed, err
		}},
		{"pin", func(ctx context.Context, w *world, r *Repository) (string, *content, error) {
			if err := r.Pin(ctx, "pin", "gone", "a guest"); err == nil {
				return "pin", w.gone, nil
			}
			return "", nil, nil // too late: nothing is promised
		}},
		{"another prune", func(ctx context.Context, _ *world, r *Repository) (string, *content, error) {
			_, err := r.Prune(ctx, hasty)
			return "", nil, err
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n := int64(1); ; n += stride(13, 67) {
				c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
				other := c.open(t)
				var id string
				var want *content
				var failed error
				done := false
				r := c.open(t)
				c.onCalls(func(call int64) error {
					if call == n {
						done = true
						id, want, failed = tt.do(t.Context(), c, other)
					}
					return nil
				})
				_, err := r.Prune(t.Context(), hasty)
				c.heal()
				if !done {
					break
				}
				if err != nil && !errors.Is(err, ErrTooFewStores) && !errors.Is(err, ErrDamaged) {
					t.Logf("call %d: %v", n, err) // stopped, which is never wrong
				}
				if failed != nil {
					t.Fatalf("call %d: %v", n, failed)
				}
				check := func(when string) {
					when = fmt.Sprintf("call %d, %s", n, when)
					r := c.open(t)
					c.intact(t, r, when)
					if want != nil {
						if err := want.verify(t.Context(), r, id); err != nil {
							t.Fatalf("%s: %s: %v", when, id, err)
						}
					}
				}
				check("at once")
				c.drained(t, other)
				check("three prunes later")
				if t.Failed() {
					return
				}
			}
		})
	}
}

// A prune between any two calls of a writer.
func TestWriterAgainstPrune(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name, parent string
		undelete     bool
	}{
		{"incremental", "second", false},
		{"incremental of what goes", "gone", false},
		{"undelete", "gone", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for n := int64(1); ; n += stride(5, 31) {
				c := &world{cluster: w.clone(), first: w.first, second: w.second, gone: w.gone, trashed: w.trashed}
				pruner := c.open(t)
				r := c.open(t)
				done := false
				var pruned error
				c.onCalls(func(call int64) error {
					if call == n {
						done = true
						_, pruned = pruner.Prune(t.Context(), hasty)
					}
					return nil
				})
				base := c.second
				if tt.parent == "gone" {
					base = c.gone
				}
				v, id := base.clone(), "third"
				var err error
				outcome := OutcomeFailed
				if tt.undelete {
					id = "gone"
					if _, err = r.Undelete(t.Context(), "gone"); err == nil {
						outcome = OutcomeCommitted
					}
				} else {
					outcome, err = v.backup(t.Context(), r, id, tt.parent, v.change(seeded(9), 5))
				}
				c.heal()
				if !done {
					if err != nil && !tt.undelete {
						t.Fatal(err)
					}
					break
				}
				if pruned != nil {
					t.Logf("call %d: the prune: %v", n, pruned)
				}
				check := func(when string) {
					r := c.open(t)
					c.intact(t, r, when)
					if outcome == OutcomeCommitted {
						if err := v.verify(t.Context(), r, id); err != nil {
							t.Fatalf("call %d, %s: %v", n, when, err)
						}
					}
				}
				check("at once")
				c.drained(t, c.open(t))
				check("three prunes later")
				if t.Failed() {
					return
				}
			}
		})
	}
}

func committed(id string, v *content, o Outcome, err error) (string, *content, error) {
	if o != OutcomeCommitted {
		return "", nil, err
	}
	return id, v, err
}

// progress stores a pack that nothing was stored like before.
func (s *Session) progress(tb testing.TB) {
	tb.Helper()
	plain := make([]byte, testBlock)
	copy(plain, rand.Text())
	w, err := s.Worker()
	if err == nil {
		_, _, err = w.PutBlock(tb.Context(), w.BlockID(plain), plain)
		err = errors.Join(err, w.Close(tb.Context()), s.ship.flush(tb.Context()))
	}
	if err != nil {
		tb.Error(err)
	}
}

// A prune that has nothing to remove decides what the dead left open, and waits
// for nobody who is alive.
func TestQuietPrune(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(5), 40, 8)
	v.mustBackup(t, r, "one", "", nil)
	begin := func() *Session {
		s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "w"})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	begin().release() // dead behind W1
	c.drained(t, r)
	if err := r.Delete(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	for _, f := range c.faulty { // dead behind W6
		f.SetFaults(memstore.Faults{Before: func(_ context.Context, call memstore.Call) error {
			if putting(sessionPrefix, verdictLeaf)(call) {
				return errKilled
			}
			return nil
		}})
	}
	if _, err := r.Undelete(t.Context(), "one"); err == nil {
		t.Fatal("told committed without a vote")
	}
	c.heal()
	if _, err := r.Undelete(t.Context(), "one"); err != nil {
		t.Fatalf("undelete again: %v", err)
	}
	c.drained(t, r)
	for _, m := range c.mem {
		roots := 0
		for _, name := range m.Names() {
			if strings.HasPrefix(name, rootPrefix) {
				roots++
			}
		}
		if roots != 1 {
			t.Errorf("%s: %d root records of one backup", m.URL(), roots)
		}
	}
	alive := begin()
	o := PruneOptions{Silence: 400 * time.Millisecond}
	looked := false
	o.Progress = func(p PruneProgress) {
		looked = looked || p.Step == "backups"
		if looked && p.Step == "sessions" { // it is being watched
			alive.progress(t)
		}
	}
	if rep, err := r.Prune(t.Context(), o); err != nil || rep.Fenced != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if d, err := r.Verdict(t.Context(), alive.ID()); err != nil || d != Undecided {
		t.Errorf("a session that is alive is %v, %v", d, err)
	}
	if err := alive.Abort(t.Context()); err != nil {
		t.Error(err)
	}
	mustVerify(t, v, r, "one")
	c.drained(t, r)
}

// A store without a record of the members stops a prune with a sentence.
func TestPruneWithoutMembership(t *testing.T) {
	c, r := fresh(t)
	_ = c.mem[2].Delete(t.Context(), membersName(1))
	if _, err := r.Prune(t.Context(), hasty); !errors.Is(err, ErrTooFewStores) || !strings.Contains(err.Error(), "has no list of the members: \"cairn repo repair --apply\"") {
		t.Error(err)
	}
}
