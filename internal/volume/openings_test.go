package volume

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// expectOpenings checks what a volume says of its openings.
func expectOpenings(tb testing.TB, v *Volume, count uint64, open bool) {
	tb.Helper()
	if n, now := v.Openings(); n != count || now != open {
		tb.Fatalf("opened %d times, open now: %v; want %d, %v", n, now, count, open)
	}
}

// writeAs writes like a client that comes and goes.
func writeAs(tb testing.TB, v *Volume, p []byte, off int64) {
	tb.Helper()
	must(tb, v.whileOpen(func() error { return second(v.WriteAt(p, off)) }))
}

func TestWhatCountsAsAnOpening(t *testing.T) {
	for _, tc := range []struct {
		name string
		want uint64 // after a volume with a snapshot and an opening
		do   func(t *testing.T, v *Volume, s *Snapshot)
	}{
		{"nothing", 1, func(*testing.T, *Volume, *Snapshot) {}},
		{"a client", 2, func(t *testing.T, v *Volume, _ *Snapshot) { t.Helper(); writeAs(t, v, []byte("new"), 0) }},
		{"one who only looks", 2, func(t *testing.T, v *Volume, _ *Snapshot) {
			t.Helper()
			must(t, v.whileOpen(func() error { return nil }))
		}},
		{"two connections at a time", 2, func(t *testing.T, v *Volume, _ *Snapshot) {
			t.Helper()
			must(t, v.OpenForWriting())
			must(t, v.OpenForWriting())
			must(t, v.CloseForWriting())
			expectOpenings(t, v, 2, true)
			must(t, v.OpenForWriting())
			must(t, v.CloseForWriting())
			must(t, v.CloseForWriting())
		}},
		{"a revert", 2, func(t *testing.T, v *Volume, s *Snapshot) { t.Helper(); must(t, v.Revert(t.Context(), s.id)) }},
		{"a revert that is refused", 1, func(t *testing.T, v *Volume, _ *Snapshot) {
			t.Helper()
			if err := v.Revert(t.Context(), uuid.New()); !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
		}},
		{"an extension", 2, func(t *testing.T, v *Volume, _ *Snapshot) { t.Helper(); must(t, v.Extend(8*bs)) }},
		{"an extension by nothing", 1, func(t *testing.T, v *Volume, _ *Snapshot) { t.Helper(); must(t, v.Extend(4*bs)) }},
		{"an extension below a client", 2, func(t *testing.T, v *Volume, _ *Snapshot) {
			t.Helper()
			must(t, v.whileOpen(func() error { return v.Extend(8 * bs) }))
		}},
		{"a snapshot", 1, func(t *testing.T, v *Volume, _ *Snapshot) { t.Helper(); snap(t, v, SnapshotOptions{}) }},
		{"a snapshot's end", 1, func(t *testing.T, v *Volume, s *Snapshot) { t.Helper(); must(t, v.DeleteSnapshot(s.id)) }},
		{"a trim that was put off", 3, func(t *testing.T, v *Volume, s *Snapshot) {
			t.Helper()
			must(t, v.whileOpen(func() error { return v.Trim(2*bs, bs) }))
			expectOpenings(t, v, 2, false)
			must(t, v.DeleteSnapshot(s.id))
			same(t, "trimmed", content(t, v, 4*bs)[2*bs:3*bs], make([]byte, bs))
		}},
		{"a trim that is still put off", 2, func(t *testing.T, v *Volume, s *Snapshot) {
			t.Helper()
			snap(t, v, SnapshotOptions{})
			must(t, v.whileOpen(func() error { return v.Trim(2*bs, bs) }))
			must(t, v.DeleteSnapshot(s.id))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := memOptions(vfs.NewMem(), newHost())
			v := newManaged(t, o, 4*bs)
			expectOpenings(t, v, 0, false)
			writeAs(t, v, fill(rand.New(rand.NewPCG(1, 1)), 4*bs), 0)
			s := snap(t, v, SnapshotOptions{})
			tc.do(t, v, s)
			expectOpenings(t, v, tc.want, false)
			for range 2 { // opening the folder is not an opening
				must(t, v.Close())
				var err error
				v, err = Open(o, "/state/vol")
				must(t, err)
				expectOpenings(t, v, tc.want, false)
			}
			must(t, v.Close())
		})
	}
}

// What an open finishes is written by it.
func TestFinishingIsAnOpening(t *testing.T) {
	for name, interrupt := range map[string]func(r *record){
		"revert":    func(r *record) { r.Reverting = &r.Snapshots[0].ID },
		"extension": func(r *record) { r.Extending = 8 * bs },
	} {
		t.Run(name, func(t *testing.T) {
			m := vfs.NewMem()
			o := memOptions(m, newHost())
			v := newManaged(t, o, 4*bs)
			snap(t, v, SnapshotOptions{})
			writeAs(t, v, []byte("new"), 0)
			must(t, v.Close())
			r, err := readRecord(m, "/state/vol")
			must(t, err)
			interrupt(&r)
			must(t, writeRecord(m, "/state/vol", &r))
			v, err = Open(o, "/state/vol")
			must(t, err)
			expectOpenings(t, v, 2, false)
			must(t, v.Close())
		})
	}
}

// An opening that cannot be recorded is none, whatever of it fails, and the next may be one.
func TestUnrecordedOpening(t *testing.T) {
	for _, op := range []string{"create", "write", "sync", "rename", "syncdir"} {
		for failures := range 4 {
			m := vfs.NewMem()
			o := memOptions(m, newHost())
			v := newManaged(t, o, 4*bs)
			writeAs(t, v, []byte("old"), 0)
			s := snap(t, v, SnapshotOptions{})
			left := failures
			m.FailOn(func(o, name string) error {
				if o == op && left > 0 && (strings.Contains(name, recordFile) || o == "syncdir") {
					left--
					return syscall.EIO
				}
				return nil
			})
			want := uint64(1)
			for i := range failures {
				err := v.OpenForWriting()
				if err == nil {
					must(t, v.CloseForWriting())
					want++
					break
				}
				if !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "volume vol") {
					t.Fatalf("%s, failure %d: %v", op, i, err)
				}
				expectOpenings(t, v, 1, false)
			}
			if failures > 0 && left == failures {
				t.Fatalf("%s: nothing was made to fail", op)
			}
			m.FailOn(nil)
			writeAs(t, v, []byte("new"), 0)
			want++
			must(t, v.Revert(t.Context(), s.id))
			want++
			expectOpenings(t, v, want, false)
			must(t, v.Close())
			v, err := Open(o, "/state/vol")
			must(t, err)
			expectOpenings(t, v, want, false)
			must(t, v.Close())
		}
	}
}

// Whatever reached the disk before a power failure was written under a count that
// is there after it, and no count that was shown is ever taken back.
func TestOpeningIsDurableFirst(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 5))
		m := vfs.NewMem()
		host := newHost()
		v := newManaged(t, memOptions(m, host), 4*bs)
		var crashed *vfs.Mem
		at := r.IntN(12)
		m.OnOp(func(string, string) {
			if at--; at == 0 {
				crashed = m.Crash(r)
			}
		})
		err := v.whileOpen(func() error { return second(v.WriteAt(bytes.Repeat([]byte("new"), bs), 0)) })
		if crashed == nil {
			must(t, err)
			crashed = m.Crash(r)
		}
		_ = v.Close() // its power is off
		host.reboot()
		v, err = Open(memOptions(crashed, host), "/state/vol")
		must(t, err)
		shown, _ := v.Openings()
		if shown == 0 && !bytes.Equal(content(t, v, 4*bs), make([]byte, 4*bs)) {
			t.Fatalf("seed %d: data of an opening that is not counted", seed)
		}
		again := crashed.Crash(r)
		_ = v.Close()
		host.reboot()
		v, err = Open(memOptions(again, host), "/state/vol")
		must(t, err)
		expectOpenings(t, v, shown, false)
		must(t, v.Close())
	}
}

// Nor is it taken back when the record was replaced, and nobody heard of it.
func TestShownOpeningsStay(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 6))
		m := vfs.NewMem()
		host := newHost()
		v := newManaged(t, memOptions(m, host), 4*bs)
		replaced := false
		m.FailOn(func(op, _ string) error {
			if replaced = replaced || op == "syncdir"; replaced {
				return syscall.EIO
			}
			return nil
		})
		if err := v.OpenForWriting(); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		m.FailOn(nil)
		must(t, v.Close())
		v, err := Open(memOptions(m, host), "/state/vol")
		must(t, err)
		shown, _ := v.Openings()
		if shown != 1 {
			t.Fatal("the record was not replaced")
		}
		again := m.Crash(r)
		_ = v.Close()
		host.reboot()
		v, err = Open(memOptions(again, host), "/state/vol")
		must(t, err)
		expectOpenings(t, v, shown, false)
		must(t, v.Close())
	}
}

// The last one to leave makes the data durable, or nobody calls the volume closed.
func TestLastWriterSyncs(t *testing.T) {
	m := vfs.NewMem()
	o := memOptions(m, newHost())
	v := newManaged(t, o, 4*bs)
	var syncs atomic.Int64
	m.OnOp(func(op, name string) {
		if op == "sync" && strings.HasSuffix(name, managedFile) {
			syncs.Add(1)
		}
	})
	must(t, v.OpenForWriting())
	must(t, v.OpenForWriting())
	must(t, second(v.WriteAt([]byte("new"), 0)))
	must(t, v.CloseForWriting())
	if syncs.Load() != 0 {
		t.Fatal("one who leaves others behind need not sync")
	}
	must(t, v.CloseForWriting())
	if syncs.Load() == 0 {
		t.Fatal("the data are not durable")
	}
	must(t, v.OpenForWriting())
	must(t, second(v.WriteAt([]byte("new"), 0)))
	failOn(m, "sync", managedFile, syscall.EIO)
	if err := v.CloseForWriting(); !errors.Is(err, ErrFailed) {
		t.Fatalf("close without a sync: %v", err)
	}
	m.FailOn(nil)
	expectOpenings(t, v, 2, true)
	must(t, v.Close())
	syncs.Store(0)
	v, err := Open(o, "/state/vol")
	must(t, err)
	expectOpenings(t, v, 2, false)
	if syncs.Load() == 0 {
		t.Fatal("what a killed process wrote is not made durable")
	}
	must(t, v.Close())
	failOn(m, "sync", managedFile, syscall.EIO)
	v, err = Open(o, "/state/vol")
	must(t, err)
	if !errors.Is(v.Failed(), ErrFailed) {
		t.Fatalf("an open that could not sync: %v", v.Failed())
	}
	m.FailOn(nil)
	must(t, v.Close())
}

func TestOpeningsOfRecords(t *testing.T) {
	m := vfs.NewMem()
	v := newManaged(t, memOptions(m, newHost()), 4*bs)
	must(t, v.Close())
	r, err := readRecord(m, "/state/vol")
	must(t, err)
	p, err := r.encode()
	must(t, err)
	for _, tc := range []struct {
		name, field string
		want        uint64
		err         error
	}{
		{"none, as of an older release", ``, 0, nil},
		{"some", `"openings": 7,`, 7, nil},
		{"the most", `"openings": 9007199254740992,`, maxOpenings, nil},
		{"too many", `"openings": 9007199254740993,`, 0, ErrDamaged},
		{"less than none", `"openings": -1,`, 0, ErrDamaged},
		{"no number", `"openings": "7",`, 0, ErrDamaged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			other := strings.Replace(string(p), `"openings": 0,`, tc.field, 1)
			if other == string(p) {
				t.Fatal("the record has no openings")
			}
			got, err := decodeRecord([]byte(other))
			if !errors.Is(err, tc.err) || err == nil && got.Openings != tc.want {
				t.Errorf("%d, %v", got.Openings, err)
			}
		})
	}
}

// Two looks that see the same count and nobody writing see the same data, while
// clients come and go, snapshots are taken and dropped, and a revert goes on.
func TestOpeningsTellOfEveryWrite(t *testing.T) {
	m := vfs.NewMem()
	v := newManaged(t, memOptions(m, newHost()), 4*bs)
	var written atomic.Uint64 // changes of the data that have begun
	m.OnOp(func(op, name string) {
		if strings.HasSuffix(name, managedFile) && (op == "write" || op == "zero" || op == "truncate") {
			written.Add(1)
		}
	})
	rounds := 300
	if testing.Short() {
		rounds = 100
	}
	var clients, looks sync.WaitGroup
	var done atomic.Bool
	for c := range 3 {
		clients.Go(func() {
			for i := range rounds {
				if err := v.whileOpen(func() error { return second(v.WriteAt([]byte{byte(i)}, int64(c)*bs)) }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	clients.Go(func() {
		for range rounds / 10 {
			ss, err := SnapshotGroup(testContext, []*Volume{v}, make([]SnapshotOptions, 1))
			if err == nil {
				err = v.whileOpen(func() error { return v.Trim(3*bs, bs) })
			}
			if err == nil {
				err = v.DeleteSnapshot(ss[0].id)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	var quiet int
	looks.Go(func() {
		for !done.Load() {
			n1, open1 := v.Openings()
			w1 := written.Load()
			runtime.Gosched()
			w2 := written.Load()
			n2, open2 := v.Openings()
			if open1 || open2 || n1 != n2 {
				continue
			}
			if quiet++; w1 != w2 {
				t.Errorf("written to while the count stayed %d", n1)
				return
			}
		}
	})
	clients.Wait()
	done.Store(true)
	looks.Wait()
	if n, open := v.Openings(); open || n == 0 {
		t.Errorf("in the end: %d, %v", n, open)
	}
	t.Logf("%d pairs of looks without a write", quiet)
	must(t, v.Close())
}
