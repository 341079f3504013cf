package blockmap

import (
	"strings"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// A resize that fails costs nothing but itself: the bits that were made room for
// are no part of the segment's checksum.
func TestFailedResizeIsNoDoubt(t *testing.T) {
	const page = pageBlocks * minBlockSize
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, how := range []string{"stop", "checkpoint"} {
		m := vfs.NewMem()
		must(m.Mkdir("/t", 0o700))
		o := TrackerOptions{VolumeID: [16]byte{1}, Size: page, BlockSize: minBlockSize}
		tr, err := CreateTracker(m, "/t", o)
		must(err)
		must(tr.AddCheckpoint("a"))
		must(tr.Mark(0, 1))
		m.FailOn(func(op, name string) error {
			if op == "create" && strings.Contains(name, listName) {
				return syscall.ENOSPC
			}
			return nil
		})
		if tr.Resize(3*page) == nil {
			t.Fatal("the resize did not fail")
		}
		m.FailOn(nil)
		if how == "checkpoint" {
			must(tr.AddCheckpoint("b"))
		}
		must(tr.Close())
		tr, err = OpenTracker(m, "/t", o)
		must(err)
		b, doubt, err := tr.Dirty("a", "")
		if err != nil || doubt != "" || !b.Test(0) {
			t.Errorf("%s: doubt %q, %v", how, doubt, err)
		}
		must(tr.Close())
	}
}
