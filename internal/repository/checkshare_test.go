package repository

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

// Checks that each read a share come round to every byte: a damaged shard of any
// pack is found within one round, by the checks that are to read it and by no
// other, and packs that come in between are not passed over.
func TestCheckShare(t *testing.T) {
	c, r := fresh(t)
	rnd := seeded(41)
	for n := range 6 { // even: a step of two would pass over half of them
		randomContent(rnd, 100, 20).mustBackup(t, r, fmt.Sprintf("b%d", n), "", nil)
	}
	var shards []string
	for _, name := range c.mem[2].Names() {
		if _, ok := parsePackName(name); ok {
			shards = append(shards, name)
		}
	}
	if len(shards) != 6 {
		t.Fatalf("only %d packs", len(shards))
	}
	for n, name := range shards {
		d := c.clone()
		body, err := d.mem[2].Get(context.Background(), name, 0, -1, nil)
		if err != nil {
			t.Fatal(err)
		}
		body[1000] ^= 1
		d.mem[2].Replace(name, body)
		again := d.open(t)
		middle, _ := parsePackName(shards[3]) // the round wraps
		found, read, position := 0, 0, middle.String()
		for range 10 {
			rep, err := again.Check(t.Context(), CheckOptions{ReadData: true, Share: 10, After: position})
			if err != nil || rep.Packs != len(shards) || rep.Read != (len(shards)+9)/10 {
				t.Fatalf("%+v, %v", rep, err)
			}
			position = rep.Position
			read += rep.Read
			damaged := int(rep.Stores[2].Damaged)
			if (damaged == 0) != rep.OK() {
				t.Errorf("%+v", rep)
			}
			found += damaged
			if read >= len(shards) {
				break
			}
		}
		if found == 0 || read > len(shards) && found > 2 || read == len(shards) && found != 1 {
			t.Errorf("pack %d of %d: found %d times in %d packs read", n, len(shards), found, read)
		}
	}
	// What too few shards are left of is named, whichever packs are read.
	d := c.clone()
	for _, m := range d.mem[:3] {
		if err := m.Delete(t.Context(), shards[0]); err != nil {
			t.Fatal(err)
		}
	}
	for _, after := range shards {
		id, _ := parsePackName(after)
		rep, err := d.open(t).Check(t.Context(), CheckOptions{ReadData: true, Share: 1, After: id.String()})
		lost := 0
		for _, b := range rep.Backups {
			if !b.Restorable {
				lost++
			}
		}
		if err != nil || lost != 1 {
			t.Errorf("three shards gone: %d backups hit: %+v, %v", lost, rep, err)
		}
	}
	rep, err := r.Check(t.Context(), CheckOptions{ReadData: true, Share: 100, After: ""})
	if err != nil || !rep.OK() || rep.Read != len(shards) {
		t.Errorf("all: %+v, %v", rep, err)
	}
	if rep, err = r.Check(t.Context(), CheckOptions{}); err != nil || rep.Read != 0 || rep.Position != "" {
		t.Errorf("none: %+v, %v", rep, err)
	}
	for _, o := range []CheckOptions{{Share: -1}, {Share: 101}, {ReadData: true, After: "x"}} {
		if _, err := r.Check(t.Context(), o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A pace is told of all that is read, and can end a check.
func TestCheckPace(t *testing.T) {
	_, r := fresh(t)
	randomContent(seeded(1), 100, 60).mustBackup(t, r, "b", "", nil)
	var paced int64
	rep, err := r.Check(t.Context(), CheckOptions{ReadData: true, Pace: func(_ context.Context, n int64) error { paced += n; return nil }})
	if err != nil || !rep.OK() || paced <= rep.Backups[0].Backup.Stats.Shards {
		t.Errorf("%d bytes, %+v, %v", paced, rep, err)
	}
	stop := errors.New("stop")
	if _, err := r.Check(t.Context(), CheckOptions{ReadData: true, Pace: func(context.Context, int64) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("a pace that stops: %v", err)
	}
}
