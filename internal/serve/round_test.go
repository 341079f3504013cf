package serve_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

// oneRound takes a volume from its creation to its deletion, with two
// snapshots of known content while it is written to.
func oneRound(t *testing.T, p *plane, name string, seed uint64) (err error) {
	t.Helper()
	const size = 2 * mib
	ctx := t.Context()
	r := rand.New(rand.NewPCG(seed, 1))
	v, err := p.CreateVolume(ctx, serve.CreateVolume{Name: name, Size: size})
	if err != nil {
		return err
	}
	c, err := nbd.Dial(ctx, v.URI, nbd.ClientOptions{Contexts: []string{nbd.ContextAllocation}})
	if err != nil {
		return err
	}
	shadow := make([]byte, size)
	var snaps []serve.Snapshot
	var shadows [][]byte
	for range 3 {
		for range 40 {
			if err := change(ctx, c, shadow, r); err != nil {
				return err
			}
		}
		ss, err := p.CreateSnapshots(ctx, serve.CreateSnapshots{Volumes: []string{name}, Force: true})
		if err != nil {
			return err
		}
		snaps, shadows = append(snaps, ss[0]), append(shadows, bytes.Clone(shadow))
	}
	for i, s := range snaps {
		if err := holds(ctx, s.URI, shadows[i]); err != nil {
			return fmt.Errorf("snapshot %d: %w", i, err)
		}
	}
	if err := c.Close(); err != nil {
		return err
	}
	if err := p.RevertVolume(ctx, snaps[1].ID); err != nil {
		return err
	}
	if err := holds(ctx, v.URI, shadows[1]); err != nil {
		return fmt.Errorf("reverted: %w", err)
	}
	if err := holds(ctx, snaps[2].URI, shadows[2]); err != nil {
		return fmt.Errorf("later snapshot after a revert: %w", err)
	}
	for _, i := range r.Perm(len(snaps)) {
		if err := p.DeleteSnapshot(ctx, snaps[i].ID); err != nil {
			return err
		}
	}
	return p.DeleteVolume(ctx, name)
}

// change writes, zeroes or trims somewhere, and does the same to shadow.
func change(ctx context.Context, c *nbd.Client, shadow []byte, r *rand.Rand) error {
	off := r.IntN(len(shadow)-1) &^ 511
	n := min(512*(1+r.IntN(256)), len(shadow)-off)
	at := int64(off)
	switch r.IntN(4) {
	case 0:
		clear(shadow[off : off+n])
		return c.Zero(ctx, at, int64(n), r.IntN(2) == 0)
	default:
		p := shadow[off : off+n]
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return c.WriteAt(ctx, p, at, r.IntN(8) == 0)
	}
}

// holds compares an export with what it should hold.
func holds(ctx context.Context, uri string, want []byte) error {
	c, err := nbd.Dial(ctx, uri, nbd.ClientOptions{})
	if err != nil {
		return err
	}
	got := make([]byte, len(want))
	if err := c.ReadAt(ctx, got, 0); err != nil {
		return err
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("differs at %d", i)
		}
	}
	return c.Close()
}
