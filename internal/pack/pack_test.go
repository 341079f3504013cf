package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cairnbackup/cairn/internal/chunk"
)

var (
	testPack = chunk.NewPackID([16]byte{0xaa}, 7, [14]byte{0xbb})
	testRepo = [16]byte{4, 5, 6}
	testKey  = [32]byte{7, 8, 9}
)

func testDomain(tb testing.TB) *chunk.Domain {
	tb.Helper()
	d, err := chunk.NewDomain([32]byte{1, 2, 3}, testRepo, "p")
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

func testCoder(tb testing.TB, g Geometry) *Coder {
	tb.Helper()
	c, err := NewCoder(g, testRepo, testKey)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// bytesOf returns n bytes that a seed fixes.
func bytesOf(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// shards is a Fetcher over objects; nil ones are missing. It counts.
type shards struct {
	objects [][]byte

	mu     sync.Mutex
	ranges int
	bytes  int64
}

func (s *shards) Patience(int64) time.Duration { return 0 }

var errGone = errors.New("store is gone")

func (s *shards) Fetch(ctx context.Context, shard int, off, n int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := s.objects[shard]
	if b == nil {
		return nil, errGone
	}
	if n < 0 {
		n = max(int64(len(b))-off, 0)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ranges++
	if off+n > int64(len(b)) {
		return nil, errors.New("range past the end")
	}
	s.bytes += n
	return b[off : off+n], nil
}

func encode(tb testing.TB, c *Coder, container []byte) *shards {
	tb.Helper()
	objects, err := c.Encode(testPack, container, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return &shards{objects: objects}
}

var geometries = []Geometry{{1, 0}, {1, 1}, {1, 2}, {2, 0}, {2, 1}, {3, 2}, {4, 2}, {5, 3}}

// lengths of containers around every edge of the layout.
func lengths(g Geometry) []int {
	row := g.Data * unit
	return []int{
		1, cellSize - 1, cellSize, cellSize + 1, unit - 1, unit, unit + 1, row - 1, row, row + 1,
		row + unit + cellSize + 5, 3*row + row/2,
	}
}

func TestEncodeSizes(t *testing.T) {
	for _, g := range geometries {
		c := testCoder(t, g)
		var old [][]byte
		for _, n := range lengths(g) {
			container := bytesOf(1, n)
			got, err := c.Encode(testPack, container, old)
			if err != nil {
				t.Fatal(err)
			}
			old = got
			total := int64(0)
			for i, b := range got {
				if int64(len(b)) != g.ShardSize(int64(n), i) || misaligned(b) != 0 || cap(b)%alignment != 0 || cap(b) < len(b) {
					t.Errorf("%s, %d bytes, shard %d: length %d, capacity %d, misaligned by %d", g, n, i, len(b), cap(b), misaligned(b))
				}
				if i < g.Data {
					total += g.cells(int64(n), i)
				}
			}
			if want := (int64(n) + cellSize - 1) / cellSize; total != want {
				t.Errorf("%s, %d bytes: %d cells of data where %d are due", g, n, total, want)
			}
			fresh := encode(t, c, container)
			for i := range got {
				if !bytes.Equal(got[i], fresh.objects[i]) {
					t.Errorf("%s, %d bytes, shard %d: a used buffer shows", g, n, i)
				}
			}
		}
	}
}

// TestEveryLoss loses, and corrupts, every subset of shards: up to m read
// back, m+1 fail and are named.
func TestEveryLoss(t *testing.T) {
	for _, g := range geometries {
		for _, n := range []int{1, unit + 1, g.Data*unit + unit/2 + 77} {
			container := bytesOf(2, n)
			whole := encode(t, testCoder(t, g), container).objects
			for lost := range 1 << g.Total() {
				for _, how := range []string{"missing", "corrupt", "short"} {
					c := testCoder(t, g) // fresh: it remembers no lengths
					f := &shards{objects: slices.Clone(whole)}
					count := 0
					for i := range f.objects {
						if lost&(1<<i) != 0 {
							f.objects[i] = damage(f.objects[i], how)
							count++
						}
					}
					name := fmt.Sprintf("%s, %d bytes, %s %b", g, n, how, lost)
					checkLoss(t, name, c, f, container, lost, count)
				}
			}
		}
	}
}

func damage(b []byte, how string) []byte {
	switch how {
	case "missing":
		return nil
	case "corrupt":
		b = bytes.Clone(b)
		for i := 50; i < len(b); i += 1000 {
			b[i] ^= 0x10
		}
		return b
	default:
		return b[:50]
	}
}

func checkLoss(t *testing.T, name string, c *Coder, f *shards, container []byte, lost, count int) {
	t.Helper()
	p := make([]byte, len(container))
	report, err := c.ReadAt(t.Context(), f, testPack, p, 0)
	if count > c.g.Parity {
		// Shards past the container's end hold nothing: losing them is no loss.
		needed := 0
		for i := range c.g.Total() {
			if lost&(1<<i) != 0 && c.g.cells(int64(len(container)), i) > 0 {
				needed++
			}
		}
		var le *LostError
		if !errors.As(err, &le) || !errors.Is(err, ErrLost) {
			if needed > c.g.Parity || err != nil || !bytes.Equal(p, container) {
				t.Fatalf("%s: %v", name, err)
			}
			return
		}
		for _, b := range le.Bad {
			if lost&(1<<b.Shard) == 0 || !strings.Contains(err.Error(), fmt.Sprintf("shard %d", b.Shard)) {
				t.Fatalf("%s: blames shard %d: %v", name, b.Shard, err)
			}
		}
		if len(le.Bad) == 0 {
			t.Fatalf("%s: names no shard: %v", name, err)
		}
		return
	}
	if err != nil || !bytes.Equal(p, container) {
		t.Fatalf("%s: %v, equal: %v", name, err, bytes.Equal(p, container))
	}
	for _, b := range report.Bad {
		if lost&(1<<b.Shard) == 0 {
			t.Fatalf("%s: blames shard %d: %v", name, b.Shard, b.Err)
		}
	}
}

// TestReadAt reads random ranges with random cells of random shards wrong, at
// most m of a stripe.
func TestReadAt(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := rapid.SampledFrom(geometries).Draw(rt, "geometry")
		n := rapid.SampledFrom(lengths(g)).Draw(rt, "length")
		container := bytesOf(3, n)
		c := testCoder(t, g)
		f := encode(t, c, container)
		rows := g.cells(int64(n), 0)
		wrong := map[int]bool{}
		for range rapid.IntRange(0, 8).Draw(rt, "wrong cells") {
			cell := rapid.Int64Range(0, rows-1).Draw(rt, "cell")
			hurt := rapid.Permutation(seq(g.Total())).Draw(rt, "shards")[:g.Parity]
			for _, shard := range hurt {
				if at := cellOffset(cell); at < int64(len(f.objects[shard])) && !taken(f, g, cell, shard) {
					f.objects[shard][at+rapid.Int64Range(0, storedCell-1).Draw(rt, "byte")] ^= 1
					wrong[shard] = true
				}
			}
		}
		for range 5 {
			off := rapid.IntRange(0, n-1).Draw(rt, "offset")
			p := make([]byte, rapid.IntRange(0, n-off).Draw(rt, "bytes"))
			report, err := c.ReadAt(t.Context(), f, testPack, p, int64(off))
			if err != nil || !bytes.Equal(p, container[off:off+len(p)]) {
				rt.Fatalf("%s, %d at %d of %d: %v", g, len(p), off, n, err)
			}
			for _, b := range report.Bad {
				if !wrong[b.Shard] {
					rt.Fatalf("blames shard %d: %v", b.Shard, b.Err)
				}
			}
		}
	})
}

func seq(n int) []int {
	s := make([]int, n)
	for i := range s {
		s[i] = i
	}
	return s
}

// taken reports whether a stripe has as many wrong cells as it bears, this
// shard's not counted.
func taken(f *shards, g Geometry, cell int64, shard int) bool {
	c, err := NewCoder(g, testRepo, testKey)
	if err != nil {
		return true
	}
	bad := 0
	for i, b := range f.objects {
		at := cellOffset(cell)
		if i == shard || at >= int64(len(b)) {
			continue
		}
		t := borrow(&c.cellTags)
		if !bytes.Equal(t.tag(b[at:at+cellSize], testPack, i, cell), b[at+cellSize:at+storedCell]) {
			bad++
		}
		c.cellTags.Put(t)
	}
	return bad >= g.Parity
}

// TestHealthyRanges: a chunk in one unit is one range, one over an edge two,
// and nothing but the cells around it is read.
func TestHealthyRanges(t *testing.T) {
	c := testCoder(t, Geometry{4, 2})
	f := encode(t, c, bytesOf(4, 3<<20))
	for _, x := range []struct {
		name       string
		off, n     int64
		ranges     int
		cells      int64
		withLosses bool
	}{
		{"in a unit", 3*unit + 100, 20000, 1, 3, false},
		{"over an edge", 4*unit - 100, 20000, 2, 4, false},
		{"a row", 4 * unit, 4 * unit, 4, 4 * unitCells, false},
		{"three rows", 0, 12 * unit, 4, 12 * unitCells, false},
	} {
		f.ranges, f.bytes = 0, 0
		if _, err := c.ReadAt(t.Context(), f, testPack, make([]byte, x.n), x.off); err != nil {
			t.Fatal(err)
		}
		if f.ranges != x.ranges || f.bytes != x.cells*storedCell {
			t.Errorf("%s: %d ranges, %d bytes; %d and %d are due", x.name, f.ranges, f.bytes, x.ranges, x.cells*storedCell)
		}
	}
	// One bad cell: only its stripe is read from others.
	f.objects[3][cellOffset(0)] ^= 1
	f.ranges, f.bytes = 0, 0
	report, err := c.ReadAt(t.Context(), f, testPack, make([]byte, 20000), 3*unit+100)
	if err != nil || report.Rebuilt != cellSize || len(report.Bad) != 1 || report.Bad[0].Shard != 3 {
		t.Errorf("%+v, %v", report, err)
	}
	if want := int64(3*storedCell + headerSize + 4*storedCell); f.bytes != want {
		t.Errorf("%d bytes read where %d are due", f.bytes, want)
	}
}

func TestRange(t *testing.T) {
	c := testCoder(t, Geometry{2, 1})
	f := encode(t, c, bytesOf(4, 100))
	for _, x := range []struct{ off, n int64 }{{-1, 1}, {cellSize, 1}, {1 << 20, 1}, {MaxContainer, 1}, {1 << 62, 1}, {0, 2 * cellSize}} {
		if _, err := c.ReadAt(t.Context(), f, testPack, make([]byte, x.n), x.off); !errors.Is(err, ErrRange) {
			t.Errorf("%d at %d: %v", x.n, x.off, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.ReadAt(ctx, f, testPack, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if _, err := c.Encode(testPack, nil, nil); err == nil {
		t.Error("an empty container is encoded")
	}
}

// TestSwapped: shards of another index, pack, repository or key are no shards.
func TestSwapped(t *testing.T) {
	g := Geometry{2, 1}
	container := bytesOf(5, 3*unit)
	c := testCoder(t, g)
	good := encode(t, c, container).objects
	other, err := c.Encode(chunk.NewPackID([16]byte{0xaa}, 7, [14]byte{0xbc}), container, nil)
	if err != nil {
		t.Fatal(err)
	}
	alien := func(repo [16]byte, key [32]byte) [][]byte {
		c, err := NewCoder(g, repo, key)
		if err != nil {
			t.Fatal(err)
		}
		return encode(t, c, container).objects
	}
	for name, b := range map[string][]byte{
		"index": good[1], "pack": other[0], "repository": alien([16]byte{1}, testKey)[0], "key": alien(testRepo, [32]byte{1})[0],
	} {
		f := &shards{objects: [][]byte{b, good[1], good[2]}}
		c := testCoder(t, g)
		if err := c.Verify(t.Context(), f, testPack, 0); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: verified: %v", name, err)
		}
		p := make([]byte, len(container))
		report, err := c.ReadAt(t.Context(), f, testPack, p, 0)
		if err != nil || !bytes.Equal(p, container) || len(report.Bad) != 1 || report.Bad[0].Shard != 0 {
			t.Errorf("%s: %+v, %v", name, report, err)
		}
		f.objects[1] = b
		if name == "index" {
			f.objects[1] = good[0]
		}
		if _, err := c.ReadAt(t.Context(), f, testPack, p, 0); !errors.Is(err, ErrLost) {
			t.Errorf("%s twice: %v", name, err)
		}
	}
}

// TestVerify flips every 13th byte, and every byte of header and tags, of a
// shard: none goes unnoticed.
func TestVerify(t *testing.T) {
	c := testCoder(t, Geometry{2, 1})
	f := encode(t, c, bytesOf(6, 20000))
	for shard := range f.objects {
		if err := c.Verify(t.Context(), f, testPack, shard); err != nil {
			t.Fatal(err)
		}
		b := f.objects[shard]
		for i := range b {
			in := (i - headerSize) % storedCell
			if i >= headerSize && in < cellSize && i%13 != 0 {
				continue
			}
			b[i] ^= 1
			if err := c.Verify(t.Context(), f, testPack, shard); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatalf("shard %d, byte %d: %v", shard, i, err)
			}
			b[i] ^= 1
		}
		for _, other := range [][]byte{b[:len(b)-1], append(slices.Clone(b), 0), b[:10], {}} {
			g := &shards{objects: make([][]byte, 3)}
			g.objects[shard] = other
			if err := c.Verify(t.Context(), g, testPack, shard); !errors.Is(err, ErrCorrupt) {
				t.Errorf("shard %d of %d bytes: %v", shard, len(other), err)
			}
		}
	}
	if err := c.Verify(t.Context(), f, testPack, 3); err == nil {
		t.Error("there is no shard 3")
	}
}

func TestRebuild(t *testing.T) {
	for _, g := range geometries {
		for _, n := range lengths(g) {
			whole := encode(t, testCoder(t, g), bytesOf(7, n)).objects
			for first := range g.Total() {
				var missing []int
				f := &shards{objects: slices.Clone(whole)}
				for i := range g.Parity {
					missing = append(missing, (first+i)%g.Total())
					f.objects[(first+i)%g.Total()] = nil
				}
				got, _, err := testCoder(t, g).Rebuild(t.Context(), f, testPack, missing)
				if err != nil {
					t.Fatalf("%s, %d bytes, without %v: %v", g, n, missing, err)
				}
				for i, shard := range missing {
					if !bytes.Equal(got[i], whole[shard]) || misaligned(got[i]) != 0 {
						t.Fatalf("%s, %d bytes, without %v: shard %d differs", g, n, missing, shard)
					}
				}
			}
		}
	}
	c := testCoder(t, Geometry{2, 1})
	f := encode(t, c, bytesOf(7, 3*unit))
	f.objects[0][5000] ^= 1
	if _, _, err := c.Rebuild(t.Context(), f, testPack, []int{1}); !errors.Is(err, ErrLost) {
		t.Errorf("rebuilt from a bad shard: %v", err)
	}
	if _, _, err := c.Rebuild(t.Context(), f, testPack, []int{3}); err == nil {
		t.Error("there is no shard 3")
	}
}

func TestStat(t *testing.T) {
	c := testCoder(t, Geometry{2, 1})
	f := encode(t, c, bytesOf(8, 12345))
	f.objects[1] = nil
	n, report, err := c.Stat(t.Context(), f, testPack)
	if err != nil || n != 12345 || len(report.Bad) != 1 || report.Bad[0].Shard != 1 || !errors.Is(report.Bad[0].Err, errGone) {
		t.Errorf("%d, %+v, %v", n, report, err)
	}
	if _, _, err := testCoder(t, Geometry{2, 2}).Stat(t.Context(), &shards{objects: make([][]byte, 4)}, testPack); !errors.Is(err, ErrLost) {
		t.Errorf("nothing there: %v", err)
	}
	if _, _, err := testCoder(t, Geometry{3, 0}).Stat(t.Context(), f, testPack); !errors.Is(err, ErrLost) {
		t.Errorf("other geometry: %v", err)
	}
}

func TestGeometry(t *testing.T) {
	for _, g := range []Geometry{{0, 0}, {0, 2}, {-1, 2}, {4, -1}, {31, 2}, {1 << 62, 1 << 62}} {
		if _, err := NewCoder(g, testRepo, testKey); err == nil {
			t.Errorf("%s is accepted", g)
		}
	}
}
