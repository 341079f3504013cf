package qemu

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/cairnbackup/cairn/blockmap"
)

const block = clusterSize

func dirtyBlocks(extents []blockmap.Extent) map[int64]bool {
	found := map[int64]bool{}
	for _, e := range extents {
		if e.State&blockmap.Dirty != 0 {
			for b := e.Offset / block; b*block < e.End(); b++ {
				found[b] = true
			}
		}
	}
	return found
}

// TestPersistentCheckpoints: what a qcow2 keeps over an orderly end, and not over a
// kill; and what a raw disk never keeps.
func TestPersistentCheckpoints(t *testing.T) {
	for _, c := range []struct {
		format string
		kill   bool
		lost   bool
	}{{"qcow2", false, false}, {"qcow2", true, true}, {"raw", false, true}} {
		t.Run(fmt.Sprintf("%s, killed: %v", c.format, c.kill), func(t *testing.T) {
			g := newGuest(t, guestOptions{format: c.format})
			g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
			g.drop("one")
			g.write(1, 5*block, block)
			if c.kill {
				g.kill()
			} else {
				g.quit()
			}
			g.start()
			s := g.snapshot(SnapshotOptions{ID: "two", Since: []string{"c1"}})
			if reason := s.Lost["c1"]; (reason != "") != c.lost {
				t.Fatalf("c1 is lost because %q", reason)
			}
			_, dirty := read(t, s)
			if d := dirtyBlocks(dirty["c1"]); !c.lost && (len(d) != 1 || !d[5]) {
				t.Errorf("changed since c1: %v", d)
			}
			info, err := g.disk.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if (len(info.Checkpoints) == 0) != c.lost {
				t.Errorf("checkpoints %v", info.Checkpoints)
			}
		})
	}
}

func TestFullAndIncremental(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			g := newGuest(t, guestOptions{format: format})
			g.write(1, 0, 8*block)
			before := g.traces()
			s := g.snapshot(SnapshotOptions{ID: "one", Checkpoint: "c1"})
			want := bytes.Clone(g.model)
			g.write(2, 2*block, 3*block)
			g.zero(0, block)
			got, _ := read(t, s)
			if !bytes.Equal(got, want) {
				t.Error("the snapshot is not what the disk was")
			}
			if err := g.disk.Verify(t.Context(), "one"); err != nil {
				t.Error(err)
			}
			g.drop("one")

			s = g.snapshot(SnapshotOptions{ID: "two", Checkpoint: "c2", Since: []string{"c1"}})
			want = bytes.Clone(g.model)
			g.write(3, 20*block, block)
			got, dirty := read(t, s)
			if !bytes.Equal(got, want) {
				t.Error("the second snapshot is not what the disk was")
			}
			if d := dirtyBlocks(dirty["c1"]); len(d) != 4 || !d[0] || !d[2] || !d[3] || !d[4] {
				t.Errorf("changed since c1: %v", d)
			}
			g.drop("two")
			if err := g.disk.Sweep(t.Context(), nil, func(string) bool { return false }); err != nil {
				t.Error(err)
			}
			if after := g.traces(); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
		})
	}
}
