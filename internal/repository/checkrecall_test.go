package repository

import (
	"context"
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
	"github.com/cairnbackup/cairn/internal/objstore/memstore"
)

// memory is what whoever lets a check be gone on with remembers of it.
type memory struct{ packs, opened map[string]bool }

func (m *memory) options(o CheckOptions) CheckOptions {
	if m.packs == nil {
		m.packs = make(map[string]bool)
	}
	o.ReadData, o.Before, o.Opened = true, maps.Clone(m.packs), maps.Clone(m.opened)
	o.Read = recorder(m.packs)
	o.Opens = func(sessions []string) error {
		m.opened = make(map[string]bool)
		for _, s := range sessions {
			m.opened[s] = true
		}
		return nil
	}
	return o
}

// rename commits a backup that names the first chunk of its parent otherwise, as from
// an index that was wrong.
func (c *content) rename(t *testing.T, r *Repository, id, parent string, change func(*chunk.Ref)) {
	t.Helper()
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", Volume: "v", ParentBackup: parent})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Worker()
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.Parent().Leaf(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range manifest.LeafBlocks {
		if ref, ok := l.At(i); ok {
			change(&ref)
			l.Set(i, ref)
			break
		}
	}
	b := manifest.NewBuilder(s.Parent(), c.geometry())
	if err = b.SetLeaf(t.Context(), w, 0, l); err != nil {
		t.Fatal(err)
	}
	top, err := b.Finish(t.Context(), w)
	if err = errors.Join(err, w.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	if o, err := s.Commit(t.Context(), Root{BackupID: id, Name: id, Created: time.Unix(1_760_000_000, 0), Geometry: c.geometry(), Top: top}); err != nil || o != OutcomeCommitted {
		t.Fatal(o, err)
	}
}

// A check that goes on opens what backups that were made since have in packs that were
// read before, and says what cannot be opened of it; of the others nothing is blamed.
func TestRecalledPacksAreOpenedForNewBackups(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*chunk.Ref)
		forgets bool // of which backups the packs were opened
	}{
		{"another offset", func(r *chunk.Ref) { r.Offset++ }, false},
		{"another chunk", func(r *chunk.Ref) { r.ID[3] ^= 1 }, false},
		{"another chunk, and nothing is known of backups", func(r *chunk.Ref) { r.ID[3] ^= 1 }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, r := fresh(t)
			v := randomContent(seeded(9), 200, 80)
			v.mustRun(t, r, "v", "one", "")
			var m memory
			if _, err := r.Check(t.Context(), m.options(CheckOptions{})); err != nil {
				t.Fatal(err)
			}
			v.rename(t, r, "two", "one", tt.change)
			if tt.forgets {
				m.opened = nil
			}
			before := maps.Clone(m.packs)
			rep := mustCheckData(t, c, m.options(CheckOptions{}))
			if !maps.Equal(whole(rep), map[string]bool{"one": true, "two": false}) {
				t.Errorf("%d of %d packs recalled: %+v", rep.Recalled, rep.Packs, rep.Backups)
			}
			damaged := 0
			for pack, sound := range m.packs {
				if before[pack] && !sound {
					damaged++
				}
			}
			if damaged != 1 {
				t.Errorf("%d packs are read again the next time", damaged)
			}
		})
	}
}

// What is opened then is what is new: not what the volume's backup before has too.
func TestRecalledPacksCostWhatIsNew(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	var m memory
	all, some := int64(0), int64(0)
	pace := func(to *int64) func(context.Context, int64) error {
		return func(_ context.Context, n int64) error { *to += n; return nil }
	}
	if _, err := r.Check(t.Context(), m.options(CheckOptions{Pace: pace(&all)})); err != nil {
		t.Fatal(err)
	}
	v.mustRun(t, r, "v", "two", "one", v.change(seeded(3), 4)...)
	was := maps.Clone(m.packs)
	rep := mustCheckData(t, c, m.options(CheckOptions{Pace: pace(&some)}))
	if !rep.OK() || rep.Recalled != len(was) || some > all/4 {
		t.Errorf("%d bytes read, %d from the start; %d of %d packs recalled: %+v", some, all, rep.Recalled, rep.Packs, rep.Backups)
	}
}

// A backup whose manifest could not be read when its chunks were to be opened is not
// among those whose chunks were.
func TestBackupsThatWereNotOpened(t *testing.T) {
	c := manyPacks(t)
	blind := false
	var m memory
	o := m.options(CheckOptions{Progress: func(p CheckProgress) { blind = p.Phase == "data" }})
	for _, f := range c.faulty {
		f.SetFaults(memstore.Faults{Decide: func(call memstore.Call) memstore.Fault {
			if _, ok := parsePackName(call.Name); ok && blind && call.Op == "get" {
				return memstore.Down
			}
			return memstore.None
		}})
	}
	r := c.open(t, func(o *Options) { o.Cache.Nodes = 1 })
	if _, err := r.Check(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if len(m.opened) != 0 {
		t.Errorf("%d backups count as opened", len(m.opened))
	}
	c.heal()
	rep := mustCheckData(t, c, m.options(CheckOptions{}))
	if !rep.OK() || rep.Read != rep.Packs {
		t.Errorf("%+v", rep)
	}
}

// What another check found since outranks what an interrupted one remembers.
func TestRecalledPacksThatAreDamagedSince(t *testing.T) {
	c, r := fresh(t)
	v := randomContent(seeded(9), 200, 80)
	v.mustRun(t, r, "v", "one", "")
	read := make(map[string]bool)
	if _, err := r.Check(t.Context(), CheckOptions{ReadData: true, Read: recorder(read)}); err != nil {
		t.Fatal(err)
	}
	for _, name := range c.packNames() {
		body, err := c.mem[0].Get(t.Context(), name, 0, -1, nil)
		if err != nil || len(body) < 1<<16 {
			continue
		}
		c.lose(t, name, []int{0, 1, 2}, true)
	}
	other := mustCheck(t, c.open(t))
	on, err := c.open(t).Check(t.Context(), CheckOptions{ReadData: true, Before: read, Read: recorder(map[string]bool{}), Publish: true})
	if err != nil {
		t.Fatal(err)
	}
	d, err := c.open(t).readDamage(t.Context())
	if err != nil || on.OK() || d.size() != other.Beyond {
		t.Errorf("the other check found %d packs; the resumed one: clean %v, %d known now", other.Beyond, on.OK(), d.size())
	}
}
