package repository

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/objstore/storetest"
	"github.com/cairnbackup/cairn/internal/vfs"
)

const powerStores = 3

// dirStores returns stores in folders of one file system.
func dirStores(t *testing.T, fsys vfs.FS, open func(string, dirstore.Options) (*dirstore.Store, error)) []objstore.Store {
	t.Helper()
	var out []objstore.Store
	for i := range powerStores {
		s, err := open(fmt.Sprintf("/stores/%d", i), dirstore.Options{FS: fsys})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func TestDirstoreOnMem(t *testing.T) {
	storetest.Run(t, func(t *testing.T) objstore.Store {
		t.Helper()
		s, err := dirstore.Create("/a/b", dirstore.Options{FS: vfs.NewMem()})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

// The power fails at every operation of the file system that holds all stores
// and the index: what was told committed is there afterwards, byte for byte, and
// nothing that is available is not.
func TestPowerLoss(t *testing.T) {
	total := powerRun(t, -1, 0)
	if total < 100 {
		t.Fatalf("only %d operations", total)
	}
	step := 1 + total/120
	if testing.Short() {
		step = 1 + total/20
	}
	for at := 0; at <= total; at += step {
		powerRun(t, at, uint64(at))
		if t.Failed() {
			t.Fatalf("power lost at operation %d of %d", at, total)
		}
	}
}

// powerRun makes two backups and cuts the power at an operation behind Init; it
// returns the number of operations.
func powerRun(t *testing.T, at int, seed uint64) int {
	t.Helper()
	mem := vfs.NewMem()
	_, err := Init(t.Context(), InitOptions{
		Stores: dirStores(t, mem, dirstore.Create), Data: 2, Parity: 1, Password: password, KDF: cheapKDF,
	})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	n := 0
	var left *vfs.Mem
	mem.OnOp(func(string, string) {
		mu.Lock()
		defer mu.Unlock()
		if n == at {
			left = mem.Crash(seeded(seed))
		}
		n++
	})
	rnd := seeded(77)
	v1 := randomContent(rnd, 40, 8)
	v2 := v1.clone()
	changed := v2.change(rnd, 3)
	out := &outcomes{told: map[string]Outcome{}, contents: map[string]*content{"b1": v1, "b2": v2}}
	if r, failed := powerOpen(t.Context(), t, mem); failed == nil {
		if out.told["b1"], failed = v1.backup(t.Context(), r, "b1", "", nil); failed == nil {
			out.told["b2"], _ = v2.backup(t.Context(), r, "b2", "b1", changed)
		}
		// With the power off nothing can be closed properly.
		if failed = r.Close(); failed != nil && at < 0 {
			t.Error(failed)
		}
	} else if at < 0 {
		t.Fatal(failed)
	}
	mu.Lock()
	defer mu.Unlock()
	if left == nil {
		left = mem.Crash(seeded(seed)) // right behind the end
	}
	r, err := powerOpen(t.Context(), t, left)
	if err != nil {
		t.Fatalf("open behind the power loss: %v", err)
	}
	list, err := r.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	available := ids(list, Available)
	for id, told := range out.told {
		if told == OutcomeCommitted && !available[id] || told == OutcomeFailed && available[id] {
			t.Errorf("%s was told %v, available: %v", id, told, available[id])
		}
	}
	for id := range available {
		if err = out.contents[id].verify(t.Context(), r, id); err != nil {
			t.Error(err)
		}
	}
	// And the next backup works, the index included.
	v3 := v2.clone()
	v3.change(rnd, 3)
	v3.mustBackup(t, r, "b3", "", nil)
	mustVerify(t, v3, r, "b3")
	if err = r.Close(); err != nil {
		t.Error(err)
	}
	return n
}

func powerOpen(ctx context.Context, t *testing.T, mem *vfs.Mem) (*Repository, error) {
	t.Helper()
	return Open(ctx, Options{
		Stores: dirStores(t, mem, dirstore.Open), Password: password, Timing: eager,
		CacheDir: "/cache", FS: mem, Cache: CacheSizes{Index: 64 << 10},
	})
}

// A backup on real folders, and what becomes of it when two of six are gone.
func TestDirectories(t *testing.T) {
	dir := t.TempDir()
	var stores []objstore.Store
	for i := range 6 {
		s, err := dirstore.Create(fmt.Sprintf("%s/%d", dir, i), dirstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, s)
	}
	if _, err := Init(t.Context(), InitOptions{Stores: stores, Data: 4, Parity: 2, Password: password, KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Options{Stores: stores, Password: password, CacheDir: dir + "/cache"})
	if err != nil {
		t.Fatal(err)
	}
	v := randomContent(seeded(70), 600, 400)
	v.mustBackup(t, r, "b1", "", nil)
	mustVerify(t, v, r, "b1")
	if err = r.Close(); err != nil {
		t.Error(err)
	}
	var left []objstore.Store
	for i := range 6 {
		name := fmt.Sprintf("%s/%d", dir, i)
		if i == 1 || i == 3 {
			name += ".gone"
		}
		s, failed := dirstore.Open(name, dirstore.Options{})
		if failed != nil {
			t.Fatal(failed)
		}
		left = append(left, s)
	}
	r, err = Open(t.Context(), Options{Stores: left, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	mustVerify(t, v, r, "b1")
	if _, failed := r.Begin(t.Context(), SessionOptions{Project: "p", VolumeID: "v"}); !errors.Is(failed, ErrTooFewStores) {
		t.Errorf("Begin with two folders gone = %v", failed)
	}
	if err = r.Close(); err != nil {
		t.Error(err)
	}
}
