package agent

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/nbd"
)

// states asks nbdinfo about an export: the state of each block of 64 KiB.
func (r *rig) states(nbdinfo, uri, name string, blocks int) []blockmap.State {
	r.Helper()
	out, err := exec.CommandContext(context.Background(), nbdinfo, "--json", "--map="+name, uri).CombinedOutput()
	if err != nil {
		r.Fatalf("nbdinfo: %v\n%s", err, out)
	}
	var l []struct {
		Offset, Length int64
		Type           blockmap.State
	}
	if err := json.Unmarshal(out, &l); err != nil {
		r.Fatal(err)
	}
	states := make([]blockmap.State, blocks)
	end := int64(0)
	for _, e := range l {
		if e.Offset != end {
			r.Fatalf("a gap in the map:\n%s", out)
		}
		end += e.Length
		for b := e.Offset / overlayBlock; b < (end+overlayBlock-1)/overlayBlock; b++ {
			states[b] = e.Type
		}
	}
	return states
}

// TestAllocationDepth: libnbd's and qemu's tools see which blocks of an export were
// written through its overlay, which are the backup's, and which nobody has.
func TestAllocationDepth(t *testing.T) {
	nbdinfo, qemuImg := needs.Tool(t, "nbdinfo", "libnbd-bin"), needs.Tool(t, "qemu-img", "qemu-utils")
	r := testRig(t)
	ctx := t.Context()
	const blocks = 40
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	v, shadow := r.volume("disk", blocks*overlayBlock-4096), make([]byte, blocks*overlayBlock-4096)
	depth := make([]blockmap.State, blocks)
	for b := range depth {
		if rng.IntN(2) == 0 {
			depth[b] = blockmap.Beneath
			r.put(v, shadow, noise(4096), int64(b)*overlayBlock)
		}
	}
	b := r.backup(CreateBackup{Volume: "disk"})
	x, err := r.agent.Export(ctx, Export{Ref: b.ID, Name: "x", Overlay: true})
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		alloc, got := r.states(nbdinfo, x.URI, nbd.ContextAllocation, blocks), r.states(nbdinfo, x.URI, nbd.ContextDepth, blocks)
		for i := range depth {
			if got[i] != depth[i] {
				t.Errorf("block %d has the depth %d, want %d", i, got[i], depth[i])
			}
			if hole := alloc[i] != blockmap.Data; hole != (depth[i] == blockmap.Nowhere) {
				t.Errorf("block %d of depth %d is a hole: %v", i, depth[i], hole)
			}
		}
		r.equal("the export", r.read(x.URI), shadow)
	}
	check()
	for range 4 {
		r.write(x.URI, func(c *nbd.Client) error {
			for range 3 {
				off := rng.Int64N(int64(len(shadow))) &^ 511
				n := min(512*(1+rng.Int64N(300)), int64(len(shadow))-off)
				for i := off / overlayBlock; i <= (off+n-1)/overlayBlock; i++ {
					depth[i] = blockmap.Top
				}
				p := shadow[off : off+n]
				switch rng.IntN(3) {
				case 0:
					clear(p)
					err = c.Zero(ctx, off, n, true)
				case 1:
					clear(p)
					err = c.Trim(ctx, off, n)
				default:
					copy(p, noise(int(n)))
					err = c.WriteAt(ctx, p, off, false)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		check()
	}
	r.stopAgent()
	r.startAgent()
	check()

	// qemu's own client shows the number as the bits of base:allocation: 1 is without
	// data, 2 is zero.
	out, err := exec.CommandContext(ctx, qemuImg, "map", "--output=json", "--image-opts",
		"driver=nbd,export=x,server.type=unix,server.path="+x.Socket+",x-dirty-bitmap="+nbd.ContextDepth).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var l []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err = json.Unmarshal(out, &l); err != nil {
		t.Fatal(err)
	}
	for _, e := range l {
		for i := e.Start / overlayBlock; i*overlayBlock < e.Start+e.Length; i++ {
			if e.Data != (depth[i] != blockmap.Top) || e.Zero != (depth[i] == blockmap.Beneath) {
				t.Errorf("qemu-img: block %d of depth %d: %+v", i, depth[i], e)
			}
		}
	}

	// Without an overlay there is one layer, and no such context.
	ro, err := r.agent.Export(ctx, Export{Ref: b.ID, Name: "ro"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := exec.CommandContext(ctx, nbdinfo, "--list", ro.URI).CombinedOutput()
	if err != nil || strings.Contains(string(list), nbd.ContextDepth) {
		t.Errorf("%v\n%s", err, list)
	}
}
