package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// gated are shards of which some answer only when they are let, or canceled.
type gated struct {
	*shards

	patience time.Duration
	gates    []chan struct{} // by shard; nil = open
	running  atomic.Int32
}

func newGated(tb testing.TB, c *Coder, container []byte, patience time.Duration, hanging ...int) *gated {
	tb.Helper()
	g := &gated{shards: encode(tb, c, container), patience: patience}
	g.gates = make([]chan struct{}, len(g.objects))
	for _, shard := range hanging {
		g.gates[shard] = make(chan struct{})
	}
	return g
}

func (g *gated) Patience(int64) time.Duration { return g.patience }

func (g *gated) Fetch(ctx context.Context, shard int, off, n int64) ([]byte, error) {
	g.running.Add(1)
	defer g.running.Add(-1)
	if g.gates[shard] != nil {
		select {
		case <-g.gates[shard]:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return g.shards.Fetch(ctx, shard, off, n)
}

// TestHangingShards lets every subset of up to m shards hang: a read takes the
// others, names those that it did not wait for, and leaves nothing behind.
func TestHangingShards(t *testing.T) {
	for _, geometry := range geometries {
		for _, n := range []int{1, unit + 1, geometry.Data*unit + unit/2 + 77} {
			container := bytesOf(2, n)
			for subset := range 1 << geometry.Total() {
				var hanging []int
				for i := range geometry.Total() {
					if subset&(1<<i) != 0 {
						hanging = append(hanging, i)
					}
				}
				if len(hanging) > geometry.Parity {
					continue
				}
				name := fmt.Sprintf("%s, %d bytes, %v hang", geometry, n, hanging)
				c := testCoder(t, geometry) // fresh: it remembers no lengths
				f := newGated(t, c, container, time.Millisecond, hanging...)
				p := make([]byte, n)
				report, err := c.ReadAt(t.Context(), f, testPack, p, 0)
				if err != nil || !bytes.Equal(p, container) {
					t.Fatalf("%s: %v", name, err)
				}
				if f.running.Load() != 0 {
					t.Fatalf("%s: %d fetches are left behind", name, f.running.Load())
				}
				for _, shard := range hanging {
					asked := shard < geometry.Data && geometry.cells(int64(n), shard) > 0
					if asked && !slices.Contains(report.Late, shard) {
						t.Fatalf("%s: late are %v", name, report.Late)
					}
				}
				if len(report.Bad) > 0 {
					t.Fatalf("%s: blames %v", name, report.Bad)
				}
			}
		}
	}
}

// TestHealthyReadsAskForNothingMore: whatever the patience, as long as it is not
// over.
func TestHealthyReadsAskForNothingMore(t *testing.T) {
	g := Geometry{4, 2}
	c := testCoder(t, g)
	container := bytesOf(2, 4*unit)
	for _, patience := range []time.Duration{0, time.Hour} {
		f := newGated(t, c, container, patience)
		for _, r := range []struct{ off, n, ranges int }{{0, 100, 1}, {unit - 10, 20, 2}, {0, 4 * unit, 4}} {
			f.ranges = 0
			p := make([]byte, r.n)
			report, err := c.ReadAt(t.Context(), f, testPack, p, int64(r.off))
			if err != nil || !bytes.Equal(p, container[r.off:r.off+r.n]) || len(report.Late) > 0 || report.Rebuilt > 0 {
				t.Errorf("read %d at %d: %+v, %v", r.n, r.off, report, err)
			}
			if f.ranges != r.ranges {
				t.Errorf("read %d at %d: %d requests, %d are due", r.n, r.off, f.ranges, r.ranges)
			}
		}
	}
}

// TestMoreHangThanCanBeSpared: then it waits for whoever comes first.
func TestMoreHangThanCanBeSpared(t *testing.T) {
	c := testCoder(t, Geometry{2, 2})
	container := bytesOf(2, 2*unit)
	for first := range 4 {
		f := newGated(t, c, container, time.Millisecond, 0, 1, 2, 3)
		if _, err := c.fetchHeader(t.Context(), f.shards, testPack, 0); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(10*time.Millisecond, func() { close(f.gates[first]) })
		time.AfterFunc(20*time.Millisecond, func() { close(f.gates[(first+1)%4]) })
		p := make([]byte, len(container))
		report, err := c.ReadAt(t.Context(), f, testPack, p, 0)
		if err != nil || !bytes.Equal(p, container) {
			t.Errorf("%d first: %v", first, err)
		}
		if slices.Contains(report.Late, first) || f.running.Load() != 0 {
			t.Errorf("%d first: late are %v, %d are left behind", first, report.Late, f.running.Load())
		}
	}
}

// TestLostBesidesHanging: what hangs is no loss as long as it may still come.
func TestLostBesidesHanging(t *testing.T) {
	c := testCoder(t, Geometry{2, 1})
	container := bytesOf(2, 2*unit)
	f := newGated(t, c, container, time.Millisecond, 0)
	f.objects[1] = nil
	time.AfterFunc(30*time.Millisecond, func() { close(f.gates[0]) })
	p := make([]byte, len(container))
	if _, err := c.ReadAt(t.Context(), f, testPack, p, 0); err != nil || !bytes.Equal(p, container) {
		t.Errorf("one lost, one late: %v", err)
	}
	f.objects[2] = nil
	if _, err := c.ReadAt(t.Context(), f, testPack, p, 0); !errors.Is(err, ErrLost) {
		t.Errorf("two lost: %v", err)
	}
}

func TestHangingAndCanceled(t *testing.T) {
	c := testCoder(t, Geometry{2, 2})
	f := newGated(t, c, bytesOf(2, 2*unit), time.Millisecond, 0, 1, 2, 3)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.ReadAt(ctx, f, testPack, make([]byte, 100), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt = %v", err)
	}
	if f.running.Load() != 0 {
		t.Errorf("%d fetches are left behind", f.running.Load())
	}
}

// jittery answers each fetch after a time of its own, around the patience.
type jittery struct {
	*shards

	patience time.Duration
	delays   []time.Duration
	n        atomic.Int64
}

func (j *jittery) Patience(int64) time.Duration { return j.patience }

func (j *jittery) Fetch(ctx context.Context, shard int, off, n int64) ([]byte, error) {
	t := time.NewTimer(j.delays[j.n.Add(1)%int64(len(j.delays))])
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return j.shards.Fetch(ctx, shard, off, n)
}

// TestAnyOrder reads with answers in any order, some late, some wrong: only the
// bytes count.
func TestAnyOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		g := rapid.SampledFrom(geometries).Draw(rt, "geometry")
		n := rapid.SampledFrom(lengths(g)).Draw(rt, "length")
		container := bytesOf(3, n)
		c := testCoder(t, g)
		f := &jittery{shards: encode(t, c, container), patience: 200 * time.Microsecond}
		for range 7 {
			f.delays = append(f.delays, time.Duration(rapid.IntRange(0, 400).Draw(rt, "delay"))*time.Microsecond)
		}
		for _, shard := range rapid.Permutation(seq(g.Total())).Draw(rt, "shards")[:g.Parity] {
			f.objects[shard] = damage(f.objects[shard], rapid.SampledFrom([]string{"missing", "corrupt", "short"}).Draw(rt, "how"))
		}
		off := rapid.IntRange(0, n-1).Draw(rt, "offset")
		p := make([]byte, rapid.IntRange(0, n-off).Draw(rt, "bytes"))
		if _, err := c.ReadAt(t.Context(), f, testPack, p, int64(off)); err != nil || !bytes.Equal(p, container[off:off+len(p)]) {
			rt.Fatalf("%s, %d at %d of %d: %v", g, len(p), off, n, err)
		}
	})
}
