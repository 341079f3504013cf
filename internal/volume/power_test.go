package volume

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

var powerSeeds = flag.Int("power.seeds", 4, "workloads whose every operation is a power failure")

// powered is a workload that remembers what a power failure may leave. Every
// sector is filled with the number of the write that it comes from.
type powered struct {
	opts Options
	r    *rand.Rand
	v    *Volume
	n    uint32

	now   []uint32   // stamps as the volume has them
	maybe [][]uint32 // further stamps that may be on the disk
	trims map[int]bool
	snaps map[uuid.UUID][]uint32
	marks map[string][]uint32
	ids   []uuid.UUID // of snaps, in order

	coming  uuid.UUID  // a snapshot being taken, its content is now
	before  [][]uint32 // while a Revert runs: what maybe was
	leaving uuid.UUID  // a snapshot being deleted
	growing int        // sectors after an Extend that is running
}

// TestPowerLoss turns the power off at every operation of a workload. What was
// flushed is there, no snapshot changed, and no change is missed.
func TestPowerLoss(t *testing.T) {
	for seed := range uint64(*powerSeeds) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			ops := powerRun(t, seed, 0)
			step := 2
			if testing.Short() {
				step = 11
			}
			for at := 1 + int(seed)%step; at <= ops; at += step {
				powerRun(t, seed, at)
				if t.Failed() {
					t.Fatalf("seed %d, power lost at operation %d of %d", seed, at, ops)
				}
			}
		})
	}
}

// powerRun runs the workload of a seed and loses the power at operation at, if
// that is not 0. It returns the number of operations.
func powerRun(t *testing.T, seed uint64, at int) int {
	t.Helper()
	host := newHost()
	m := vfs.NewMem()
	p := &powered{
		opts: memOptions(m, host), r: rand.New(rand.NewPCG(seed, 7)), trims: map[int]bool{},
		snaps: map[uuid.UUID][]uint32{}, marks: map[string][]uint32{},
	}
	p.v = newManaged(t, p.opts, 5*bs+3*512)
	p.resize(int(p.v.Size() / 512))
	var mu sync.Mutex
	var after *vfs.Mem
	ops := 0
	m.OnOp(func(string, string) {
		mu.Lock()
		defer mu.Unlock()
		ops++
		if ops == at && after == nil {
			after = m.Crash(rand.New(rand.NewPCG(seed, uint64(at))))
		}
	})
	for range 30 {
		if err := p.step(); err != nil {
			if at == 0 {
				t.Fatal(err)
			}
			break
		}
	}
	err := p.v.Close()
	mu.Lock()
	defer mu.Unlock()
	if at == 0 {
		must(t, err)
		return ops
	}
	if after == nil { // a goroutine in the background makes the count vary a little
		return ops
	}
	host.reboot()
	p.opts.FS = after
	p.recover(t)
	return ops
}

func (p *powered) resize(sectors int) {
	p.now = append(p.now, make([]uint32, sectors-len(p.now))...)
	p.maybe = append(p.maybe, make([][]uint32, sectors-len(p.maybe))...)
}

// step does one random thing. What may be on the disk from now on is noted
// before it is done, what must be there after.
func (p *powered) step() error {
	switch k := p.r.IntN(22); {
	case k >= 20:
		return p.checkpoint()
	case k < 8:
		return p.write()
	case k < 10:
		return p.flush()
	case k < 12:
		return p.trim()
	case k < 15:
		return p.snapshot()
	case k < 17:
		return p.delete()
	case k < 18:
		return p.revert()
	case k < 19:
		return p.extend()
	}
	return p.reopen()
}

func (p *powered) write() error {
	first := p.r.IntN(len(p.now))
	n := 1 + p.r.IntN(min(len(p.now)-first, 200))
	p.n++
	buf := stamps(slices.Repeat([]uint32{p.n}, n))
	for s := first; s < first+n; s++ {
		p.maybe[s] = append(p.maybe[s], p.now[s], p.n)
		delete(p.trims, s)
	}
	if _, err := p.v.WriteAt(buf, int64(first)*512); err != nil {
		return err
	}
	for s := first; s < first+n; s++ {
		p.now[s] = p.n
	}
	return nil
}

func (p *powered) flush() error {
	if err := p.v.Flush(); err != nil {
		return err
	}
	for s := range p.maybe {
		p.maybe[s] = nil
	}
	return nil
}

func (p *powered) trim() error {
	first := p.r.IntN(len(p.now))
	n := 1 + p.r.IntN(len(p.now)-first)
	for s := first; s < first+n; s++ {
		p.maybe[s] = append(p.maybe[s], p.now[s])
		p.trims[s] = true // now or later it reads as zeros
	}
	if err := p.v.Trim(int64(first)*512, int64(n)*512); err != nil {
		return err
	}
	return p.look()
}

// look reads what trims left.
func (p *powered) look() error {
	buf := make([]byte, len(p.now)*512)
	if _, err := p.v.ReadAt(buf, 0); err != nil {
		return err
	}
	for s := range p.now {
		p.now[s] = binary.BigEndian.Uint32(buf[s*512:])
	}
	return nil
}

func (p *powered) snapshot() error {
	if len(p.snaps) > 4 {
		return nil
	}
	p.n++
	o := SnapshotOptions{ID: uuid.New(), Temporary: p.r.IntN(3) == 0, Checkpoint: fmt.Sprint("c", p.n)}
	p.coming = o.ID
	if _, err := SnapshotGroup(testContext, []*Volume{p.v}, []SnapshotOptions{o}); err != nil {
		return err
	}
	p.coming = uuid.Nil
	p.marks[o.Checkpoint] = slices.Clone(p.now)
	if !o.Temporary {
		p.snaps[o.ID] = slices.Clone(p.now)
		p.ids = append(p.ids, o.ID)
	}
	for s := range p.maybe { // a snapshot syncs the data file
		p.maybe[s] = nil
	}
	return nil
}

// checkpoint makes a position without a snapshot, or drops one.
func (p *powered) checkpoint() error {
	if len(p.marks) > 3 {
		names := slices.Sorted(maps.Keys(p.marks))
		name := names[p.r.IntN(len(names))]
		delete(p.marks, name) // what is dirty since it is not looked at any more
		return p.v.DropCheckpoint(name)
	}
	p.n++
	name := fmt.Sprint("c", p.n)
	if err := p.v.AddCheckpoint(name); err != nil {
		return err
	}
	p.marks[name] = slices.Clone(p.now)
	for s := range p.maybe { // it syncs the data file
		p.maybe[s] = nil
	}
	return nil
}

func (p *powered) delete() error {
	all := p.v.Snapshots()
	if len(all) == 0 {
		return nil
	}
	p.leaving = all[p.r.IntN(len(all))].id
	for s := range p.trims {
		p.maybe[s] = append(p.maybe[s], p.now[s])
	}
	if err := p.v.DeleteSnapshot(p.leaving); err != nil {
		return err
	}
	delete(p.snaps, p.leaving)
	p.ids = slices.DeleteFunc(p.ids, func(id uuid.UUID) bool { return id == p.leaving })
	p.leaving = uuid.Nil
	return p.look()
}

func (p *powered) revert() error {
	if len(p.ids) == 0 {
		return nil
	}
	id := p.ids[p.r.IntN(len(p.ids))]
	was := append(slices.Clone(p.snaps[id]), make([]uint32, len(p.now)-len(p.snaps[id]))...)
	p.before = slices.Clone(p.maybe)
	for s := range p.now {
		p.maybe[s] = []uint32{was[s]}
	}
	if err := p.v.Revert(testContext, id); err != nil {
		return err
	}
	p.before = nil
	copy(p.now, was)
	clear(p.trims)
	for s := range p.maybe {
		p.maybe[s] = nil
	}
	return nil
}

func (p *powered) extend() error {
	p.growing = len(p.now) + p.r.IntN(150)
	if err := p.v.Extend(int64(p.growing) * 512); err != nil {
		return err
	}
	p.resize(p.growing)
	p.growing = 0
	return nil
}

func (p *powered) reopen() error {
	if err := p.v.Close(); err != nil {
		return err
	}
	clear(p.trims)
	v, err := Open(p.opts, "/state/vol")
	if err != nil {
		return err
	}
	p.v = v
	for s := range p.maybe {
		p.maybe[s] = nil
	}
	return nil
}

// recover opens what the power failure left and checks it; then it overwrites
// everything and checks the snapshots again.
func (p *powered) recover(t *testing.T) {
	t.Helper()
	v, err := Open(p.opts, "/state/vol")
	must(t, err)
	if f := v.Failed(); f != nil {
		t.Fatal(f)
	}
	p.v = v
	if sectors := int(v.Size() / 512); sectors != len(p.now) {
		if sectors != p.growing {
			t.Fatalf("%d sectors, want %d or %d", sectors, len(p.now), p.growing)
		}
		p.resize(sectors)
	}
	if v.data.size != v.Size() {
		t.Fatalf("the data file has %d bytes, the volume %d", v.data.size, v.Size())
	}
	live := readStamps(t, v, v.Size())
	p.checkReverted(live)
	for s, got := range live {
		if got != p.now[s] && !slices.Contains(p.maybe[s], got) && (!p.trims[s] || got != 0) {
			t.Fatalf("sector %d (block %d) holds write %d, may hold %d or %v", s, s*512/bs, got, p.now[s], p.maybe[s])
		}
	}
	p.checkSnapshots(t)
	p.checkDirty(t, live)
	_, err = v.WriteAt(stamps(slices.Repeat([]uint32{1 << 30}, len(p.now))), 0)
	must(t, err)
	p.checkSnapshots(t)
	must(t, v.Close())
	p.v, err = Open(p.opts, "/state/vol")
	must(t, err)
	p.checkSnapshots(t)
	must(t, p.v.Close())
}

func (p *powered) checkSnapshots(t *testing.T) {
	t.Helper()
	found := map[uuid.UUID]bool{}
	for _, s := range p.v.Snapshots() {
		found[s.id] = true
		want, ok := p.snaps[s.id]
		if s.id == p.coming {
			want, ok = p.now[:s.size/512], true
			p.snaps[s.id], p.coming = slices.Clone(want), uuid.Nil
		}
		if !ok {
			t.Fatalf("there is a snapshot %s that was deleted or never taken", s.id)
		}
		for i, got := range readStamps(t, s, s.size) {
			if got != want[i] {
				t.Fatalf("snapshot %s: sector %d (block %d) holds write %d, want %d", s.id, i, i*512/bs, got, want[i])
			}
		}
	}
	for _, c := range p.v.Checkpoints() {
		if id, ok := strings.CutPrefix(c.Name, checkpointPrefix); ok && !found[uuid.MustParse(id)] {
			t.Fatalf("there is a position %s without a snapshot", c.Name)
		}
	}
	for _, id := range p.ids {
		if !found[id] && id != p.leaving {
			t.Fatalf("snapshot %s is gone", id)
		}
	}
}

// checkReverted decides whether a Revert under way has happened: in full or not at all.
func (p *powered) checkReverted(live []uint32) {
	if p.before == nil {
		return
	}
	done := true
	for s, got := range live {
		done = done && got == p.maybe[s][0]
	}
	if done {
		for s := range p.now {
			p.now[s] = p.maybe[s][0]
		}
		clear(p.trims)
	} else {
		p.maybe = p.before
	}
}

// checkDirty checks that whatever differs from a checkpoint is called dirty.
func (p *powered) checkDirty(t *testing.T, live []uint32) {
	t.Helper()
	for name, was := range p.marks {
		bits, doubt, err := p.v.Dirty(name, "")
		must(t, err)
		if doubt != "" {
			t.Fatalf("checkpoint %s is in doubt: %s", name, doubt)
		}
		for s := range was {
			if b := int64(s) * 512 / bs; live[s] != was[s] && !bits.Test(b) {
				t.Fatalf("sector %d changed since checkpoint %s (write %d, now %d), and block %d is not dirty", s, name, was[s], live[s], b)
			}
		}
	}
}

func stamps(l []uint32) []byte {
	p := make([]byte, len(l)*512)
	for i := range len(p) / 4 {
		binary.BigEndian.PutUint32(p[i*4:], l[i/128])
	}
	return p
}

// readStamps reads sectors and checks that each comes from one write.
func readStamps(t *testing.T, r io.ReaderAt, size int64) []uint32 {
	t.Helper()
	p := content(t, r, size)
	l := make([]uint32, size/512)
	for i := range len(p) / 4 {
		n := binary.BigEndian.Uint32(p[i*4:])
		if i%128 == 0 {
			l[i/128] = n
		} else if l[i/128] != n {
			t.Fatalf("sector %d is torn", i/128)
		}
	}
	return l
}
