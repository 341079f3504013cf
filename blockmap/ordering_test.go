package blockmap

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// A region that leaves the log is cold before its bits are read: a mark that
// comes too late to be among them waits for a record.
func TestRegionIsColdBeforeItsBitsAreRead(t *testing.T) {
	o := testOptions(1 << 20)
	o.HotRegions = 1
	m, tr := newMemTracker(t, o)
	check(t, tr.AddCheckpoint("a"))
	check(t, tr.Mark(0, 1))
	looked := false
	m.OnOp(func(op, name string) {
		if strings.Contains(name, bitsPrefix) && op == "write" {
			looked = true
			if tr.regions.hot(0) {
				t.Error("the region is hot while its bits are being written")
			}
		}
	})
	if !tr.regions.hot(0) || tr.regions.hot(1) {
		t.Fatal("only the first region should be hot")
	}
	check(t, tr.Mark(testRegion, 1))
	if !looked {
		t.Fatal("no bits were written")
	}
}

// A record is torn, and the power fails again at every operation of the open
// that follows. None of it is taken for damage.
func TestTornRecordAndAgain(t *testing.T) {
	for seed := range uint64(30) {
		for at := 1; at <= 10; at++ {
			rng := source(seed<<8 + uint64(at))
			m, tr := newMemTracker(t, testOptions(1<<20))
			check(t, tr.AddCheckpoint("a"))
			check(t, tr.Mark(0, 1))
			left := crashAt(m, 1, rng)
			if err := tr.Mark(1<<19, 1); !errors.Is(err, vfs.ErrCrashed) {
				t.Fatalf("mark without power: %v", err)
			}
			m = left()
			left = crashAt(m, at, rng)
			if _, err := OpenTracker(m, "/t", testOptions(1<<20)); left() == nil {
				check(t, err)
				m.OnOp(nil)
				m = m.Crash(rng)
			} else {
				m = left()
			}
			tr, err := OpenTracker(m, "/t", testOptions(1<<20))
			check(t, err)
			if b, doubt, err := tr.Dirty("a", ""); err != nil || doubt != "" || !b.Test(0) {
				t.Fatalf("seed %d, operation %d: doubt %q, %v", seed, at, doubt, err)
			}
		}
	}
}

// Pages of which a write failed are written again before the log calls the bits
// exact.
func TestFailedPagesAreWrittenAgain(t *testing.T) {
	m, tr := newMemTracker(t, testOptions(historySize))
	check(t, tr.AddCheckpoint("a"))
	check(t, tr.Mark(0, 1))
	m.FailOn(func(op, name string) error {
		if op == "sync" && strings.Contains(name, bitsPrefix) {
			return syscall.EIO
		}
		return nil
	})
	if err := tr.Mark(0, historySize); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a large mark on a failing disk: %v", err)
	}
	if err := tr.AddCheckpoint("b"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a checkpoint on a failing disk: %v", err)
	}
	m.FailOn(nil)
	check(t, tr.Mark(100, 1))
	check(t, tr.Close())
	tr, err := OpenTracker(m.Crash(source(1)), "/t", testOptions(historySize))
	check(t, err)
	if b, doubt, err := tr.Dirty("a", ""); err != nil || doubt != "" || b.Count() != b.Len() {
		t.Fatalf("%d blocks, doubt %q, %v", b.Count(), doubt, err)
	}
}

// A log that cannot be written is replaced, and marks go on.
func TestLogIsReplacedAfterAnError(t *testing.T) {
	m, tr := newMemTracker(t, testOptions(1<<20))
	check(t, tr.AddCheckpoint("a"))
	check(t, tr.Mark(0, 1))
	m.FailAfter(1, syscall.EIO)
	check(t, tr.Mark(1<<19, 1))
	m.FailOn(func(string, string) error { return syscall.ENOSPC })
	if err := tr.Mark(1<<18, 1); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a cold mark without a log: %v", err)
	}
	check(t, tr.Mark(1<<19+600, 1)) // Hot regions need none.
	m.FailOn(nil)
	check(t, tr.Mark(1<<18, 1))
	tr, err := OpenTracker(m.Crash(source(1)), "/t", testOptions(1<<20))
	check(t, err)
	b, doubt, err := tr.Dirty("a", "")
	if err != nil || doubt != "" || !b.Test(0) || !b.Test(1<<19/testBlock+1) || !b.Test(1<<18/testBlock) {
		t.Fatalf("doubt %q, %v", doubt, err)
	}
}

// When nobody knows which list is durable, no mark is taken any more.
func TestAmbiguousListStopsMarks(t *testing.T) {
	m, tr := newMemTracker(t, testOptions(1<<20))
	check(t, tr.AddCheckpoint("a"))
	check(t, tr.Mark(0, 1))
	renamed := false
	m.FailOn(func(op, name string) error {
		renamed = renamed || op == "rename" && strings.HasSuffix(name, listName)
		if renamed && op != "rename" {
			return syscall.EIO
		}
		return nil
	})
	if err := tr.AddCheckpoint("b"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("a checkpoint on a failing disk: %v", err)
	}
	if err := tr.Mark(0, 1); err == nil {
		t.Fatal("a mark was taken")
	}
	if b, doubt, err := tr.Dirty("a", ""); err != nil || doubt == "" || b.Count() != b.Len() {
		t.Fatalf("doubt %q, %v", doubt, err)
	}
	for seed := range uint64(20) {
		after, err := OpenTracker(m.Crash(source(seed)), "/t", testOptions(1<<20))
		check(t, err)
		if b, _, err := after.Dirty("a", ""); err != nil || !b.Test(0) {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}
