package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestDoubt(t *testing.T) {
	id := uuid.New()
	t0 := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	clean := beatRecord{Volume: id, Boot: "a", Clean: true, Mtime: t0, Size: 512, Inode: 7, Counter: 100}
	killed := beatRecord{Volume: id, Boot: "a", Lease: t0.Add(leaseLength), Size: 512, Inode: 7}
	file := facts{volume: id, size: 512, mtime: t0, inode: 7, boot: "a", since: t0.Add(-time.Hour)}
	later := file
	later.boot, later.since = "b", t0.Add(time.Hour)
	device := facts{volume: id, size: 512, device: true, counter: 100, boot: "a"}
	with := func(f facts, change func(*facts)) facts { change(&f); return f }
	for _, tc := range []struct {
		name    string
		rec     beatRecord
		f       facts
		doubt   bool
		foreign bool
	}{
		{"clean", clean, file, false, false},
		{"clean, later written", clean, with(file, func(f *facts) { f.mtime = t0.Add(1) }), true, true},
		{"clean, replaced by an older one", clean, with(file, func(f *facts) { f.mtime = t0.Add(-1) }), true, true},
		{"clean, moved with its time", clean, with(file, func(f *facts) { f.inode = 8 }), true, false},
		{"clean, grown", clean, with(file, func(f *facts) { f.size = 1024 }), true, false},
		{"clean, growing", clean, with(file, func(f *facts) { f.size, f.resizing = 1024, true }), false, false},
		{"clean, other volume's record", clean, with(file, func(f *facts) { f.volume = uuid.New() }), true, false},
		{"clean, rebooted", clean, later, false, false},
		{"clean, rebooted, time lost", clean, with(later, func(f *facts) { f.mtime = t0.Add(-1) }), false, false},
		{"clean, written before the reboot", clean, with(later, func(f *facts) { f.mtime = t0.Add(1) }), true, true},
		{"killed", killed, file, false, false},
		{"killed, own last write", killed, with(file, func(f *facts) { f.mtime = t0.Add(leaseLength) }), false, false},
		{"killed, written after the lease", killed, with(file, func(f *facts) { f.mtime = t0.Add(leaseLength + 1) }), true, true},
		{"killed, replaced", killed, with(file, func(f *facts) { f.inode = 8 }), true, true},
		{"power lost", killed, later, false, false},
		{"power lost, own write after the durable lease", killed, with(later, func(f *facts) { f.mtime = t0.Add(30 * time.Minute) }), false, false},
		{"power lost, written after the boot", killed, with(later, func(f *facts) { f.mtime = f.since.Add(1) }), true, true},
		{"failed fsync", beatRecord{Volume: id, Boot: "a", Failed: true, Lease: t0, Size: 512}, file, true, false},
		{"device, clean", clean, device, false, false},
		{"device, written while closed", clean, with(device, func(f *facts) { f.counter++ }), true, true},
		{"device, killed", killed, device, true, false},
		{"device, rebooted", clean, with(device, func(f *facts) { f.boot, f.counter = "b", 0 }), false, false},
		{"device, written since the boot", clean, with(device, func(f *facts) { f.boot, f.counter = "b", 1 }), true, true},
		{"device without a counter", clean, with(device, func(f *facts) { f.noCounter = errors.New("no") }), true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reason, foreign := tc.rec.doubt(&tc.f)
			if (reason != "") != tc.doubt || foreign != tc.foreign {
				t.Fatalf("doubt %q, foreign %v", reason, foreign)
			}
			if back, err := decodeBeat(tc.rec.encode()); err != nil || back.Volume != tc.rec.Volume || !back.Mtime.Equal(tc.rec.Mtime) || back.Boot != tc.rec.Boot || back.Clean != tc.rec.Clean {
				t.Fatalf("decoded %+v, %v", back, err)
			}
		})
	}
}

// TestForeignWrite writes behind the volume's back, on a real file system.
func TestForeignWrite(t *testing.T) {
	for _, killed := range []bool{false, true} {
		host := newHost()
		o := Options{Host: host}
		path := image(t, 4*bs, 0, "boot")
		dir := filepath.Join(t.TempDir(), "vol")
		v, err := Create(o, dir, Spec{Name: "vol", Path: path})
		must(t, err)
		s := snap(t, v, SnapshotOptions{Checkpoint: "c"})
		_, err = v.WriteAt([]byte("mine"), 0)
		must(t, err)
		if killed {
			kill(t, v)
		} else {
			must(t, v.Close())
		}
		v, err = Open(o, dir) // nobody wrote: no doubt
		must(t, err)
		expectDoubt(t, v, false)
		if killed {
			kill(t, v)
		} else {
			must(t, v.Close())
		}
		must(t, os.Chtimes(path, time.Time{}, time.Now().Add(time.Minute)))
		v, err = Open(o, dir)
		must(t, err)
		expectDoubt(t, v, true)
		if got, ok := v.Snapshot(s.id); !ok || got.Info().Broken == "" {
			t.Fatal("the snapshot is not broken")
		}
		if _, err := v.WriteAt([]byte("mine"), 0); err != nil {
			t.Fatal(err)
		}
		must(t, v.Close())
	}
}

// kill ends a volume as a kill -9 does.
func kill(t *testing.T, v *Volume) {
	t.Helper()
	v.back.Wait()
	_ = v.data.Close()
	_ = v.beat.close()
}

func expectDoubt(t *testing.T, v *Volume, want bool) {
	t.Helper()
	_, doubt, err := v.Dirty("c", "")
	if err != nil || (doubt != "") != want {
		t.Fatalf("doubt %q, %v, want %v", doubt, err, want)
	}
}
