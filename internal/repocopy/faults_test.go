package repocopy

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

var errCrash = errors.New("the process is dead")

// TestCrashAtEveryCall kills the copy at every call to a store of the
// destination. What is listed then is whole, what was told copied is listed, and
// the next copy brings the rest.
func TestCrashAtEveryCall(t *testing.T) {
	source, base, one, two := pair(t)
	src := source.opened(t)
	wanted := all(t, src)
	contents := map[string]*disk{"a": one, "b": two}
	sparse := int64(30)
	if testing.Short() {
		sparse = 5
	}
	for at := int64(0); ; at++ {
		site := base.clone()
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int64
		site.faults(memstore.Faults{
			Before: func(context.Context, memstore.Call) error {
				if calls.Add(1) > at+1 {
					return errCrash
				}
				return nil
			},
			Decide: func(memstore.Call) memstore.Fault {
				if calls.Load() == at+1 {
					cancel()
					return memstore.FailAfter // done, but nobody heard of it
				}
				return memstore.None
			},
		})
		told := map[string]State{}
		if dst, err := repository.Open(ctx, repository.Options{Stores: site.stores(), Password: password, Timing: eager}); err == nil {
			rs, _ := Run(ctx, src, dst, wanted, Options{}) // how it ends does not matter here
			told = states(rs)
			if err := dst.Close(); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		total := calls.Load()
		site.faults(memstore.Faults{})
		dst := site.open(t)
		got := listed(t, dst)
		for id, b := range got {
			if b.State != repository.Available {
				continue
			}
			if err := holds(t.Context(), dst, id, contents[id]); err != nil {
				t.Errorf("listed behind call %d: %v", at, err)
			}
		}
		for id, s := range told {
			if s == Copied && got[id].State != repository.Available {
				t.Errorf("behind call %d %s was told copied and is %q", at, id, got[id].State)
			}
		}
		rs, err := Run(t.Context(), src, dst, wanted, Options{})
		for _, r := range rs {
			if r.State != Copied && r.State != Present {
				t.Errorf("again behind call %d: %+v", at, r)
			}
		}
		err = errors.Join(err, holds(t.Context(), dst, "a", one), holds(t.Context(), dst, "b", two), dst.Close())
		if err != nil {
			t.Errorf("again behind call %d: %v", at, err)
		}
		if t.Failed() {
			return
		}
		if total <= at {
			if at < 50 {
				t.Fatalf("only %d calls", at)
			}
			return
		}
		at += at / sparse // early calls one by one, later ones more sparsely
	}
}

// damage makes unreadable the packs of the source's backup with that ID.
func damage(t *testing.T, s *site, session string) {
	t.Helper()
	n := 0
	for _, m := range s.mem {
		for _, name := range m.Names() {
			if strings.HasPrefix(name, "packs/"+session) {
				m.Replace(name, []byte("what is no shard"))
				n++
			}
		}
	}
	if n == 0 {
		t.Fatal("there was nothing to damage")
	}
}

// TestDamagedSource: what cannot be read fails that backup, by the names of its
// blocks, and not the next; what the destination has already it does not need.
func TestDamagedSource(t *testing.T) {
	a, b, one, two := pair(t)
	src, dst := a.opened(t), b.opened(t)
	if _, err := Run(t.Context(), src, dst, []repository.Backup{listed(t, src)["a"]}, Options{}); err != nil {
		t.Fatal(err)
	}
	three := two.clone()
	three.write(256, 77)
	three.write(257, 78)
	mustBackUp(t, src, "c", "b", three)
	four := three.clone()
	four.write(256, 91)
	four.write(257, 92)
	mustBackUp(t, src, "d", "c", four)
	session := listed(t, src)["c"].Session
	damage(t, a, session)
	fresh := a.opened(t) // without a cache
	var told []string
	rs, err := Run(t.Context(), fresh, dst, all(t, fresh), Options{Done: func(r Result) { told = append(told, r.Backup.ID+" "+string(r.State)) }})
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.Join(told, ", "); s != "a present, b copied, c failed, d copied" {
		t.Fatal(s)
	}
	if re, ok := errors.AsType[*ReadError](rs[2].Err); ok && (re.Backup != "c" || !errors.Is(re, repository.ErrDamaged)) {
		t.Errorf("%v", re)
	}
	if got := listed(t, dst); len(got["c"].ID) > 0 {
		t.Error("a copy that failed is listed")
	}
	if err := errors.Join(holds(t.Context(), dst, "a", one), holds(t.Context(), dst, "b", two), holds(t.Context(), dst, "d", four), sound(t.Context(), dst)); err != nil {
		t.Error(err)
	}
	if pins, err := src.Pins(t.Context()); err != nil || len(pins) > 0 {
		t.Error(pins, err)
	}
}

// TestDamagedChunks: only data is damaged, not the manifest, and the sentence
// names the first run of blocks that is.
func TestDamagedChunks(t *testing.T) {
	a, b := newSite(t, "a", 1, 0), newSite(t, "b", 1, 0)
	src, dst := a.opened(t), b.opened(t)
	d := &disk{size: 2 * leaf, blocks: map[int64][]byte{}}
	for i := int64(10); i < 20; i++ {
		d.write(i, 3*uint32(i)+1) // does not compress: chunks lie in their order, a block each
	}
	mustBackUp(t, src, "a", "", d)
	next := d.clone()
	next.write(150, 4)
	mustBackUp(t, src, "b", "", next) // full, and without an index nothing is shared
	m := a.mem[0]
	for _, name := range m.Names() {
		if strings.HasPrefix(name, "packs/"+listed(t, src)["a"].Session) {
			size, err := m.Stat(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			p, err := m.Get(t.Context(), name, 0, size, nil)
			if err != nil {
				t.Fatal(err)
			}
			// In the middle of the chunks of the fourth and the fifth block.
			for _, off := range []int{3*block + block/2, 4*block + block/2} {
				p[off] ^= 1
			}
			m.Replace(name, p)
		}
	}
	fresh := a.opened(t)
	rs, err := Run(t.Context(), fresh, dst, all(t, fresh), Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	re, ok := errors.AsType[*ReadError](rs[0].Err)
	if !ok || rs[0].State != Failed || re.First < 12 || re.First > 14 || re.Count < 1 || re.Count > 3 || !errors.Is(re, repository.ErrDamaged) {
		t.Fatalf("%+v", rs[0])
	}
	if s := rs[0].Err.Error(); !strings.HasPrefix(s, "blocks 1") || !strings.Contains(s, "cannot be read in the source") {
		t.Error(s)
	}
	if rs[1].State != Copied || len(listed(t, dst)) != 1 {
		t.Errorf("%+v", rs[1])
	}
	if err := holds(t.Context(), dst, "b", next); err != nil {
		t.Error(err)
	}
}

// TestCancel ends a copy while it reads: nothing is listed, and nothing is left
// pinned or open.
func TestCancel(t *testing.T) {
	a, b, one, two := pair(t)
	src, dst := a.opened(t), b.opened(t)
	wanted := all(t, src)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var packs atomic.Int64
	a.faults(memstore.Faults{Before: func(ctx context.Context, c memstore.Call) error {
		if c.Op == "get" && strings.HasPrefix(c.Name, "packs/") && packs.Add(1) == 20 {
			cancel()
			<-ctx.Done()
		}
		return nil
	}})
	rs, err := Run(ctx, src, dst, wanted, Options{})
	a.faults(memstore.Faults{})
	if !errors.Is(err, context.Canceled) || len(rs) != 1 || rs[0].State != Failed {
		t.Fatal(rs, err)
	}
	if got := listed(t, dst); len(got) > 0 {
		t.Errorf("listed: %v", got)
	}
	if pins, perr := src.Pins(t.Context()); perr != nil || len(pins) > 0 {
		t.Error(pins, perr)
	}
	for _, m := range b.mem {
		for _, name := range m.Names() {
			if strings.HasSuffix(name, "/open") {
				t.Errorf("%s is left", name)
			}
		}
	}
	if rs, err = Run(t.Context(), src, dst, wanted, Options{}); err != nil || rs[1].State != Copied {
		t.Fatal(rs, err)
	}
	if err := errors.Join(holds(t.Context(), dst, "a", one), holds(t.Context(), dst, "b", two)); err != nil {
		t.Error(err)
	}
}

// TestPruneMeanwhile: somebody deletes the backup while it is read, and prunes
// until nothing is left. The pin holds it; where the source takes none, it is told
// to be gone and is not listed.
func TestPruneMeanwhile(t *testing.T) {
	for _, pinned := range []bool{true, false} {
		name := map[bool]string{true: "pinned", false: "read-only"}[pinned]
		t.Run(name, func(t *testing.T) {
			a, b, _, two := pair(t)
			other := a.opened(t)
			// The copier's own way to the same stores.
			mine := a.process()
			src, dst := mine.opened(t), b.opened(t)
			var once atomic.Bool
			mine.faults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
				if !pinned && (c.Op == "put" || c.Op == "delete") {
					return errors.New("read-only")
				}
				if c.Op == "get" && strings.HasPrefix(c.Name, "packs/") && once.CompareAndSwap(false, true) {
					for _, id := range []string{"a", "b"} {
						if err := other.Delete(context.Background(), id); err != nil {
							return err
						}
					}
					for range 3 {
						if _, err := other.Prune(context.Background(), repository.PruneOptions{MaxShare: 1, Silence: 1}); err != nil {
							return err
						}
					}
				}
				return nil
			}})
			rs, err := Run(t.Context(), src, dst, []repository.Backup{listed(t, src)["b"]}, Options{})
			if err != nil || !once.Load() {
				t.Fatal(rs, err)
			}
			if !pinned {
				if rs[0].State != Gone || rs[0].Err != nil || len(listed(t, dst)) > 0 {
					t.Fatal(rs)
				}
				return
			}
			if rs[0].State != Copied {
				t.Fatal(rs)
			}
			if err := holds(t.Context(), dst, "b", two); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDestinationDown: a destination that takes no session ends the run with one
// sentence, not with one for each backup.
func TestDestinationDown(t *testing.T) {
	a, b, _, _ := pair(t)
	src, dst := a.opened(t), b.opened(t)
	b.faults(memstore.Faults{Before: func(_ context.Context, c memstore.Call) error {
		if c.Op == "put" {
			return objstore.ErrDown
		}
		return nil
	}})
	rs, err := Run(t.Context(), src, dst, all(t, src), Options{})
	if len(rs) != 2 || rs[0].State != Failed || rs[1].State != NotTried || !errors.Is(err, repository.ErrTooFewStores) || !strings.Contains(err.Error(), "destination cannot be written to") {
		t.Error(rs, err)
	}
	if pins, err := src.Pins(t.Context()); err != nil || len(pins) > 0 {
		t.Error(pins, err)
	}
}
