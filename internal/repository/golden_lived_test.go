package repository

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
)

const (
	goldenLived      = "testdata/golden-lived"
	goldenLivedCount = 4 // stores
)

// livedContent is volume n of the golden repository that has lived, in its
// version v: a formula again, of blocks that do not compress.
func livedContent(n, v uint32) *content {
	c := &content{size: 70*testBlock + 99, blocks: make(map[int64][]byte)}
	blocks := []int64{0, 3, 65}
	if n > 1 {
		blocks = blocks[:1]
	}
	for _, b := range blocks {
		x := n*7919 + uint32(b)*104729
		if b == 0 || b == 3 && v > 1 {
			x += v * 15485863
		}
		p := make([]byte, c.geometry().BlockLen(b))
		for i := range p {
			x ^= x << 13
			x ^= x >> 17
			x ^= x << 5
			p[i] = byte(x >> 11)
		}
		c.blocks[b] = p
	}
	return c
}

// lived is what can be restored of the golden repository that has lived.
var lived = map[string]*content{
	"moved": livedContent(1, 2), "rotated": livedContent(1, 3), "last": livedContent(1, 4), "pin": livedContent(1, 3),
}

// livedKinds are names of the objects that it has: of every kind that stays but
// owed shards, which the other golden repositories have.
var livedKinds = []string{
	storeName, keyPrefix, removedKeyPrefix, membersPrefix + "3", packPrefix, rootPrefix, "/" + openLeaf, "/" + verdictLeaf, "/" + certificateLeaf,
	deletedPrefix, purgedPrefix, "/" + condemnedLeaf, "/" + doneLeaf, forwardPrefix, damagedPrefix, capablePrefix,
}

// writeLived makes a repository to which most has happened that can: a store was
// added, backups were deleted, pruned and compacted, the key was rotated, passwords
// came and went, a prune and a session died, a pack is beyond repair.
func writeLived(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	must(0, os.RemoveAll(goldenLived))
	var stores []objstore.Store
	for i := range goldenLivedCount {
		stores = append(stores, must(dirstore.Create(filepath.Join(goldenLived, strconv.Itoa(i)), dirstore.Options{})))
	}
	losses := 0
	must(Init(ctx, InitOptions{Stores: stores[:3], Data: 2, Parity: 1, Losses: &losses, Password: password, KDF: cheapKDF}))
	open := func(stores ...objstore.Store) *Repository {
		r := must(Open(ctx, Options{Stores: stores, Password: password, Timing: eager}))
		t.Cleanup(func() { must(0, r.Close()) })
		return r
	}
	r := open(stores[:3]...)
	must(r.AddStore(ctx, stores[3], nil))
	r = open(stores...)
	livedContent(1, 1).mustBackup(t, r, "compacted", "", nil)
	livedContent(1, 2).mustBackup(t, r, "moved", "compacted", []int64{0, 3})
	must(0, r.Delete(ctx, "compacted"))
	mustPrune(t, r)
	o := hasty
	o.Compact = 0.2
	if rep := must(r.Prune(ctx, o)); rep.Compacted == 0 {
		t.Fatalf("nothing was compacted: %+v", rep)
	}
	must(r.RotateKey(ctx))
	livedContent(1, 3).mustBackup(t, r, "rotated", "moved", []int64{0, 3})
	must(0, r.Pin(ctx, "pin", "rotated", "a guest"))
	livedContent(3, 1).mustBackup(t, r, "dead", "", nil)
	must(0, r.Delete(ctx, "dead"))
	mustPrune(t, r)
	livedContent(4, 1).mustBackup(t, r, "trash", "", nil)
	must(0, r.Delete(ctx, "trash"))
	dying, kill := context.WithCancelCause(ctx)
	announced := false
	o.Progress = func(p PruneProgress) {
		announced = announced || p.Step == "announce"
		if announced && p.Step == "backups" {
			kill(errKilled)
		}
	}
	if _, err := r.Prune(dying, o); err == nil {
		t.Fatal("the prune did not die")
	}
	kill(nil)
	livedContent(2, 1).mustBackup(t, r, "hurt", "", nil)
	hurt := must(r.Backup(ctx, "hurt")).Session
	for _, s := range stores {
		for _, name := range livedNames(t, s) {
			// The shard that is all virtual zeros stays: so the pack is not gone.
			if strings.HasPrefix(name, packPrefix+hurt) && must(s.Stat(ctx, name)) > 1<<10 {
				must(0, s.Delete(ctx, name))
			}
		}
	}
	must(r.Check(ctx, CheckOptions{ReadData: true, Publish: true}))
	r = open(stores[:3]...)
	livedContent(1, 4).mustBackup(t, r, "last", "rotated", []int64{0, 3})
	s := must(r.Begin(ctx, SessionOptions{Project: "p", VolumeID: "dead"}))
	s.release()
	for i := range goldenLivedCount {
		must(0, os.RemoveAll(filepath.Join(goldenLived, strconv.Itoa(i), "TMP")))
	}
}

func livedNames(t *testing.T, s objstore.Store) (names []string) {
	t.Helper()
	if err := s.List(t.Context(), "", func(i objstore.Info) error { names = append(names, i.Name); return nil }); err != nil {
		t.Fatal(err)
	}
	return names
}

// A repository that has lived stays readable for ever, without any of its stores,
// and goes on: it is checked, repaired, pruned and written to by every later version.
func TestGoldenLived(t *testing.T) {
	if *updateGolden {
		writeLived(t)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(goldenLived)); err != nil {
		t.Fatal(err)
	}
	var stores []objstore.Store
	for i := range goldenLivedCount {
		stores = append(stores, must(dirstore.Open(filepath.Join(dir, strconv.Itoa(i)), dirstore.Options{})))
	}
	open := func(stores []objstore.Store) *Repository {
		r := must(Open(t.Context(), Options{Stores: stores, Password: password, Timing: eager}))
		t.Cleanup(func() {
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
		return r
	}
	names := strings.Join(livedNames(t, stores[0]), "\n")
	for _, kind := range livedKinds {
		if !strings.Contains(names, kind) {
			t.Errorf("it has no %s", kind)
		}
	}
	for without := range goldenLivedCount {
		r := open(slices.Delete(slices.Clone(stores), without, without+1))
		for id, v := range lived {
			mustVerify(t, v, r, id)
		}
		if err := livedContent(2, 1).verify(t.Context(), r, "hurt"); err == nil || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrTooFewStores) {
			t.Errorf("what is beyond repair: %v", err)
		}
	}
	r := open(stores)
	if rep := must(r.Repair(t.Context(), RepairOptions{Apply: true, ReadData: true})); len(rep.Lost) == 0 {
		t.Errorf("repair: %+v", rep)
	}
	must(0, r.Delete(t.Context(), "hurt"))
	for range 3 {
		mustPrune(t, r)
	}
	next := livedContent(1, 5)
	next.mustBackup(t, r, "next", "last", []int64{0, 3})
	mustVerify(t, next, r, "next")
	for id, v := range lived {
		mustVerify(t, v, open(stores), id)
	}
	rep := must(r.Check(t.Context(), CheckOptions{ReadData: true}))
	if !rep.OK() {
		t.Errorf("check: %+v", rep)
	}
	if pins := must(r.Pins(t.Context())); len(pins) != 1 || pins[0].Backup != "rotated" {
		t.Errorf("pins: %+v", pins)
	}
	if keys := must(r.Keys(t.Context())); len(keys) != 1 {
		t.Errorf("keys: %+v", keys)
	}
}
