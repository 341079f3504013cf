package repository

import (
	"context"
	"errors"
	"testing"
	"time"
)

// A root record must not name a pack that never got into a queue, whatever the
// caller made of the worker's error.
func TestCommitWithoutAPack(t *testing.T) {
	c := newCluster(6)
	c.init(t, 4, 2)
	r := c.open(t)
	v := randomContent(seeded(1), 300, 100)
	s, err := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v", Volume: "disk"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Worker()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err = w.PutBlock(ctx, w.BlockID(v.blocks[firstBlock(v)]), v.blocks[firstBlock(v)]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err = w.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Close = %v", err)
	}
	top, err := v.write(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	root := Root{BackupID: "b1", Name: "b1", Created: time.Unix(1_760_000_000, 0), Geometry: v.geometry(), Top: top}
	if o, err := s.Commit(t.Context(), root); o != OutcomeFailed || err == nil {
		t.Fatalf("Commit = %v, %v", o, err)
	}
	if list, err := r.Backups(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("Backups = %v, %v", list, err)
	}
}

// firstBlock is the number of a block with content.
func firstBlock(v *content) int64 {
	for b := range v.blocks {
		return b
	}
	return -1
}
