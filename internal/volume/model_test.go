package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// model is a volume beside a byte slice that does the same.
type model struct {
	opts  Options
	v     *Volume
	live  []byte
	maybe map[int64]bool // blocks whose trim may be pending: their content, or zeros
	snaps map[uuid.UUID][]byte
	temp  map[uuid.UUID]bool
	gone  map[uuid.UUID]int64 // blocks that temporary snapshots have released
	marks map[string][]byte   // content at checkpoints
	n     int
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{snaps: map[uuid.UUID][]byte{}, temp: map[uuid.UUID]bool{}, gone: map[uuid.UUID]int64{}, marks: map[string][]byte{}, maybe: map[int64]bool{}}
		m.opts = memOptions(vfs.NewMem(), newHost())
		size := int64(10*bs + 9*512)
		v, err := Create(m.opts, "/state/vol", Spec{Name: "vol", Size: size, Managed: true})
		m.ok(t, err)
		m.v, m.live = v, make([]byte, size)
		t.Repeat(map[string]func(*rapid.T){
			"write": m.write, "zero": m.zero, "zeroFast": m.zeroFast, "trim": m.trim, "snapshot": m.snapshot, "release": m.release, "delete": m.delete, "revert": m.revert,
			"extend": m.extend, "reopen": m.reopen, "dropCheckpoint": m.drop, "aliasCheckpoint": m.alias, "flush": func(t *rapid.T) { m.ok(t, m.v.Flush()) },
			"": m.check,
		})
		m.ok(t, m.v.Close())
	})
}

func (m *model) ok(t *rapid.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// span draws a range, not empty.
func (m *model) span(t *rapid.T) (off, n int64) {
	size := int64(len(m.live))
	off = rapid.Int64Range(0, size-1).Draw(t, "off")
	n = rapid.Int64Range(1, min(size-off, rapid.SampledFrom([]int64{2 * pageSize, 4 * bs}).Draw(t, "most"))).Draw(t, "n")
	if rapid.Bool().Draw(t, "aligned") {
		off -= off % bs
		n = min((n+bs-1)/bs*bs, size-off)
	}
	return off, n
}

func (m *model) settled(off, n int64) {
	for b := off / bs; b <= (off+n-1)/bs; b++ {
		delete(m.maybe, b)
	}
}

func (m *model) write(t *rapid.T) {
	off, n := m.span(t)
	m.n++
	p := bytes.Repeat([]byte(fmt.Sprintf("w%05d.", m.n)), int(n)/7+1)[:n]
	got, err := m.v.WriteAt(p, off)
	m.ok(t, err)
	if int64(got) != n {
		t.Fatalf("wrote %d of %d", got, n)
	}
	copy(m.live[off:], p)
	m.settled(off, n)
}

func (m *model) zero(t *rapid.T) {
	off, n := m.span(t)
	m.ok(t, m.v.Zero(off, n, rapid.Bool().Draw(t, "punch")))
	clear(m.live[off : off+n])
	m.settled(off, n)
}

func (m *model) zeroFast(t *rapid.T) {
	off, n := m.span(t)
	err := m.v.ZeroFast(off, n, rapid.Bool().Draw(t, "punch"))
	if len(m.v.Snapshots()) > 0 {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Fatalf("zeroed in haste while there is a snapshot: %v", err)
		}
		return
	}
	m.ok(t, err)
	clear(m.live[off : off+n])
	m.settled(off, n)
}

func (m *model) trim(t *rapid.T) {
	off, n := m.span(t)
	m.ok(t, m.v.Trim(off, n))
	got := content(t, m.v, int64(len(m.live)))
	for i := off; i < off+n; i++ {
		if got[i] != 0 && got[i] != m.live[i] {
			t.Fatalf("byte %d is %#x after a trim, was %#x", i, got[i], m.live[i])
		}
	}
	copy(m.live[off:off+n], got[off:])
	for b := (off + bs - 1) / bs; b*bs < off+n; b++ {
		if (b+1)*bs <= off+n || off+n == int64(len(m.live)) {
			m.maybe[b] = true
		}
	}
}

// sync takes over what pending trims did.
func (m *model) sync(t *rapid.T) {
	for b := range m.maybe {
		want := m.live[b*bs : min((b+1)*bs, int64(len(m.live)))]
		got := make([]byte, len(want))
		_, err := m.v.ReadAt(got, b*bs)
		m.ok(t, err)
		if allZeros(got) && !allZeros(want) {
			if len(m.snaps) > 0 {
				t.Fatalf("block %d was punched while there are snapshots", b)
			}
			clear(want)
		}
	}
}

func (m *model) snapshot(t *rapid.T) {
	if len(m.snaps) >= 5 {
		t.Skip("enough")
	}
	m.n++
	o := SnapshotOptions{ID: uuid.New(), Temporary: rapid.Bool().Draw(t, "temporary")}
	if rapid.Bool().Draw(t, "checkpoint") {
		o.Checkpoint = fmt.Sprintf("c%d", m.n)
	}
	ss, err := SnapshotGroup(t.Context(), []*Volume{m.v}, []SnapshotOptions{o})
	m.ok(t, err)
	m.snaps[o.ID], m.temp[o.ID] = slices.Clone(m.live), o.Temporary
	if o.Checkpoint != "" {
		m.marks[o.Checkpoint] = slices.Clone(m.live)
	}
	if i := ss[0].Info(); i.ID != o.ID || i.Size != int64(len(m.live)) || i.Broken != "" {
		t.Fatalf("info %+v", i)
	}
}

// pick draws one of the snapshots.
func (m *model) pick(t *rapid.T, ok func(uuid.UUID) bool) uuid.UUID {
	var ids []uuid.UUID
	for _, s := range m.v.Snapshots() {
		if ok(s.id) {
			ids = append(ids, s.id)
		}
	}
	if len(ids) == 0 {
		t.Skip("none")
	}
	return rapid.SampledFrom(ids).Draw(t, "snapshot")
}

func (m *model) delete(t *rapid.T) {
	id := m.pick(t, func(uuid.UUID) bool { return true })
	m.ok(t, m.v.DeleteSnapshot(id))
	delete(m.snaps, id)
	m.sync(t)
}

func (m *model) revert(t *rapid.T) {
	id := m.pick(t, func(id uuid.UUID) bool { return !m.temp[id] })
	m.ok(t, m.v.Revert(t.Context(), id))
	clear(m.live)
	copy(m.live, m.snaps[id])
	clear(m.maybe)
}

func (m *model) extend(t *rapid.T) {
	if len(m.live) > 20*bs {
		t.Skip("large enough")
	}
	size := int64(len(m.live)) + 512*rapid.Int64Range(0, 200).Draw(t, "sectors")
	m.ok(t, m.v.Extend(size))
	m.live = append(m.live, make([]byte, size-int64(len(m.live)))...)
}

func (m *model) reopen(t *rapid.T) {
	m.ok(t, m.v.Close())
	v, err := Open(m.opts, "/state/vol")
	m.ok(t, err)
	m.v = v
	for id, temp := range m.temp {
		if temp {
			delete(m.snaps, id)
		}
	}
	clear(m.maybe)
	for _, c := range v.Checkpoints() {
		if c.Doubt != "" {
			t.Fatalf("checkpoint %s is in doubt after a clean stop: %s", c.Name, c.Doubt)
		}
	}
}

func (m *model) alias(t *rapid.T) {
	id := m.pick(t, func(uuid.UUID) bool { return true })
	m.n++
	name := fmt.Sprintf("alias%d", m.n)
	m.ok(t, m.v.AliasCheckpoint(id, name))
	m.marks[name] = m.snaps[id]
	if err := m.v.AliasCheckpoint(id, name); !errors.Is(err, blockmap.ErrCheckpointExists) {
		t.Fatalf("the same name twice: %v", err)
	}
	if err := m.v.AliasCheckpoint(id, checkpointPrefix+"x"); !errors.Is(err, ErrInvalid) {
		t.Fatalf("a snapshot's name: %v", err)
	}
	if err := m.v.AliasCheckpoint(uuid.New(), name+"x"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("no such snapshot: %v", err)
	}
}

func (m *model) drop(t *rapid.T) {
	var names []string
	for n := range m.marks {
		names = append(names, n)
	}
	if len(names) == 0 {
		t.Skip("none")
	}
	slices.Sort(names)
	n := rapid.SampledFrom(names).Draw(t, "checkpoint")
	m.ok(t, m.v.DropCheckpoint(n))
	delete(m.marks, n)
}

func (m *model) check(t *rapid.T) {
	m.sync(t)
	same(t, "volume", content(t, m.v, int64(len(m.live))), m.live)
	if got := len(m.v.Snapshots()); got != len(m.snaps) {
		t.Fatalf("%d snapshots, want %d", got, len(m.snaps))
	}
	for _, s := range m.v.Snapshots() {
		from := min(m.gone[s.id]*bs, s.Size())
		if from < s.Size() {
			same(t, "snapshot", content(t, io.NewSectionReader(s, from, s.Size()-from), s.Size()-from), m.snaps[s.id][from:])
			m.checkHoles(t, s, from)
		}
		m.checkGone(t, s, from)
		for name, was := range m.marks {
			bits, doubt, err := s.Dirty(name)
			m.ok(t, err)
			if bits.Len() != s.blocks() {
				t.Fatalf("%d bits, want %d", bits.Len(), s.blocks())
			}
			m.covers(t, doubt, bits.Test, was, m.snaps[s.id])
		}
	}
	for name, was := range m.marks {
		bits, doubt, err := m.v.Dirty(name, "")
		m.ok(t, err)
		m.covers(t, doubt, bits.Test, was, m.live)
	}
	if len(m.snaps) == 0 && m.v.space.used.Load() != 0 {
		t.Fatalf("%d bytes of preimages without a snapshot", m.v.space.used.Load())
	}
}

// covers checks that every block that differs is called dirty.
func (m *model) covers(t *rapid.T, doubt string, dirty func(int64) bool, was, is []byte) {
	t.Helper()
	if dirty == nil {
		return
	}
	if doubt != "" {
		t.Fatalf("doubt: %s", doubt)
	}
	for b := int64(0); b*bs < int64(len(is)); b++ {
		end := min((b+1)*bs, int64(len(is)))
		if end <= int64(len(was)) && bytes.Equal(is[b*bs:end], was[b*bs:end]) {
			continue
		}
		if b*bs < int64(len(was)) && !dirty(b) {
			t.Fatalf("block %d changed and is not dirty", b)
		}
	}
}

// checkHoles checks that what a snapshot calls a hole from an offset on reads as zeros.
func (m *model) checkHoles(t *rapid.T, s *Snapshot, from int64) {
	exts, err := s.Extents(from, s.Size()-from)
	m.ok(t, err)
	at := from
	for _, e := range exts {
		if e.Offset != at || e.Length <= 0 {
			t.Fatalf("extents %v", exts)
		}
		at = e.End()
		if e.State != 0 && !allZeros(m.snaps[s.id][e.Offset:e.End()]) {
			t.Fatalf("extent %v is not zeros", e)
		}
	}
	if at != s.Size() {
		t.Fatalf("extents end at %d of %d", at, s.Size())
	}
}
