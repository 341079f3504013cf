package blockmap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// machine drives a tracker and its model with the same random operations.
type machine struct {
	fsys    *vfs.Mem
	tracker *Tracker
	model   *model
	options TrackerOptions
	named   int
}

func (m *machine) name() string {
	m.named++
	return fmt.Sprintf("c%d", m.named)
}

func (m *machine) open(size int64) error {
	o := m.options
	o.Size = size
	t, err := OpenTracker(m.fsys, "/t", o)
	m.tracker = t
	return err
}

// reconcile lets the model take over what the tracker adds to the newest
// segment after an unclean stop. In the tracker that includes the segments
// before it whose positions have lost their names.
func (m *machine) reconcile() error {
	names := m.model.names()
	if len(names) == 0 {
		return nil
	}
	newest := names[len(names)-1]
	b, doubt, err := m.tracker.Dirty(newest, "")
	if err != nil || doubt != "" {
		return errors.Join(err, fmt.Errorf("after an unclean stop: doubt %q", doubt))
	}
	if err := covers(b, m.model.dirty(newest, "")); err != nil {
		return err
	}
	m.model.newest().dirty.Or(b)
	return nil
}

func TestTrackerModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		const most = 20 << 20 // More than one page of bits.
		size := rapid.Int64Range(0, most).Draw(r, "size")
		m := &machine{options: testOptions(size), model: newModel(size, testBlock)}
		m.options.HotRegions = rapid.SampledFrom([]int{1, 6, 100}).Draw(r, "hot")
		m.fsys, m.tracker = newMemTracker(t, m.options)
		fail := func(err error) {
			if err != nil {
				r.Fatal(err)
			}
		}
		pick := func() (string, bool) {
			names := m.model.names()
			if len(names) == 0 {
				return "", false
			}
			return rapid.SampledFrom(names).Draw(r, "name"), true
		}
		r.Repeat(map[string]func(*rapid.T){
			"mark": func(r *rapid.T) {
				if m.model.size == 0 {
					r.Skip()
				}
				off := rapid.Int64Range(0, m.model.size-1).Draw(r, "off")
				n := rapid.OneOf(rapid.Int64Range(0, 5000), rapid.Int64Range(0, most)).Draw(r, "n")
				n = min(n, m.model.size-off)
				fail(m.tracker.Mark(off, n))
				m.model.mark(off, n)
			},
			"add": func(*rapid.T) {
				names := []string{m.name()}
				if m.named%3 == 0 {
					names = append(names, m.name())
				}
				fail(m.tracker.AddCheckpoint(names...))
				m.model.add(names...)
			},
			"alias": func(r *rapid.T) {
				at, ok := pick()
				if !ok {
					r.Skip()
				}
				name := m.name()
				fail(m.tracker.AliasCheckpoint(at, name))
				m.model.alias(at, name)
			},
			"drop": func(r *rapid.T) {
				name, ok := pick()
				if !ok {
					r.Skip()
				}
				fail(m.tracker.DropCheckpoint(name))
				m.model.drop(name)
			},
			"resize": func(r *rapid.T) {
				to := rapid.Int64Range(0, most).Draw(r, "to")
				fail(m.tracker.Resize(to))
				m.model.resize(to)
			},
			"prepare": func(*rapid.T) { fail(m.tracker.PrepareCheckpoint()) },
			"flush":   func(*rapid.T) { fail(m.tracker.Flush()) },
			"close": func(*rapid.T) {
				fail(m.tracker.Close())
				fail(m.open(m.model.size))
				if m.tracker.Stats().Unclean {
					r.Fatal("a clean stop was taken for an unclean one")
				}
			},
			"crash": func(r *rapid.T) {
				m.fsys = m.fsys.Crash(source(rapid.Uint64().Draw(r, "seed")))
				fail(m.open(m.model.size))
				fail(m.reconcile())
			},
			"": func(*rapid.T) { fail(m.model.verify(m.tracker, equal)) },
		})
	})
}

func TestCheckpoints(t *testing.T) {
	_, tr := newMemTracker(t, testOptions(1<<20))
	if got := tr.Checkpoints(); len(got) != 0 {
		t.Fatalf("new tracker has %v", got)
	}
	check(t, tr.Mark(0, 1<<20)) // Before the first checkpoint nobody asks.
	check(t, tr.AddCheckpoint("a", "a2"))
	check(t, tr.Mark(0, 513))
	check(t, tr.AddCheckpoint("b"))
	check(t, tr.AddCheckpoint("b2")) // Nothing was written between.
	check(t, tr.Mark(1024, 1))
	want := []struct {
		name  string
		dirty int64
	}{{"a", 3}, {"a2", 3}, {"b", 1}, {"b2", 1}}
	got := tr.Changes()
	if len(got) != len(want) || tr.Stats().Segments != 2 {
		t.Fatalf("checkpoints %v in %d segments", got, tr.Stats().Segments)
	}
	for i, w := range want {
		if got[i].Name != w.name || got[i].DirtyBlocks != w.dirty || got[i].Doubt != "" || got[i].Created.IsZero() || tr.Checkpoints()[i] != got[i].Checkpoint {
			t.Errorf("checkpoint %d: %+v, want %+v", i, got[i], w)
		}
	}
	b, _, err := tr.Dirty("b", "a")
	if err != nil || b.Count() != 2 || !b.Test(0) || !b.Test(1) {
		t.Fatalf("between a and b: %d blocks, %v", b.Count(), err)
	}
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"add a known name", tr.AddCheckpoint("x", "a"), ErrCheckpointExists},
		{"add a name twice", tr.AddCheckpoint("x", "x"), ErrCheckpointExists},
		{"alias to a known name", tr.AliasCheckpoint("a", "b"), ErrCheckpointExists},
		{"alias of an unknown name", tr.AliasCheckpoint("x", "y"), ErrCheckpoint},
		{"drop an unknown name", tr.DropCheckpoint("x"), ErrCheckpoint},
		{"dirty since an unknown name", func() error { _, _, err := tr.Dirty("x", ""); return err }(), ErrCheckpoint},
		{"dirty until an unknown name", func() error { _, _, err := tr.Dirty("a", "x"); return err }(), ErrCheckpoint},
		{"mark outside", tr.Mark(1<<20, 1), errRange},
		{"mark across the end", tr.Mark(1<<20-1, 2), errRange},
		{"mark before the start", tr.Mark(-1, 2), errRange},
		{"mark too much", tr.Mark(1, 1<<63-1), errRange},
		{"resize to nonsense", tr.Resize(-1), ErrGeometry},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	if err := tr.AddCheckpoint(); err == nil {
		t.Error("a checkpoint without a name")
	}
	if err := tr.AddCheckpoint(""); err == nil {
		t.Error("a checkpoint with an empty name")
	}
	check(t, tr.Close())
	check(t, tr.Close())
	if err := tr.Mark(0, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("mark after close: %v", err)
	}
	if err := tr.AddCheckpoint("z"); !errors.Is(err, ErrClosed) {
		t.Errorf("checkpoint after close: %v", err)
	}
}

func TestDistrust(t *testing.T) {
	m, tr := newMemTracker(t, testOptions(1<<20))
	check(t, tr.AddCheckpoint("a"))
	check(t, tr.Mark(0, 1))
	check(t, tr.AddCheckpoint("b"))
	check(t, tr.Distrust("a reason"))
	look := func(when string, tos ...string) {
		t.Helper()
		for _, to := range append(tos, "") {
			b, doubt, err := tr.Dirty("a", to)
			if err != nil || doubt != "a reason" || b.Count() != b.Len() || b.Len() != 2048 {
				t.Fatalf("%s, to %q: doubt %q, %d blocks of %d, %v", when, to, doubt, b.Count(), b.Len(), err)
			}
		}
		for _, c := range tr.Checkpoints() {
			if c.Doubt != "a reason" && c.Name != "c" || c.Name == "c" && c.Doubt != "" {
				t.Fatalf("%s: %+v", when, c)
			}
		}
	}
	look("at once", "b")
	m = m.Crash(source(1))
	var err error
	tr, err = OpenTracker(m, "/t", testOptions(1<<20))
	check(t, err)
	look("after a crash", "b")
	check(t, tr.Mark(5000, 1))
	check(t, tr.AddCheckpoint("c"))
	check(t, tr.Mark(6000, 1))
	look("after the next checkpoint", "b")
	if b, doubt, err := tr.Dirty("c", ""); err != nil || doubt != "" || b.Count() != 1 {
		t.Fatalf("since the next checkpoint: %d blocks, doubt %q, %v", b.Count(), doubt, err)
	}
	check(t, tr.DropCheckpoint("b"))
	check(t, tr.DropCheckpoint("c")) // Its neighbor in doubt puts all in doubt.
	look("after dropping the checkpoints behind")
	check(t, tr.DropCheckpoint("a"))
	check(t, tr.Distrust("nobody asks"))
	check(t, tr.AddCheckpoint("d"))
	if b, doubt, err := tr.Dirty("d", ""); err != nil || doubt != "" || b.Count() != 0 {
		t.Fatalf("new history: %d blocks, doubt %q, %v", b.Count(), doubt, err)
	}
}

func TestOpenInDoubt(t *testing.T) {
	other := func(change func(*TrackerOptions)) TrackerOptions {
		o := testOptions(1 << 20)
		change(&o)
		return o
	}
	for _, c := range []struct {
		name string
		o    TrackerOptions
	}{
		{"another volume", other(func(o *TrackerOptions) { o.VolumeID[0]++ })},
		{"another size", other(func(o *TrackerOptions) { o.Size += 5 })},
		{"another block size", other(func(o *TrackerOptions) { o.BlockSize *= 2 })},
		{"the caller's reason", other(func(o *TrackerOptions) { o.Doubt = "because" })},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, tr := newMemTracker(t, testOptions(1<<20))
			check(t, tr.AddCheckpoint("a"))
			check(t, tr.AddCheckpoint("b"))
			check(t, tr.Close())
			for range 2 { // The doubt is durable.
				var err error
				tr, err = OpenTracker(m, "/t", c.o)
				check(t, err)
				b, doubt, err := tr.Dirty("a", "")
				if g := (Geometry{Size: c.o.Size, BlockSize: c.o.BlockSize}); err != nil || doubt == "" || b.Count() != g.Blocks() {
					t.Fatalf("doubt %q, %d blocks, %v", doubt, b.Count(), err)
				}
				check(t, tr.Mark(0, 1))
				m = m.Crash(source(3))
				c.o.Doubt = ""
			}
		})
	}
	if _, err := OpenTracker(vfs.NewMem(), "/nothing", testOptions(1)); err == nil {
		t.Error("a missing directory was opened")
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, change := range []func(*TrackerOptions){
		func(o *TrackerOptions) { o.Size = -1 },
		func(o *TrackerOptions) { o.Size = MaxSize + 1 },
		func(o *TrackerOptions) { o.Size = MaxSize },
		func(o *TrackerOptions) { o.BlockSize = 5000 },
		func(o *TrackerOptions) { o.RegionSize = 5000 },
		func(o *TrackerOptions) { o.RegionSize, o.BlockSize = 4096, 8192 },
		func(o *TrackerOptions) { o.HotRegions = maxHotRegions + 1 },
		func(o *TrackerOptions) { o.HotRegions = -1 },
	} {
		o := testOptions(1 << 20)
		change(&o)
		if _, err := CreateTracker(vfs.NewMem(), "/", o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// Sequential writes into cold regions share records, and hot ones need none.
func TestRecordsAreFew(t *testing.T) {
	const size = 64 << 30
	_, tr := newMemTracker(t, TrackerOptions{Size: size})
	check(t, tr.AddCheckpoint("a"))
	for off := int64(0); off < size; off += 1 << 20 {
		check(t, tr.Mark(off, 1<<20))
	}
	s := tr.Stats()
	if regions := int64(size / defaultRegionSize); s.LogWrites > regions/10 || s.DirtyBlocks != size/DefaultBlockSize {
		t.Errorf("%d records for %d regions in sequence, %d dirty blocks", s.LogWrites, regions, s.DirtyBlocks)
	}
	if s.HotRegions > defaultHotRegions {
		t.Errorf("%d regions are hot", s.HotRegions)
	}
	// All bits of these are durable: nothing needs a record any more.
	check(t, tr.Flush())
	before := tr.Stats().LogWrites
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		check(t, tr.Mark(rng.Int64N(size-4096), 4096))
	}
	if n := tr.Stats().LogWrites - before; n != 0 {
		t.Errorf("%d records in full regions", n)
	}
}

func TestLargeMark(t *testing.T) {
	const size = 1 << 40
	m, tr := newMemTracker(t, TrackerOptions{Size: size})
	check(t, tr.AddCheckpoint("a"))
	check(t, tr.Mark(5, size-10))
	if n := tr.Stats().LogWrites; n > 2 {
		t.Errorf("%d records for one mark", n)
	}
	tr, err := OpenTracker(m.Crash(source(2)), "/t", TrackerOptions{Size: size})
	check(t, err)
	if b, doubt, err := tr.Dirty("a", ""); err != nil || doubt != "" || b.Count() != size/DefaultBlockSize {
		t.Errorf("%d blocks, doubt %q, %v", b.Count(), doubt, err)
	}
}
