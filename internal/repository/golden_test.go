package repository

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
)

var updateGolden = flag.Bool("update-golden", false, "write the golden repositories anew: only before their format was released")

// The golden repositories: one of format 1, and one whose key was rotated between its
// backups.
const (
	goldenDir     = "testdata/golden-v1"
	goldenRotated = "testdata/golden-v2"
)

// goldenContent is what the backups of the golden repository hold: a formula,
// so that the test needs nothing but the repository.
func goldenContent(version int) *content {
	c := &content{size: 130*testBlock + 1234, blocks: make(map[int64][]byte)}
	fill := func(b int64, salt int) {
		p := make([]byte, c.geometry().BlockLen(b))
		x := uint32(b)*2654435761 + uint32(salt)
		for i := range p {
			if i < 900 { // does not compress
				x = x*1664525 + 1013904223
				p[i] = byte(x >> 24)
			} else {
				p[i] = byte(i / 1000)
			}
		}
		c.blocks[b] = p
	}
	for _, b := range []int64{0, 1, 2, 64, 127, 128, 130} {
		fill(b, 0)
	}
	if version > 1 {
		for _, b := range []int64{2, 50} {
			fill(b, version)
		}
	}
	return c
}

func goldenStores(t *testing.T, dir string, open func(string, dirstore.Options) (*dirstore.Store, error)) []objstore.Store {
	t.Helper()
	var out []objstore.Store
	for i := range 3 {
		s, err := open(filepath.Join(dir, strconv.Itoa(i)), dirstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// writeGolden makes a 2+1 repository with a full backup, an incremental one
// that store 2 missed (its shards are owed), and a deleted one.
func writeGolden(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	stores := goldenStores(t, dir, dirstore.Create)
	losses := 0
	if _, err := Init(t.Context(), InitOptions{Stores: stores, Data: 2, Parity: 1, Losses: &losses, Password: password, KDF: cheapKDF}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Options{Stores: stores, Password: password, Timing: eager})
	if err != nil {
		t.Fatal(err)
	}
	goldenContent(1).mustBackup(t, r, "b1", "", nil)
	goldenContent(1).mustBackup(t, r, "b3", "b1", nil)
	if err = r.Delete(t.Context(), "b3"); err != nil {
		t.Fatal(err)
	}
	if dir == goldenRotated {
		mustRotate(t, r)
	}
	if err = r.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err = Open(t.Context(), Options{Stores: stores[:2], Password: password, Timing: eager}); err != nil {
		t.Fatal(err)
	}
	goldenContent(2).mustBackup(t, r, "b2", "b1", []int64{2, 50})
	if err = r.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err = os.RemoveAll(filepath.Join(dir, strconv.Itoa(i), "TMP")); err != nil {
			t.Fatal(err)
		}
	}
}

// A repository of format 1 stays readable for ever, and one of format 2.
func TestGoldenRepository(t *testing.T) {
	for format, dir := range map[int]string{firstFormat: goldenDir, rotatedFormat: goldenRotated} {
		if *updateGolden {
			writeGolden(t, dir)
		}
		t.Run(filepath.Base(dir), func(t *testing.T) { testGolden(t, dir, format) })
	}
}

func testGolden(t *testing.T, dir string, format int) {
	t.Helper()
	for _, without := range []int{-1, 0, 1, 2} {
		t.Run(fmt.Sprintf("without store %d", without), func(t *testing.T) {
			var stores []objstore.Store
			for i, s := range goldenStores(t, dir, dirstore.Open) {
				if i != without {
					stores = append(stores, s)
				}
			}
			r, err := Open(t.Context(), Options{Stores: stores, Password: password, Timing: eager})
			if err != nil {
				t.Fatal(err)
			}
			if got := r.Info().Format; got != format {
				t.Errorf("format %d", got)
			}
			mustVerify(t, goldenContent(1), r, "b1")
			// b2 was made with store 2 away and no loss to survive; its packs are
			// so short that shard 1 is all virtual zeros.
			second := without != 0
			err = goldenContent(2).verify(t.Context(), r, "b2")
			if (err == nil) != second {
				t.Errorf("b2: %v", err)
			}
			list, err := r.Backups(t.Context())
			if err != nil || len(list) != 2 {
				t.Fatalf("Backups = %v, %v", list, err)
			}
			if b := list[0]; b.ID != "b1" || b.Name != "name-b1" || b.Volume != "disk" || !b.Created.Equal(time.Unix(1_760_000_000, 0)) || b.State != Available {
				t.Errorf("%+v", b)
			}
			if trash, err := r.Trash(t.Context()); err != nil || len(trash) != 1 {
				t.Errorf("Trash = %v, %v", trash, err)
			}
			if without == -1 {
				if st := r.Status(t.Context()); st[0].Owed+st[1].Owed != 0 || st[2].Owed != 1 {
					t.Errorf("Status = %+v", st)
				}
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
