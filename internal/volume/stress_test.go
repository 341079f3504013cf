package volume

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// TestStress runs writers beside snapshots that are taken, read again and again,
// and deleted. Writers own blocks and pass a turnstile, so that the test knows the
// content at the instant of each snapshot.
func TestStress(t *testing.T) {
	stress(t, func(t *testing.T, s *stressed) {
		t.Helper()
		var snappers sync.WaitGroup
		for i := range 2 {
			snappers.Go(func() { s.snapper(t, i == 0) })
		}
		snappers.Wait()
	})
}

const stressBlocks = 48

type stressed struct {
	v      *Volume
	turn   sync.RWMutex // held shared by a write and its note, exclusively around the instant
	shadow []atomic.Uint64
	stop   atomic.Bool
}

// stress runs f, which leaves no snapshot, beside writers: on a file system in memory, and
// on a disk.
func stress(t *testing.T, f func(*testing.T, *stressed)) {
	t.Helper()
	for name, o := range map[string]Options{
		"memory": {FS: vfs.NewMem()},
		"disk":   {PreimageReserve: -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Host = newHost()
			beside(t, o, filepath.Join(t.TempDir(), "vol"), func(s *stressed) { f(t, s) })
		})
	}
}

// beside is stress on one file system.
func beside(t *testing.T, o Options, dir string, f func(*stressed)) {
	t.Helper()
	v, err := Create(o, dir, Spec{Name: "vol", Size: stressBlocks * bs, Managed: true})
	must(t, err)
	s := &stressed{v: v, shadow: make([]atomic.Uint64, stressBlocks*bs/512)}
	var wg sync.WaitGroup
	const writers = 4
	for w := range writers {
		wg.Go(func() { s.writer(t, w, writers) })
	}
	f(s)
	s.stop.Store(true)
	wg.Wait()
	if used := v.space.used.Load(); used != 0 {
		t.Errorf("%d bytes of preimages without a snapshot", used)
	}
	must(t, v.Close())
}

// writer writes sectors w, w+n, … alone or in runs of a whole block.
func (s *stressed) writer(t *testing.T, w, n int) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(w), 1))
	for k := uint64(1); !s.stop.Load(); k++ {
		val := k<<8 | uint64(w)
		sector := r.IntN(len(s.shadow)/n)*n + w
		s.turn.RLock()
		var err error
		if r.IntN(10) == 0 {
			err = s.v.Zero(int64(sector)*512, 512, true)
			val = 0
		} else {
			_, err = s.v.WriteAt(bytes.Repeat(binary.BigEndian.AppendUint64(nil, val), 64), int64(sector)*512)
		}
		s.shadow[sector].Store(val)
		s.turn.RUnlock()
		if err != nil {
			t.Error(err)
			return
		}
	}
}

func (s *stressed) snapper(t *testing.T, temporary bool) {
	t.Helper()
	for range 15 {
		sn, err := s.take(t, temporary)
		if err != nil {
			t.Error(err)
			return
		}
		for range 3 {
			if err := compareSectors(sn.Snapshot, sn.want); err != nil {
				t.Error(err)
				return
			}
		}
		if err := s.v.DeleteSnapshot(sn.id); err != nil {
			t.Error(err)
			return
		}
		if _, err := sn.ReadAt(make([]byte, 512), 0); err == nil {
			t.Error("a deleted snapshot can be read")
		}
	}
}

// taken is a snapshot, and what its sectors are to be.
type taken struct {
	*Snapshot
	want []uint64
}

func (s *stressed) take(t *testing.T, temporary bool) (taken, error) {
	t.Helper()
	s.turn.Lock()
	defer s.turn.Unlock()
	ss, err := SnapshotGroup(t.Context(), []*Volume{s.v}, []SnapshotOptions{{Temporary: temporary}})
	if err != nil {
		return taken{}, err
	}
	want := make([]uint64, len(s.shadow))
	for i := range want {
		want[i] = s.shadow[i].Load()
	}
	return taken{ss[0], want}, nil
}

func compareSectors(s *Snapshot, want []uint64) error {
	const step = 3 * bs / 2
	for off := int64(0); off < s.Size(); off += step {
		if err := compareAt(s, want, off, min(step, s.Size()-off)); err != nil {
			return err
		}
	}
	return nil
}

// compareAt compares some sectors of a snapshot with what they are to be.
func compareAt(s *Snapshot, want []uint64, off, n int64) error {
	p := make([]byte, n)
	if _, err := s.ReadAt(p, off); err != nil {
		return err
	}
	for i := 0; i < len(p); i += 8 {
		sector := (off + int64(i)) / 512
		if got := binary.BigEndian.Uint64(p[i:]); got != want[sector] {
			return fmt.Errorf("snapshot %s: sector %d (block %d) is %#x, want %#x", s.id, sector, sector*512/bs, got, want[sector])
		}
	}
	return nil
}

// TestGroupInstant takes snapshots of two volumes while one writer writes to
// them in turn: the second never knows more than the first.
func TestGroupInstant(t *testing.T) {
	fsys := vfs.NewMem()
	o := memOptions(fsys, newHost())
	var vols []*Volume
	for i := range 2 {
		v, err := Create(o, fmt.Sprintf("/state/v%d", i), Spec{Name: fmt.Sprint("v", i), Size: bs, Managed: true})
		must(t, err)
		vols = append(vols, v)
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := uint64(1); !stop.Load(); n++ {
			for _, v := range vols {
				if _, err := v.WriteAt(binary.BigEndian.AppendUint64(nil, n), 0); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for range 40 {
		ss, err := SnapshotGroup(t.Context(), vols, make([]SnapshotOptions, 2))
		must(t, err)
		var got [2]uint64
		for i, s := range ss {
			p := make([]byte, 8)
			_, err := s.ReadAt(p, 0)
			must(t, err)
			got[i] = binary.BigEndian.Uint64(p)
			must(t, vols[i].DeleteSnapshot(s.id))
		}
		if got[0] != got[1] && got[0] != got[1]+1 {
			t.Errorf("the first volume is at write %d, the second at %d", got[0], got[1])
		}
	}
	stop.Store(true)
	wg.Wait()
	for _, v := range vols {
		must(t, v.Close())
	}
}
