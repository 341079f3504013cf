package repocopy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/objstore/memstore"
	"github.com/cairnbackup/cairn/internal/repository"
)

// history is a volume in the source and its backups.
type history struct {
	src, dst *repository.Repository
	disk     *disk
	made     map[string]*disk // by backup ID, deleted ones too
	last     string
	n        int
	clock    time.Time
}

// TestHistories copies random histories: what the destination lists afterwards
// is what the source has, byte for byte, and no more is read than differs.
func TestHistories(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shapes := [][2]int{{1, 0}, {2, 1}, {1, 1}, {4, 2}}
		a, b := rapid.SampledFrom(shapes).Draw(t, "source"), rapid.SampledFrom(shapes).Draw(t, "destination")
		h := &history{
			src: newSite(t, "a", a[0], a[1]).open(t), dst: newSite(t, "b", b[0], b[1]).open(t),
			disk: &disk{size: 3*leaf + 777, blocks: map[int64][]byte{}}, made: map[string]*disk{},
			clock: time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC),
		}
		defer func() {
			if err := errors.Join(h.src.Close(), h.dst.Close()); err != nil {
				t.Fatal(err)
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"write":           h.write,
			"resize":          h.resize,
			"back up":         h.backUp,
			"delete":          func(t *rapid.T) { h.delete(t, h.src) },
			"delete the copy": func(t *rapid.T) { h.delete(t, h.dst) },
			"copy":            h.copy,
		})
		h.copy(t)
		if err := sound(t.Context(), h.dst); err != nil {
			t.Fatal(err)
		}
	})
}

func (h *history) write(t *rapid.T) {
	blocks := (h.disk.size + block - 1) / block
	first := rapid.Int64Range(0, blocks-1).Draw(t, "block")
	hole := rapid.Bool().Draw(t, "hole")
	for b := first; b < min(blocks, first+rapid.Int64Range(1, 5).Draw(t, "count")); b++ {
		if hole {
			delete(h.disk.blocks, b)
		} else {
			h.disk.write(b, rapid.Uint32Range(1, 40).Draw(t, "content"))
		}
	}
}

func (h *history) resize(t *rapid.T) {
	h.disk.resize(rapid.Int64Range(1, 5*leaf).Draw(t, "size"))
}

func (h *history) backUp(t *rapid.T) {
	if h.n == 12 {
		t.Skip("enough")
	}
	h.n++
	id := fmt.Sprintf("b%02d", h.n)
	h.clock = h.clock.Add(time.Duration(rapid.IntRange(-5, 30).Draw(t, "minutes")) * time.Minute)
	parent := ""
	if rapid.Bool().Draw(t, "incremental") {
		parent = h.last
	}
	if err := backUp(t.Context(), h.src, web, id, parent, h.clock, h.disk, 0); err != nil {
		t.Fatal(err)
	}
	h.made[id], h.last = h.disk.clone(), id
}

func (h *history) delete(t *rapid.T, r *repository.Repository) {
	l := slices.Sorted(maps.Keys(listed(t, r)))
	if len(l) == 0 {
		t.Skip("none")
	}
	if err := r.Delete(t.Context(), rapid.SampledFrom(l).Draw(t, "backup")); err != nil {
		t.Fatal(err)
	}
}

func (h *history) copy(t *rapid.T) {
	originals, before := listed(t, h.src), listed(t, h.dst)
	trash, err := h.dst.Trash(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var wanted []repository.Backup
	for _, id := range slices.Sorted(maps.Keys(originals)) {
		if rapid.Bool().Draw(t, "copy "+id) {
			wanted = append(wanted, originals[id])
		}
	}
	dry, err := Run(t.Context(), h.src, h.dst, wanted, Options{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := listed(t, h.dst); !reflect.DeepEqual(got, before) {
		t.Fatalf("a dry run left %v, there was %v", got, before)
	}
	results, err := Run(t.Context(), h.src, h.dst, wanted, Options{})
	if err != nil || len(results) != len(wanted) || len(dry) != len(wanted) {
		t.Fatal(len(results), len(dry), len(wanted), err)
	}
	for i, r := range results {
		id := r.Backup.ID
		_, was := before[id]
		inTrash := slices.ContainsFunc(trash, func(b repository.Backup) bool { return b.ID == id })
		want := Copied
		switch {
		case was:
			want = Present
		case inTrash:
			want = InTrash
		}
		if r.State != want || r.Err != nil || r.Warning != "" || dry[i].State != want || dry[i].Backup.ID != id {
			t.Fatalf("%s: %+v, dry: %+v, want %s", id, r, dry[i], want)
		}
		if want != Copied {
			continue
		}
		d := h.made[id]
		old := &disk{}
		if r.Base != "" {
			old = h.made[r.Base]
		}
		// A change of size touches one block more.
		if most := d.differ(old) + block; r.Read > most || dry[i].Read > most || r.Read+r.Skipped != d.size || dry[i].Base != r.Base {
			t.Fatalf("%s over %q read %d (dry %d) and skipped %d of %d bytes, %d differ", id, r.Base, r.Read, dry[i].Read, r.Skipped, d.size, most-block)
		}
	}
	h.verify(t, wanted)
}

// verify looks at everything that the destination lists.
func (h *history) verify(t *rapid.T, wanted []repository.Backup) {
	got := listed(t, h.dst)
	for _, o := range wanted {
		c, ok := got[o.ID]
		if !ok {
			continue // in the trash
		}
		if c.Session == o.Session {
			t.Fatalf("%s has the session of its original", o.ID)
		}
		c.Session, c.Stats = o.Session, o.Stats
		if !reflect.DeepEqual(c, o) {
			t.Fatalf("the copy is %+v, its original %+v", c, o)
		}
	}
	for id := range got {
		if err := holds(t.Context(), h.dst, id, h.made[id]); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []*repository.Repository{h.src, h.dst} {
		if pins, err := r.Pins(t.Context()); err != nil || len(pins) > 0 {
			t.Fatal(pins, err)
		}
	}
}

// pair is a source with a full backup "a" and an incremental "b", and an empty
// destination.
func pair(t *testing.T) (src, dst *site, one, two *disk) {
	t.Helper()
	src, dst = newSite(t, "a", 2, 1), newSite(t, "b", 1, 1)
	one = &disk{size: 4*leaf - 100, blocks: map[int64][]byte{}}
	for b := range int64(40) {
		one.write(b*7, uint32(b+1))
	}
	r := src.open(t)
	mustBackUp(t, r, "a", "", one)
	two = one.clone()
	for _, b := range []int64{3, 140, 511} {
		two.write(b, uint32(b+100))
	}
	delete(two.blocks, 7)
	mustBackUp(t, r, "b", "a", two)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return src, dst, one, two
}

func TestCopy(t *testing.T) {
	a, b, one, two := pair(t)
	src, dst := a.opened(t), b.opened(t)
	var order []string
	told := map[string]Progress{}
	o := Options{
		Done:     func(r Result) { order = append(order, r.Backup.ID) },
		Progress: func(p Progress) { told[p.Backup.ID] = p },
	}
	rs, err := Run(t.Context(), src, dst, all(t, src), o)
	if err != nil || !slices.Equal(order, []string{"a", "b"}) {
		t.Fatal(order, err)
	}
	if r := rs[1]; r.Base != "a" || r.Read != 3*block-100 || r.New != r.Read || r.Stored == 0 || r.Shards <= r.Stored || r.Skipped != two.size-r.Read {
		t.Errorf("incremental: %+v", r)
	}
	for id, p := range told {
		if p.Done != p.Total {
			t.Errorf("%s ended at %d of %d", id, p.Done, p.Total)
		}
	}
	if len(told) != 2 {
		t.Error(told)
	}
	if err = errors.Join(holds(t.Context(), dst, "a", one), holds(t.Context(), dst, "b", two), sound(t.Context(), dst)); err != nil {
		t.Error(err)
	}
	rs, err = Run(t.Context(), src, dst, all(t, src), Options{})
	if s := states(rs); err != nil || s["a"] != Present || s["b"] != Present {
		t.Error(s, err)
	}
	if err = dst.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	rs, err = Run(t.Context(), src, dst, all(t, src), Options{})
	if s := states(rs); err != nil || s["a"] != InTrash {
		t.Error(s, err)
	}
	// And back: the volume's other backup is the base, whichever is older.
	c := newSite(t, "c", 1, 0)
	third := c.opened(t)
	rs, err = Run(t.Context(), src, third, []repository.Backup{listed(t, src)["b"]}, Options{})
	if err != nil || rs[0].State != Copied || rs[0].Base != "" || rs[0].Read != two.differ(&disk{}) {
		t.Error(rs, err)
	}
	rs, err = Run(t.Context(), src, third, []repository.Backup{listed(t, src)["a"]}, Options{})
	if err != nil || rs[0].State != Copied || rs[0].Base != "b" || rs[0].Read != 2*block {
		t.Error(rs, err)
	}
	if err = errors.Join(holds(t.Context(), third, "a", one), holds(t.Context(), third, "b", two)); err != nil {
		t.Error(err)
	}
	got := listed(t, third)
	if got["a"].Incremental || got["b"].Parent != "a" {
		t.Error(got)
	}
	for id, b := range got {
		if string(b.Attributes) != `{"of":"`+id+`"}` {
			t.Errorf("copy of %s has the attributes %s", id, b.Attributes)
		}
	}
}

func TestSameRepository(t *testing.T) {
	a, _, _, _ := pair(t)
	src := a.opened(t)
	again := a.opened(t)
	if _, err := Run(t.Context(), src, again, all(t, src), Options{}); !errors.Is(err, repository.ErrInvalid) || !strings.Contains(err.Error(), "same repository") {
		t.Error(err)
	}
}

func TestOrder(t *testing.T) {
	at := func(id, parent string, minute int) repository.Backup {
		return repository.Backup{ID: id, Parent: parent, Created: time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)}
	}
	for _, c := range []struct {
		name string
		in   []repository.Backup
		want string
	}{
		{"by time", []repository.Backup{at("b", "", 2), at("a", "", 1)}, "a b"},
		{"equal times", []repository.Backup{at("b", "", 1), at("a", "", 1)}, "a b"},
		{"clock went back", []repository.Backup{at("child", "mother", 1), at("mother", "old", 5), at("old", "", 9)}, "old mother child"},
		{"clock went back, and another between", []repository.Backup{at("child", "mother", 3), at("other", "", 4), at("mother", "", 5)}, "other mother child"},
		{"parent not asked for", []repository.Backup{at("b", "gone", 2), at("a", "", 1)}, "a b"},
		{"twice", []repository.Backup{at("a", "", 1), at("a", "", 1)}, "a"},
		{"ring", []repository.Backup{at("a", "b", 1), at("b", "a", 2)}, "b a"},
		{"own parent", []repository.Backup{at("a", "a", 1)}, "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			asked := make(map[string]repository.Backup)
			for _, b := range c.in {
				asked[b.ID] = b
			}
			for _, b := range ordered(c.in, newAges(asked)) {
				got = append(got, b.ID)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("%s, want %s", s, c.want)
			}
		})
	}
}

// TestRetention: the copy is kept as long as the original, to the second.
func TestRetention(t *testing.T) {
	now := time.Now()
	clock := func(o *repository.Options) { o.Now = func() time.Time { return now } }
	a, b := newSite(t, "a", 1, 0), newSite(t, "b", 1, 1)
	b.mem[0].Retains(func() time.Time { return now })
	src, dst := a.opened(t, clock), b.opened(t, clock)
	d := &disk{size: 2 * leaf, blocks: map[int64][]byte{}}
	d.write(1, 1)
	for id, keep := range map[string]time.Duration{"long": 240 * time.Hour, "short": time.Hour, "none": 0} {
		v := web
		v.id = id
		if err := backUp(t.Context(), src, v, id, "", now, d, keep); err != nil {
			t.Fatal(err)
		}
	}
	originals := listed(t, src)
	now = now.Add(48 * time.Hour)
	if rs, err := Run(t.Context(), src, dst, all(t, src), Options{}); err != nil || len(rs) != 3 {
		t.Fatal(rs, err)
	}
	got := listed(t, dst)
	if !got["long"].RetainUntil.Equal(originals["long"].RetainUntil) {
		t.Errorf("retained until %s, want %s", got["long"].RetainUntil, originals["long"].RetainUntil)
	}
	if err := dst.Delete(t.Context(), "long"); !errors.Is(err, repository.ErrRetained) {
		t.Error(err)
	}
	locked := 0
	for _, name := range b.mem[0].Names() {
		until := b.mem[0].Until(name)
		if strings.HasPrefix(name, "packs/"+got["long"].Session) {
			locked++
			if until.Before(got["long"].RetainUntil) {
				t.Errorf("%s is locked until %s", name, until)
			}
		}
	}
	if locked == 0 {
		t.Error("no pack of the copy was found")
	}
	if err := errors.Join(dst.Delete(t.Context(), "short"), dst.Delete(t.Context(), "none")); err != nil {
		t.Error(err)
	}
}

// TestUnconfirmed: of a backup that may not exist nothing is copied.
func TestUnconfirmed(t *testing.T) {
	a, b, _, _ := pair(t)
	src, dst := a.opened(t), b.opened(t)
	x := listed(t, src)["a"]
	x.State = repository.Unconfirmed
	rs, err := Run(t.Context(), src, dst, []repository.Backup{x}, Options{})
	if err != nil || rs[0].State != Unconfirmed || len(listed(t, dst)) > 0 {
		t.Error(rs, err)
	}
}

// TestReadOnlySource: who may only read the source copies all the same, and hears
// once that nothing protects it.
func TestReadOnlySource(t *testing.T) {
	a, b, one, two := pair(t)
	readOnly := func(_ context.Context, c memstore.Call) error {
		if c.Op == "put" || c.Op == "delete" {
			return errors.New("read-only")
		}
		return nil
	}
	a.faults(memstore.Faults{Before: readOnly})
	src, dst := a.opened(t), b.opened(t)
	rs, err := Run(t.Context(), src, dst, all(t, src), Options{})
	if err != nil || rs[0].State != Copied || rs[1].State != Copied {
		t.Fatal(rs, err)
	}
	if !strings.Contains(rs[0].Warning, "not protected") || rs[1].Warning != "" {
		t.Errorf("%q, %q", rs[0].Warning, rs[1].Warning)
	}
	if err := errors.Join(holds(t.Context(), dst, "a", one), holds(t.Context(), dst, "b", two)); err != nil {
		t.Error(err)
	}
}
