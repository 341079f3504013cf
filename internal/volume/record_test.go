package volume

import (
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// failSyncDir makes the next n syncs of the state folder fail: volume.json is
// replaced by then, but nobody can tell for how long.
func failSyncDir(m *vfs.Mem, n int) {
	m.FailOn(func(op, name string) error {
		if op == "syncdir" && name == "/state/vol" && n > 0 {
			n--
			return syscall.EIO
		}
		return nil
	})
}

// A revert that was refused is not done by the next open, over what was written since.
func TestRefusedRevertIsNotDoneLater(t *testing.T) {
	for _, failures := range []int{1, 2} {
		m := vfs.NewMem()
		o := memOptions(m, newHost())
		v := newManaged(t, o, 4*bs)
		r := rand.New(rand.NewPCG(1, 1))
		_, err := v.WriteAt(fill(r, 4*bs), 0)
		must(t, err)
		s := snap(t, v, SnapshotOptions{})
		want := fill(r, 4*bs)
		_, err = v.WriteAt(want[:bs], 0)
		must(t, err)
		failSyncDir(m, failures)
		if err = v.Revert(t.Context(), s.id); err == nil {
			t.Fatal("the revert did not fail")
		}
		m.FailOn(nil)
		_, err = v.WriteAt(want, 0)
		if err != nil && failures == 1 {
			t.Fatal(err)
		}
		must(t, v.Close())
		v, oerr := Open(o, "/state/vol")
		must(t, oerr)
		if err == nil { // the write was acknowledged
			same(t, "volume", content(t, v, 4*bs), want)
		}
		must(t, v.Close())
	}
}

// A snapshot that was refused leaves no trace that breaks others.
func TestRefusedSnapshotBreaksNothing(t *testing.T) {
	for _, failures := range []int{1, 2, 3} {
		m := vfs.NewMem()
		o := memOptions(m, newHost())
		v := newManaged(t, o, 4*bs)
		r := rand.New(rand.NewPCG(1, 1))
		old := fill(r, 4*bs)
		_, err := v.WriteAt(old, 0)
		must(t, err)
		s := snap(t, v, SnapshotOptions{})
		_, err = v.WriteAt(fill(r, bs), 0)
		must(t, err)
		failSyncDir(m, failures)
		if _, err = SnapshotGroup(t.Context(), []*Volume{v}, make([]SnapshotOptions, 1)); err == nil {
			t.Fatal("the snapshot did not fail")
		}
		m.FailOn(nil)
		_, err = v.WriteAt(fill(r, 2*bs), bs)
		must(t, err)
		must(t, v.Close())
		v, err = Open(o, "/state/vol")
		must(t, err)
		s, _ = v.Snapshot(s.id)
		same(t, "older snapshot", content(t, s, 4*bs), old)
		must(t, v.Close())
	}
}

// When the break of a snapshot takes its log away, an older one is not read
// without the preimages that are in it, nor are more of them put there.
func TestBreakWithoutLogBreaksOlder(t *testing.T) {
	for _, before := range []bool{true, false} {
		m := vfs.NewMem()
		o := memOptions(m, newHost())
		v := newManaged(t, o, 4*bs)
		r := rand.New(rand.NewPCG(1, 1))
		old := fill(r, 4*bs)
		_, err := v.WriteAt(old, 0)
		must(t, err)
		s1 := snap(t, v, SnapshotOptions{})
		_, err = v.WriteAt([]byte("one"), 0) // saved in the older's log
		must(t, err)
		snap(t, v, SnapshotOptions{})
		if before {
			_, err = v.WriteAt([]byte("one"), bs) // saved in the newer's log, for both
			must(t, err)
		}
		// The newer's log cannot be written any more, nor can the older's take over.
		failOn(m, "write sync", ".log", syscall.EIO)
		_, err = v.WriteAt([]byte("two"), 0)
		must(t, err)
		v.back.Wait()
		m.FailOn(nil)
		if !before {
			same(t, "older snapshot", content(t, s1, 4*bs), old)
			_, err = v.WriteAt([]byte("two"), 2*bs)
			must(t, err)
		}
		must(t, v.Close())
		v, err = Open(o, "/state/vol")
		must(t, err)
		s1, _ = v.Snapshot(s1.id)
		if s1.Info().Broken == "" {
			same(t, "older snapshot", content(t, s1, 4*bs), old)
		}
		must(t, v.Close())
	}
}

// A damaged log is set aside only when the snapshots that need it are recorded as broken.
func TestDamagedLogIsSetAsideLast(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	r := rand.New(rand.NewPCG(1, 1))
	old := fill(r, 4*bs)
	_, err := v.WriteAt(old, 0)
	must(t, err)
	s1 := snap(t, v, SnapshotOptions{})
	s2 := snap(t, v, SnapshotOptions{})
	_, err = v.WriteAt(fill(r, bs), bs) // saved in the newer's log, for both
	must(t, err)
	failOn(m, "write", "1.log", syscall.ENOSPC) // no room to merge it
	if err = v.DeleteSnapshot(s2.id); err == nil {
		t.Fatal("the merge did not fail")
	}
	m.FailOn(nil)
	must(t, v.Close())
	f, err := m.OpenFile("/state/vol/preimages/2.log", os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("rot"), 0)
	must(t, err)
	must(t, f.Close())
	failOn(m, "create", "volume.json", syscall.ENOSPC)
	if v, err = Open(o, "/state/vol"); err == nil {
		t.Fatal("the break was not recorded, and the volume opened", v.Close())
	}
	m.FailOn(nil)
	v, err = Open(o, "/state/vol")
	must(t, err)
	s1, _ = v.Snapshot(s1.id)
	if s1.Info().Broken == "" {
		same(t, "older snapshot", content(t, s1, 4*bs), old)
	}
	must(t, v.Close())
}
