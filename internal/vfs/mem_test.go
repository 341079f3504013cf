package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// outcomes collects what a hundred power failures leave, as show tells it.
func outcomes(t *testing.T, m *Mem, show func(*Mem) string) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for seed := range uint64(100) {
		seen[show(m.Crash(rng(seed)))]++
	}
	return seen
}

func readAll(fsys FS, name string) string {
	b, err := ReadFile(fsys, name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return "nothing"
	}
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestCrashKeepsWhatWasSynced(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", "synced")
	check(t, f.Sync())
	check(t, m.SyncDir("/"))
	if seen := outcomes(t, m, func(m *Mem) string { return readAll(m, "f") }); len(seen) != 1 || seen["synced"] == 0 {
		t.Fatalf("after the crash: %v", seen)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, ErrCrashed) {
		t.Fatalf("write without power: %v", err)
	}
	if _, err := m.Stat("f"); !errors.Is(err, ErrCrashed) {
		t.Fatalf("stat without power: %v", err)
	}
}

func TestCrashLosesNames(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", "x")
	check(t, f.Sync()) // The content, not the name.
	if seen := outcomes(t, m, func(m *Mem) string { return readAll(m, "f") }); seen["x"] == 0 || seen["nothing"] == 0 {
		t.Fatalf("after the crash: %v", seen)
	}
}

func TestCrashTearsWrites(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", string(bytes.Repeat([]byte("a"), 1024)))
	check(t, f.Sync())
	check(t, m.SyncDir("/"))
	_, err := f.WriteAt(bytes.Repeat([]byte("b"), 1024), 0)
	check(t, err)
	seen := outcomes(t, m, func(m *Mem) string {
		b := readAll(m, "f")
		if len(b) != 1024 || len(bytes.Trim([]byte(b[:512]), b[:1])) > 0 || len(bytes.Trim([]byte(b[512:]), b[512:513])) > 0 {
			t.Fatalf("a torn sector, or another size: %d", len(b))
		}
		return b[:1] + b[512:513]
	})
	for _, want := range []string{"aa", "ab", "ba", "bb"} {
		if seen[want] == 0 {
			t.Errorf("never left %s: %v", want, seen)
		}
	}
}

func TestCrashOfSizes(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", "abc")
	check(t, f.Sync())
	check(t, m.SyncDir("/"))
	_, err := f.WriteAt([]byte("def"), 3)
	check(t, err)
	seen := outcomes(t, m, func(m *Mem) string { return readAll(m, "f") })
	for _, want := range []string{"abc", "abc\x00\x00\x00", "abcdef"} {
		if seen[want] == 0 {
			t.Errorf("never left %q: %v", want, seen)
		}
	}
	if len(seen) != 3 {
		t.Errorf("left %v", seen)
	}
}

// Within a directory a rename is atomic: one name or the other.
func TestCrashOfRename(t *testing.T) {
	m := NewMem()
	check(t, create(t, m, "new", "new").Sync())
	check(t, create(t, m, "f", "old").Sync())
	check(t, m.SyncDir("/"))
	check(t, m.Rename("new", "f"))
	seen := outcomes(t, m, func(m *Mem) string { return readAll(m, "f") + "," + readAll(m, "new") })
	if len(seen) != 2 || seen["old,new"] == 0 || seen["new,nothing"] == 0 {
		t.Fatalf("after the crash: %v", seen)
	}
}

func TestCrashOfRenameBetweenDirectories(t *testing.T) {
	between := func(synced string) map[string]int {
		m := NewMem()
		check(t, m.Mkdir("a", 0o755))
		check(t, m.Mkdir("b", 0o755))
		check(t, create(t, m, "a/f", "x").Sync())
		check(t, m.SyncDir("a"))
		check(t, m.SyncDir("/"))
		check(t, m.Rename("a/f", "b/f"))
		if synced != "" {
			check(t, m.SyncDir(synced))
		}
		return outcomes(t, m, func(m *Mem) string { return readAll(m, "a/f") + "," + readAll(m, "b/f") })
	}
	if seen := between(""); len(seen) != 2 || seen["x,nothing"] == 0 || seen["nothing,x"] == 0 {
		t.Errorf("unsynced: %v", seen)
	}
	if seen := between("b"); len(seen) != 2 || seen["x,x"] == 0 || seen["nothing,x"] == 0 {
		t.Errorf("target synced: %v", seen)
	}
	if seen := between("a"); len(seen) != 2 || seen["nothing,nothing"] == 0 || seen["nothing,x"] == 0 {
		t.Errorf("source synced: %v", seen)
	}
}

// Entry operations survive out of order.
func TestCrashReordersEntries(t *testing.T) {
	m := NewMem()
	check(t, create(t, m, "a", "a").Sync())
	check(t, create(t, m, "b", "b").Sync())
	seen := outcomes(t, m, func(m *Mem) string { return readAll(m, "a") + "," + readAll(m, "b") })
	if len(seen) != 4 {
		t.Fatalf("after the crash: %v", seen)
	}
}

func TestWriteFileIsAtomic(t *testing.T) {
	// Crash at every operation of a replacement, the last being none.
	for at := range 8 {
		m := NewMem()
		check(t, WriteFile(m, "f", []byte("old"), 0o600))
		var left []*Mem
		n := 0
		m.OnOp(func(string, string) {
			if n++; n == at+1 {
				for seed := range uint64(20) {
					left = append(left, m.Crash(rng(seed)))
				}
			}
		})
		err := WriteFile(m, "f", []byte("new"), 0o600)
		if left == nil {
			check(t, err)
			left = append(left, m.Crash(rng(1)))
		}
		for _, c := range left {
			if got := readAll(c, "f"); got != "new" && (got != "old" || err == nil) {
				t.Fatalf("crash at operation %d: content %q", at+1, got)
			}
		}
	}
}

func TestDsync(t *testing.T) {
	m := NewMem()
	f, err := m.OpenFile("f", os.O_RDWR|os.O_CREATE|syscall.O_DSYNC|syscall.O_DIRECT, 0o600)
	check(t, err)
	check(t, m.SyncDir("/"))
	_, err = f.WriteAt([]byte("durable"), 5000)
	check(t, err)
	seen := outcomes(t, m, func(m *Mem) string { return readAll(m, "f")[5000:] })
	if len(seen) != 1 || seen["durable"] == 0 {
		t.Fatalf("after the crash: %v", seen)
	}
}

// A crash in the middle of a durable write leaves any part of it.
func TestCrashDuringDsync(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(60) {
		m := NewMem()
		f, err := m.OpenFile("f", os.O_RDWR|os.O_CREATE|syscall.O_DSYNC, 0o600)
		check(t, err)
		_, err = f.WriteAt(make([]byte, 1024), 0)
		check(t, err)
		check(t, m.SyncDir("/"))
		var left *Mem
		m.OnOp(func(string, string) { left = m.Crash(rng(seed)) })
		if _, err := f.WriteAt(bytes.Repeat([]byte("x"), 1024), 0); !errors.Is(err, ErrCrashed) {
			t.Fatalf("write during the crash: %v", err)
		}
		b := readAll(left, "f")
		seen[b[:1]+b[512:513]]++
	}
	if len(seen) != 4 {
		t.Fatalf("after the crash: %v", seen)
	}
}

func TestFailedSyncDropsSectors(t *testing.T) {
	eio := syscall.EIO
	lost := 0
	for seed := range uint64(20) {
		m := NewMem()
		m.rng = rng(seed)
		f := create(t, m, "f", string(bytes.Repeat([]byte("a"), 4096)))
		check(t, f.Sync())
		check(t, m.SyncDir("/"))
		_, err := f.WriteAt(bytes.Repeat([]byte("b"), 4096), 0)
		check(t, err)
		m.FailAfter(1, eio)
		if err := f.Sync(); !errors.Is(err, eio) {
			t.Fatalf("injected fault: %v", err)
		}
		check(t, f.Sync()) // Succeeds, and repairs nothing.
		if readAll(m, "f")[0] != 'b' {
			t.Fatal("the cache forgot")
		}
		if bytes.ContainsRune([]byte(readAll(m.Crash(rng(seed)), "f")), 'a') {
			lost++
		}
	}
	if lost == 0 {
		t.Fatal("a failed sync never lost anything")
	}
}

func TestRewriteAfterFailedSync(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", string(bytes.Repeat([]byte("a"), 4096)))
	check(t, m.SyncDir("/"))
	m.FailAfter(1, syscall.EIO)
	if f.Sync() == nil {
		t.Fatal("no fault")
	}
	want := bytes.Repeat([]byte("c"), 4096)
	_, err := f.WriteAt(want, 0)
	check(t, err)
	check(t, f.Sync())
	if got := readAll(m.Crash(rng(3)), "f"); got != string(want) {
		t.Fatal("what was written and synced again is lost")
	}
}

func TestFaults(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", "")
	m.FailOn(func(op, name string) error {
		if op == "write" && name == "f" {
			return syscall.ENOSPC
		}
		return nil
	})
	n, err := f.WriteAt(make([]byte, 8192), 0)
	if !errors.Is(err, syscall.ENOSPC) || n >= 8192+1 {
		t.Fatalf("write: %d, %v", n, err)
	}
	check(t, f.Sync())
	m.FailAfter(2, io.ErrNoProgress)
	check(t, m.Mkdir("d", 0o755))
	if err := m.Mkdir("e", 0o755); !errors.Is(err, io.ErrNoProgress) {
		t.Fatalf("second operation: %v", err)
	}
	check(t, m.Mkdir("e", 0o755))
}

func TestHookSeesOperations(t *testing.T) {
	m := NewMem()
	var got []string
	m.OnOp(func(op, name string) { got = append(got, op+" "+name) })
	check(t, WriteFile(m, "f", []byte("x"), 0o600))
	_, err := m.Stat("f")
	check(t, err)
	want := []string{"create f.tmp", "write f.tmp", "sync f.tmp", "rename f", "syncdir ."}
	if !slices.Equal(got, want) {
		t.Fatalf("operations %q, want %q", got, want)
	}
}

// After a crash the content consists, sector by sector, of things that were
// written, and nothing older than the last sync.
func TestCrashModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		const sectors = 24
		m := NewMem()
		m.rng = rng(rapid.Uint64().Draw(r, "seed"))
		f, err := m.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			r.Fatal(err)
		}
		all := [sectors][]byte{} // what each sector may hold
		for i := range all {
			all[i] = []byte{0}
		}
		settle := func() {
			for i := range all {
				all[i] = all[i][len(all[i])-1:]
			}
		}
		if err = errors.Join(f.Truncate(sectors*512), f.Sync(), m.SyncDir("/")); err != nil {
			r.Fatal(err)
		}
		for i := range rapid.IntRange(1, 40).Draw(r, "ops") {
			first := rapid.IntRange(0, sectors-1).Draw(r, "first")
			n := rapid.IntRange(1, sectors-first).Draw(r, "n")
			v := byte(i + 1)
			switch rapid.IntRange(0, 5).Draw(r, "op") {
			case 0:
				v, err = 0, f.Zero(int64(first*512), int64(n*512), true)
			case 1:
				if err = f.Sync(); err == nil {
					settle()
				}
				n = 0
			default:
				_, err = f.WriteAt(bytes.Repeat([]byte{v}, n*512), int64(first*512))
			}
			if err != nil {
				r.Fatal(err)
			}
			for s := first; s < first+n; s++ {
				all[s] = append(all[s], v)
			}
		}
		got := readAll(m.Crash(rng(rapid.Uint64().Draw(r, "crash"))), "f")
		for s := range all {
			sector := got[s*512 : (s+1)*512]
			if !bytes.Contains(all[s], []byte{sector[0]}) || len(bytes.Trim([]byte(sector), sector[:1])) > 0 {
				r.Fatalf("sector %d holds %d, not one of %v", s, sector[0], all[s])
			}
		}
	})
}

func TestMemConcurrency(t *testing.T) {
	m := NewMem()
	f := create(t, m, "f", "")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(i)}, 10000)
			for j := range 50 {
				if _, err := f.WriteAt(p, int64(j*8000)); err != nil {
					t.Error(err)
				}
				if _, err := f.ReadAt(p, int64(i*1000)); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
				if err := f.Sync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkMemWrite(b *testing.B) {
	m := NewMem()
	f, err := m.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		if _, err := f.WriteAt(p, int64(i%512)<<16); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMemCrash(b *testing.B) {
	m := NewMem()
	f, err := m.OpenFile("f", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 32<<20), 0); err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(f.Sync(), m.SyncDir("/")); err != nil {
		b.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{2}, 1<<20), 0); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m.Crash(rng(1))
	}
}
