package volume

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// failOn makes operations on files whose name contains part fail.
func failOn(m *vfs.Mem, ops, part string, err error) *atomic.Int64 {
	var hits atomic.Int64
	m.FailOn(func(op, name string) error {
		if strings.Contains(name, part) && slices.Contains(strings.Fields(ops), op) {
			hits.Add(1)
			return err
		}
		return nil
	})
	return &hits
}

func TestNoRoomBreaksTheSnapshotOnly(t *testing.T) {
	for _, tc := range []struct {
		name, ops, part string
		err             error
		temporary       bool
	}{
		{"write of a preimage, persistent", "write", ".log", syscall.ENOSPC, false},
		{"write of a preimage, temporary", "write", ".tmp", syscall.ENOSPC, true},
		{"sync of a preimage", "sync", ".log", syscall.EIO, false},
		{"no room for volume.json either", "write create", "vol/", syscall.ENOSPC, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := vfs.NewMem()
			o := memOptions(m, newHost())
			v := newManaged(t, o, 8*bs)
			r := rand.New(rand.NewPCG(1, 1))
			old := fill(r, 8*bs)
			_, err := v.WriteAt(old, 0)
			must(t, err)
			s := snap(t, v, SnapshotOptions{Temporary: tc.temporary})
			part := tc.part
			hits := new(atomic.Int64)
			if part == "vol/" { // everything of the state folder but the data and the tracker
				m.FailOn(func(op, name string) error {
					if strings.Contains(tc.ops, op) && !strings.Contains(name, managedFile) && !strings.Contains(name, trackerDir) {
						hits.Add(1)
						return tc.err
					}
					return nil
				})
			} else {
				hits = failOn(m, tc.ops, part, tc.err)
			}
			want := fill(r, 3*bs)
			if _, err := v.WriteAt(want, 100); err != nil {
				t.Fatalf("the guest's write failed: %v", err)
			}
			same(t, "volume", content(t, v, 8*bs)[100:100+3*bs], want)
			if hits.Load() == 0 {
				t.Fatal("nothing was made to fail")
			}
			if _, err := s.ReadAt(make([]byte, 512), 7*bs); !errors.Is(err, ErrBroken) {
				t.Fatalf("read of a broken snapshot: %v", err)
			}
			if _, err := s.Extents(0, bs); !errors.Is(err, ErrBroken) {
				t.Fatalf("extents of a broken snapshot: %v", err)
			}
			if s.Info().Broken == "" {
				t.Fatal("the reason is not shown")
			}
			m.FailOn(nil)
			reopenBroken(t, v, o, s, tc.temporary)
		})
	}
}

// reopenBroken checks that a break outlives the process, and that the volume is well without the snapshot.
func reopenBroken(t *testing.T, v *Volume, o Options, s *Snapshot, temporary bool) {
	t.Helper()
	must(t, v.Close())
	v, err := Open(o, "/state/vol")
	must(t, err)
	got, ok := v.Snapshot(s.id)
	if temporary {
		if ok {
			t.Fatal("a temporary snapshot survived")
		}
	} else {
		if !ok || got.Info().Broken == "" {
			t.Fatalf("the snapshot is not broken after a reopen: %v", ok)
		}
		if _, err := got.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrBroken) {
			t.Fatalf("read of a broken snapshot: %v", err)
		}
		must(t, v.DeleteSnapshot(s.id))
	}
	if v.space.used.Load() != 0 {
		t.Fatalf("%d bytes of preimages remain", v.space.used.Load())
	}
	must(t, v.Close())
}

// A break reaches the disk before the block that is lost: whatever the power
// failure, the snapshot is either whole or known to be broken.
func TestBreakIsDurableFirst(t *testing.T) {
	for seed := range uint64(200) {
		m := vfs.NewMem()
		host := newHost()
		o := memOptions(m, host)
		v := newManaged(t, o, 4*bs)
		r := rand.New(rand.NewPCG(seed, 3))
		old := fill(r, 4*bs)
		_, err := v.WriteAt(old, 0)
		must(t, err)
		s := snap(t, v, SnapshotOptions{})
		failOn(m, "write", "1.log", syscall.ENOSPC)
		if seed%2 == 0 { // the mark fails too: the log is removed
			failOn(m, "write sync", "1.log", syscall.EIO)
		}
		_, err = v.WriteAt(fill(r, bs), bs)
		must(t, err)
		after := m.Crash(r)
		_ = v.Close()
		host.reboot()
		o.FS = after
		v, err = Open(o, "/state/vol")
		must(t, err)
		if got, ok := v.Snapshot(s.id); !ok {
			t.Fatal("the snapshot is gone")
		} else if got.Info().Broken == "" {
			same(t, "snapshot", content(t, got, 4*bs), old)
			t.Fatal("the snapshot is not broken") // the block was overwritten, if only in the cache
		}
		must(t, v.Close())
	}
}

func TestPreimageLimit(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	o.PreimageLimit = 3 * (bs + sectorSize)
	v := newManaged(t, o, 8*bs)
	old := fill(rand.New(rand.NewPCG(1, 1)), 8*bs)
	_, err := v.WriteAt(old, 0)
	must(t, err)
	s := snap(t, v, SnapshotOptions{})
	for b := range int64(3) {
		_, err = v.WriteAt([]byte("new"), b*bs)
		must(t, err)
	}
	same(t, "snapshot", content(t, s, 8*bs), old)
	_, err = v.WriteAt([]byte("new"), 3*bs)
	must(t, err)
	if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "limit of") {
		t.Fatalf("read: %v", err)
	}
	must(t, v.Close())
}

// A snapshot that has what it needs survives the break of a newer one.
func TestBreakSparesCoveredSnapshots(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	old := fill(rand.New(rand.NewPCG(1, 1)), 4*bs)
	_, err := v.WriteAt(old, 0)
	must(t, err)
	s1 := snap(t, v, SnapshotOptions{})
	_, err = v.WriteAt([]byte("one"), 0)
	must(t, err)
	s2 := snap(t, v, SnapshotOptions{})
	failOn(m, "write", "2.log", syscall.ENOSPC)
	_, err = v.WriteAt([]byte("two"), 0)
	must(t, err)
	m.FailOn(nil)
	if s2.Info().Broken == "" {
		t.Fatal("the newer snapshot is not broken")
	}
	same(t, "older snapshot", content(t, s1, 4*bs), old)
	must(t, v.Close())
	v, err = Open(o, "/state/vol")
	must(t, err)
	s1, _ = v.Snapshot(s1.id)
	same(t, "older snapshot after a reopen", content(t, s1, 4*bs), old)
	must(t, v.Close())
}

func TestUnreadableOldBlockBreaksTheSnapshot(t *testing.T) {
	m := &unreadable{FS: vfs.NewMem()}
	o := Options{FS: m, Host: newHost()}
	v, err := Create(o, "/state/vol", Spec{Name: "vol", Size: 4 * bs, Managed: true})
	must(t, err)
	s := snap(t, v, SnapshotOptions{})
	m.bad.Store(true)
	_, err = v.WriteAt([]byte("new"), 0)
	must(t, err)
	m.bad.Store(false)
	if _, err := s.ReadAt(make([]byte, 1), 3*bs); !errors.Is(err, ErrBroken) {
		t.Fatalf("read: %v", err)
	}
	must(t, v.Close())
}

// unreadable is a file system whose data files may fail to be read.
type unreadable struct {
	vfs.FS
	bad atomic.Bool
}

type unreadableFile struct {
	vfs.File
	bad *atomic.Bool
}

func (u *unreadable) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := u.FS.OpenFile(name, flag, perm)
	if err != nil || !strings.HasSuffix(name, managedFile) {
		return f, err
	}
	return &unreadableFile{f, &u.bad}, nil
}

func (f *unreadableFile) Unwrap() vfs.File { return f.File }

func (f *unreadableFile) ReadAt(p []byte, off int64) (int, error) {
	if f.bad.Load() {
		return 0, syscall.EIO
	}
	return f.File.ReadAt(p, off)
}

func TestFailedFsyncIsSticky(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	snap(t, v, SnapshotOptions{Checkpoint: "c"})
	_, err := v.WriteAt([]byte("data"), 0)
	must(t, err)
	failOn(m, "sync", managedFile, syscall.EIO)
	if err = v.Flush(); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
		t.Fatalf("flush: %v", err)
	}
	m.FailOn(nil)
	if err = v.Flush(); !errors.Is(err, ErrFailed) {
		t.Fatalf("a later flush: %v", err)
	}
	if _, err = v.WriteAt([]byte("x"), 0); !errors.Is(err, ErrFailed) {
		t.Fatalf("a later write: %v", err)
	}
	if err = v.Trim(0, bs); !errors.Is(err, ErrFailed) {
		t.Fatalf("a later trim: %v", err)
	}
	if err = v.Extend(8 * bs); !errors.Is(err, ErrFailed) {
		t.Fatalf("a later extend: %v", err)
	}
	if _, err = SnapshotGroup(t.Context(), []*Volume{v}, make([]SnapshotOptions, 1)); !errors.Is(err, ErrFailed) {
		t.Fatalf("a later snapshot: %v", err)
	}
	if _, err = v.ReadAt(make([]byte, 4), 0); err != nil {
		t.Fatalf("a later read: %v", err)
	}
	must(t, v.Close())
	v, err = Open(o, "/state/vol")
	must(t, err)
	if _, doubt, derr := v.Dirty("c", ""); derr != nil || doubt == "" {
		t.Fatalf("after a reopen: doubt %q, %v", doubt, derr)
	}
	_, err = v.WriteAt([]byte("x"), 0)
	must(t, err)
	must(t, v.Flush())
	must(t, v.Close())
}

// Damage of a preimage is found when it is read, and the snapshot gives errors from then on.
func TestRottenPreimage(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	_, err := v.WriteAt(fill(rand.New(rand.NewPCG(1, 1)), 4*bs), 0)
	must(t, err)
	s := snap(t, v, SnapshotOptions{})
	for b := range int64(3) {
		_, err = v.WriteAt([]byte("new"), b*bs)
		must(t, err)
	}
	must(t, v.Close())
	f, err := m.OpenFile("/state/vol/preimages/1.log", 2, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("rot"), logHeaderSize+sectorSize+5000)
	must(t, err)
	must(t, f.Close())
	v, err = Open(o, "/state/vol")
	must(t, err)
	s, _ = v.Snapshot(s.id)
	for range 2 {
		if _, err := s.ReadAt(make([]byte, 1), 0); err == nil {
			t.Fatal("rotten content was read")
		}
	}
	if s.Info().Broken == "" {
		t.Fatal("not broken")
	}
	must(t, v.Close())
}

// A rotten header in the middle of a log is not taken for its torn end.
func TestRottenHeader(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	_, err := v.WriteAt(fill(rand.New(rand.NewPCG(1, 1)), 4*bs), 0)
	must(t, err)
	s := snap(t, v, SnapshotOptions{})
	for b := range int64(3) {
		_, err = v.WriteAt([]byte("new"), b*bs)
		must(t, err)
	}
	must(t, v.Close())
	f, err := m.OpenFile("/state/vol/preimages/1.log", 2, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("rot"), logHeaderSize+bs+sectorSize)
	must(t, err)
	must(t, f.Close())
	v, err = Open(o, "/state/vol")
	must(t, err)
	s, _ = v.Snapshot(s.id)
	if _, err := s.ReadAt(make([]byte, 1), 2*bs); !errors.Is(err, ErrBroken) {
		t.Fatalf("read: %v", err)
	}
	must(t, v.Close())
}

// What only a torn record called durable is not believed once that record is cut
// off: the next open would take its damage for another torn end, and the snapshot
// would read what the block became.
func TestRottenBeforeTornEnd(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	must(t, second(v.WriteAt(fill(rand.New(rand.NewPCG(1, 1)), 4*bs), 0)))
	s := snap(t, v, SnapshotOptions{})
	for b := range int64(3) {
		must(t, second(v.WriteAt([]byte("new"), b*bs)))
	}
	must(t, v.Close())
	f, err := m.OpenFile("/state/vol/preimages/1.log", 2, 0)
	must(t, err)
	for _, record := range []int64{1, 2} {
		must(t, second(f.WriteAt([]byte("rot"), logHeaderSize+record*(bs+sectorSize)+5000)))
	}
	must(t, f.Close())
	for range 2 {
		v, err = Open(o, "/state/vol")
		must(t, err)
		s, _ = v.Snapshot(s.id)
		if _, err := s.ReadAt(make([]byte, 1), bs); !errors.Is(err, ErrBroken) {
			t.Fatalf("read: %v", err)
		}
		must(t, v.Close())
	}
}

// TestFailedExtendIsNoDoubt: an Extend that fails in its last step costs nothing but itself.
func TestFailedExtendIsNoDoubt(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	must(t, second(v.WriteAt([]byte("old"), 0)))
	snap(t, v, SnapshotOptions{Checkpoint: "c"})
	must(t, second(v.WriteAt([]byte("new"), 0)))
	saves := 0
	m.FailOn(func(op, name string) error {
		if op == "rename" && strings.Contains(name, recordFile) {
			if saves++; saves == 2 {
				return syscall.EIO
			}
		}
		return nil
	})
	if err := v.Extend(8 * bs); !errors.Is(err, syscall.EIO) || v.Size() != 4*bs {
		t.Fatalf("%d bytes, %v", v.Size(), err)
	}
	m.FailOn(nil)
	must(t, v.Close())
	v, err := Open(o, "/state/vol")
	must(t, err)
	expectDoubt(t, v, false)
	must(t, v.Extend(8*bs))
	expectDoubt(t, v, false)
	must(t, v.Close())
}
