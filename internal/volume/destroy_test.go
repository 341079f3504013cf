package volume

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// TestDestroyIsAllOrNothing lets the power fail at every step of it.
func TestDestroyIsAllOrNothing(t *testing.T) {
	whole, gone := 0, 0
	for at := 1; ; at++ {
		m := vfs.NewMem()
		o := memOptions(m, newHost())
		v := newManaged(t, o, 4*bs)
		want := fill(rand.New(rand.NewPCG(1, 2)), 4*bs)
		must(t, second(v.WriteAt(want, 0)))
		snap(t, v, SnapshotOptions{})
		must(t, v.Close())
		var after *vfs.Mem
		n := 0
		m.OnOp(func(string, string) {
			if n++; n == at {
				after = m.Crash(rand.New(rand.NewPCG(3, uint64(at))))
			}
		})
		err := Destroy(o, "/state/vol")
		if after == nil {
			must(t, err)
			break
		}
		o.FS = after
		must(t, Sweep(o, "/state"))
		if _, err = after.Stat("/state/vol"); errors.Is(err, fs.ErrNotExist) {
			gone++
		} else {
			whole++
			v, err = Open(o, "/state/vol")
			must(t, err)
			same(t, "a volume that was not destroyed", content(t, v, 4*bs), want)
			must(t, v.Close())
			must(t, Destroy(o, "/state/vol"))
		}
		expectNothing(t, after)
	}
	if whole == 0 || gone == 0 {
		t.Fatalf("%d times whole, %d times gone", whole, gone)
	}
}

// TestFailedCreateLeavesNothing lets one operation after the other fail.
func TestFailedCreateLeavesNothing(t *testing.T) {
	for at := 1; ; at++ {
		m := vfs.NewMem()
		must(t, m.Mkdir("/state", 0o700))
		n := 0
		m.FailOn(func(string, string) error {
			if n++; n == at {
				return syscall.EIO
			}
			return nil
		})
		v, err := Create(memOptions(m, newHost()), "/state/vol", Spec{Name: "vol", Size: 4 * bs, Managed: true})
		m.FailOn(nil)
		if err == nil { // it did without
			must(t, v.Close())
			if n < at {
				return
			}
			continue
		}
		must(t, Sweep(memOptions(m, newHost()), "/state"))
		expectNothing(t, m)
	}
}

func expectNothing(t *testing.T, m *vfs.Mem) {
	t.Helper()
	left, err := m.ReadDir("/state")
	must(t, err)
	var names []string
	for _, e := range left {
		names = append(names, filepath.Join("/state", e.Name()))
	}
	if len(names) > 0 {
		t.Fatalf("left: %s", strings.Join(names, ", "))
	}
}
