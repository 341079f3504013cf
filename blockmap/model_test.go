package blockmap

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// model is what a tracker must know, kept the simple way. It is wrong if a mark
// is missing from it, and what it has too much of the tracker may have, too.
type model struct {
	size  int64
	block int64
	segs  []modelSegment
}

type modelSegment struct {
	names []string
	dirty *Bitmap
}

const modelBlocks = 1 << 16 // more than any test volume has

func newModel(size, block int64) *model {
	return &model{size: size, block: block, segs: []modelSegment{{dirty: NewBitmap(modelBlocks)}}}
}

func (m *model) clone() *model {
	c := *m
	c.segs = nil
	for _, s := range m.segs {
		c.segs = append(c.segs, modelSegment{names: slices.Clone(s.names), dirty: s.dirty.Clone()})
	}
	return &c
}

func (m *model) newest() *modelSegment { return &m.segs[len(m.segs)-1] }

func (m *model) mark(off, n int64) {
	if n <= 0 {
		return
	}
	m.newest().dirty.Set(off/m.block, (off+n-1)/m.block-off/m.block+1)
}

func (m *model) add(names ...string) {
	m.segs = append(m.segs, modelSegment{names: names, dirty: NewBitmap(modelBlocks)})
}

func (m *model) find(name string) int {
	return slices.IndexFunc(m.segs, func(s modelSegment) bool { return slices.Contains(s.names, name) })
}

func (m *model) names() []string {
	var out []string
	for _, s := range m.segs {
		out = append(out, s.names...)
	}
	return out
}

func (m *model) alias(at, name string) {
	s := &m.segs[m.find(at)]
	s.names = append(s.names, name)
}

// drop removes a name; a position without names stays, and is never asked for.
func (m *model) drop(name string) {
	s := &m.segs[m.find(name)]
	s.names = slices.DeleteFunc(s.names, func(n string) bool { return n == name })
}

func (m *model) resize(size int64) {
	lo, hi := min(m.size, size), max(m.size, size)
	m.size = size
	if lo < hi {
		m.mark(lo/m.block*m.block, hi-lo/m.block*m.block)
	}
}

// dirty returns the blocks written between two positions.
func (m *model) dirty(from, to string) *Bitmap {
	i, j := m.find(from), len(m.segs)
	if to != "" {
		j = m.find(to)
	}
	out := NewBitmap(modelBlocks)
	for _, s := range m.segs[min(i, j):max(i, j)] {
		out.Or(s.dirty)
	}
	return out
}

// covers reports a block that the model has and the bitmap has not.
func covers(b, dirty *Bitmap) error {
	missing := dirty.Clone()
	for first, n := range b.Runs() {
		missing.Clear(first, n)
	}
	for first, n := range missing.Runs() {
		return fmt.Errorf("%d blocks from %d are missing", n, first)
	}
	return nil
}

// equal also reports a block that only the bitmap has.
func equal(b, dirty *Bitmap) error {
	if err := covers(b, dirty); err != nil {
		return err
	}
	if err := covers(dirty, b); err != nil {
		return fmt.Errorf("dirty for no reason: %w", err)
	}
	return nil
}

// verify compares all pairs of positions. A nil compare only looks for misses;
// names that are lost are an error.
func (m *model) verify(t *Tracker, compare func(b, dirty *Bitmap) error) error {
	names := m.names()
	if len(names) > 6 {
		names = append(names[:3:3], names[len(names)-3:]...)
	}
	for _, from := range names {
		for _, to := range append([]string{""}, names...) {
			b, doubt, err := t.Dirty(from, to)
			if err != nil {
				return err
			}
			if doubt != "" {
				return fmt.Errorf("doubt from %q to %q: %s", from, to, doubt)
			}
			if err := compare(b, m.dirty(from, to)); err != nil {
				return fmt.Errorf("from %q to %q: %w", from, to, err)
			}
		}
	}
	return nil
}

const (
	testBlock  = 512
	testRegion = 4096
)

func testOptions(size int64) TrackerOptions {
	return TrackerOptions{VolumeID: [16]byte{1, 2, 3}, Size: size, BlockSize: testBlock, RegionSize: testRegion, HotRegions: 6}
}

func newMemTracker(tb testing.TB, o TrackerOptions) (*vfs.Mem, *Tracker) {
	tb.Helper()
	m := vfs.NewMem()
	if err := errors.Join(m.Mkdir("/t", 0o700), m.SyncDir("/")); err != nil {
		tb.Fatal(err)
	}
	tr, err := CreateTracker(m, "/t", o)
	if err != nil {
		tb.Fatal(err)
	}
	return m, tr
}

func check(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }
