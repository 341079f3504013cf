package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/guestvm"
	"github.com/cairnbackup/cairn/internal/needs"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/nbd"
)

const (
	spotSize   = 2 * blockmap.DefaultBlockSize
	spots      = 24       // of a volume, the rest of which is not written
	spotStride = 20 << 20 // so that each is in a region of its own of the record of changes
	lossVolume = spots * spotStride
)

// TestGuestPowerLoss runs a data plane in a real guest, with a volume in a file on ext4
// and one that is a disk, under random writes, zeros, trims, flushes and checkpoints, and
// cuts the power at a random request to the disks: these have write caches, which are
// lost, and qemu is killed. What must hold when the guest has started again: every flushed
// sector is there, every checkpoint that was told of too, and every block that is not as
// it was at a checkpoint counts as changed since.
func TestGuestPowerLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests: not with -short")
	}
	t.Parallel()
	n := rounds(t, 3)
	g := newPoweredGuest(t)
	for i := range n + 1 {
		if err := g.live(i == 0, i == n); err != nil {
			t.Fatalf("round %d: %v\nthe data plane said:\n%s", i, err, g.said.String())
		}
	}
	t.Logf("%d power failures, %d of them before the check after the last one was done: %+v", n, g.early, g.total)
	if g.total.Exact == 0 || g.total.Clean == 0 || g.total.Changed == 0 {
		t.Errorf("too little happened for the test to mean something")
	}
}

// lossTally counts what a test went through: blocks that were compared with those of a
// checkpoint, and were not marked, or had changed; checkpoints with and without doubt.
type lossTally struct{ Writes, Flushes, Zeros, Trims, Checkpoints, Exact, Doubted, Clean, Changed int }

// poweredGuest is a machine over several power failures.
type poweredGuest struct {
	t           *testing.T
	rng         *rand.Rand
	machine     *guestvm.Machine
	power       *supply
	disk, other *medium
	volumes     []*lossVol
	said        syncBuffer
	early       int

	mu    sync.Mutex
	total lossTally

	vm   *guestvm.VM // of this life
	data *serve.Client
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// lossVol is a volume, and what it must hold.
type lossVol struct {
	name  string
	lanes []*lossLane
	marks []*mark
	made  int
	hold  sync.RWMutex // held shared around each request, exclusively for a checkpoint
}

// mark is a checkpoint.
type mark struct {
	name  string
	image []byte // what the volume held
	told  bool   // that it was made
}

// lossLane is a writer with one request in flight and some spots of its own.
type lossLane struct {
	content
	first int64 // spot
	rng   *rand.Rand
}

// at is where in the volume an offset of the lane's content is.
func (l *lossLane) at(off int64) int64 {
	return (l.first+off/spotSize)*spotStride + off%spotSize
}

func newPoweredGuest(t *testing.T) *poweredGuest {
	t.Helper()
	mke2fs := needs.Tool(t, "mke2fs", "e2fsprogs")
	g := &poweredGuest{t: t, rng: seed(t), power: newSupply()}
	g.disk, g.other = newMedium(t, g.power, 48<<20), newMedium(t, g.power, lossVolume)
	g.machine = guestvm.New(t, guestvm.Options{
		Files:  map[string]string{"/bin/cairn": guestvm.Build(t, "github.com/cairnbackup/cairn/cmd/cairn")},
		Args:   append(guestvm.NBDDisk("d0", g.disk.socket, "disk"), guestvm.NBDDisk("d1", g.other.socket, "disk")...),
		Memory: 256,
	})
	image := filepath.Join(t.TempDir(), "image")
	if out, err := exec.CommandContext(t.Context(), mke2fs, "-q", "-t", "ext4", image, "48M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	g.disk.fill(t, image)
	for _, name := range []string{"file", "device"} {
		v := &lossVol{name: name}
		const lanes = 2
		for i := range int64(lanes) {
			v.lanes = append(v.lanes, &lossLane{content: newContent(spots / lanes * spotSize), first: i * spots / lanes})
		}
		g.volumes = append(g.volumes, v)
	}
	return g
}

// live starts the machine, makes the volumes if it is the first time, checks everything,
// and unless it is the last time works until the power fails.
func (g *poweredGuest) live(first, last bool) error {
	if !first && !last && g.rng.IntN(4) == 0 {
		g.power.failAfter(1 + g.rng.IntN(60)) // while it starts, perhaps
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), 3*time.Minute)
	defer cancel()
	g.vm = g.machine.Boot()
	ended := make(chan error, 1)
	go func() { ended <- g.work(ctx, first, last) }()
	var err error
	select {
	case <-g.power.failure():
		g.vm.Kill()
		err = <-ended
	case err = <-ended:
		g.power.cut()
		g.vm.Kill()
	}
	if ctx.Err() != nil {
		err = errors.Join(err, errors.New("the power does not fail"))
	} else if !errors.Is(err, errWrong) {
		err = nil // for want of power
	}
	g.power.restore(g.rng, g.disk, g.other)
	return err
}

// work is the life of the machine. An error that is not errWrong comes of a lack of power.
func (g *poweredGuest) work(ctx context.Context, first, last bool) error {
	checked := false
	defer func() {
		if !checked {
			g.early++
		}
	}()
	if err := g.startServe(ctx); err != nil {
		return g.verdict(err)
	}
	for _, v := range g.volumes {
		f := g.check
		if first {
			f = g.create
		}
		if err := f(ctx, v); err != nil {
			return g.verdict(err)
		}
	}
	checked = true
	if last {
		return nil
	}
	g.power.failAfter(1 + g.rng.IntN(3000))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var all []<-chan error
	for _, v := range g.volumes {
		for _, l := range v.lanes {
			l.rng = rand.New(rand.NewPCG(g.rng.Uint64(), 3))
			end := make(chan error, 1)
			all = append(all, end)
			go func() {
				defer stop()
				end <- g.verdict(g.write(ctx, v, l))
			}()
		}
	}
	var errs []error
	for _, end := range all {
		errs = append(errs, <-end)
	}
	return errors.Join(errs...)
}

// verdict makes of an error that does not come of a lack of power one that is errWrong.
func (g *poweredGuest) verdict(err error) error {
	if g.power.out() || errors.Is(err, errWrong) || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w: %w", errWrong, err)
}

// startServe starts the data plane in the guest.
func (g *poweredGuest) startServe(ctx context.Context) error {
	c, err := g.vm.Begin("mount -t ext4 -o discard /dev/vda /tmp && exec cairn serve --state /tmp/state --control /run/serve.sock --nbd-dir /run/nbd", &g.said)
	if err != nil {
		return err
	}
	g.data = serve.NewClient(g.vm.Forward("/run/serve.sock"))
	return poll(ctx, 50*time.Millisecond, func() (bool, error) {
		select {
		case <-c.Done():
			return false, fmt.Errorf("the data plane has ended: %w", c.Wait())
		default:
		}
		_, err := g.data.Status(ctx)
		return err == nil, nil
	})
}

func (g *poweredGuest) create(ctx context.Context, v *lossVol) error {
	req := serve.CreateVolume{Name: v.name, Size: lossVolume}
	if v.name == "device" {
		req = serve.CreateVolume{Name: v.name, Device: "/dev/vdb"}
	}
	if _, err := g.data.CreateVolume(ctx, req); err != nil {
		return err
	}
	return g.checkpoint(ctx, v, g.rng)
}

// dial connects to a volume in the guest, to its read-only door if door is "@ro".
func (g *poweredGuest) dial(ctx context.Context, v *lossVol, door string, contexts ...string) (*nbd.Client, error) {
	info, err := g.data.Volume(ctx, v.name)
	if err != nil {
		return nil, err
	}
	return nbd.Dial(ctx, nbd.URI(g.vm.Forward(info.Socket), v.name+door), nbd.ClientOptions{Contexts: contexts})
}

// write makes random requests until one fails, for want of power.
func (g *poweredGuest) write(ctx context.Context, v *lossVol, l *lossLane) error {
	c, err := g.dial(ctx, v, "")
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		if l.rng.IntN(30) == 0 {
			err = g.checkpoint(ctx, v, l.rng)
		} else {
			v.hold.RLock()
			err = g.request(ctx, c, l)
			v.hold.RUnlock()
		}
		if err != nil {
			return err
		}
	}
}

// request makes one request within one spot.
func (g *poweredGuest) request(ctx context.Context, c *nbd.Client, l *lossLane) error {
	sizes := []int64{sector, 4096, 4096, 4096, 65536}
	n := sizes[l.rng.IntN(len(sizes))]
	off := l.rng.Int64N(int64(len(l.shadow))/spotSize)*spotSize + l.rng.Int64N((spotSize-n)/sector+1)*sector
	data := make([]byte, n)
	switch k := l.rng.IntN(20); {
	case k < 2:
		if err := c.Flush(ctx); err != nil {
			return err
		}
		l.settled()
		g.count(func(t *lossTally) { t.Flushes++ })
		return nil
	case k < 4:
		l.begin(off, data)
		if err := c.Zero(ctx, l.at(off), n, k == 2); err != nil {
			return err
		}
		g.count(func(t *lossTally) { t.Zeros++ })
	case k < 6:
		l.begin(off, data)
		if err := c.Trim(ctx, l.at(off), n); err != nil {
			return err
		}
		if err := c.ReadAt(ctx, data, l.at(off)); err != nil { // what it is now is the volume's choice
			return err
		}
		g.count(func(t *lossTally) { t.Trims++ })
	default:
		fill(data, l.rng)
		l.begin(off, data)
		if err := c.WriteAt(ctx, data, l.at(off), k == 6); err != nil {
			return err
		}
		g.count(func(t *lossTally) { t.Writes++ })
		defer func() {
			if k == 6 {
				l.settledRange(off, n)
			}
		}()
	}
	l.wrote(off, data)
	return nil
}

func (g *poweredGuest) count(f func(*lossTally)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f(&g.total)
}

// checkpoint makes a checkpoint of the present, with or without a snapshot, and drops the
// oldest when there are many.
func (g *poweredGuest) checkpoint(ctx context.Context, v *lossVol, rng *rand.Rand) error {
	v.hold.Lock()
	defer v.hold.Unlock()
	if len(v.marks) > 3 {
		oldest := v.marks[0]
		v.marks = v.marks[1:]
		if err := g.data.DropCheckpoint(ctx, v.name, oldest.name); err != nil {
			return err
		}
	}
	v.made++
	m := &mark{name: fmt.Sprintf("c%d", v.made)}
	for _, l := range v.lanes {
		m.image = append(m.image, l.shadow...)
	}
	v.marks = append(v.marks, m)
	if rng.IntN(2) == 0 {
		if _, err := g.data.CreateCheckpoint(ctx, v.name, m.name); err != nil {
			return err
		}
		m.told = true
	} else {
		s, err := g.data.CreateSnapshots(ctx, serve.CreateSnapshots{Volumes: []string{v.name}, Temporary: true, Checkpoints: []string{m.name}, Force: true})
		if err != nil {
			return err
		}
		m.told = true
		if err := g.data.DeleteSnapshot(ctx, s[0].ID); err != nil {
			return err
		}
	}
	g.count(func(t *lossTally) { t.Checkpoints++ })
	return nil
}

// check is what must hold after a power failure. It adopts what the volume holds.
func (g *poweredGuest) check(ctx context.Context, v *lossVol) error {
	info, err := g.data.Volume(ctx, v.name)
	if err != nil {
		return err
	}
	if info.Status != serve.StatusAvailable {
		return fmt.Errorf("volume %s is %s: %s", v.name, info.Status, info.Error)
	}
	there := map[string]serve.Checkpoint{}
	var contexts []string
	for _, c := range info.Checkpoints {
		there[c.Name] = c
		contexts = append(contexts, nbd.ContextDirtyBitmap+c.Name)
	}
	c, err := g.dial(ctx, v, "@ro", contexts...)
	if err != nil {
		return err
	}
	defer c.Close()
	now, err := g.adopt(ctx, c, v)
	if err != nil {
		return err
	}
	var keep []*mark
	for _, m := range v.marks {
		p, ok := there[m.name]
		switch {
		case !ok && m.told:
			return fmt.Errorf("%w: volume %s: checkpoint %s was made and is gone", errWrong, v.name, m.name)
		case !m.told:
			continue // the power failed while it was made
		}
		exts, err := c.Map(ctx, nbd.ContextDirtyBitmap+m.name, 0, lossVolume)
		if err != nil {
			return err
		}
		if err := g.covers(exts, now, m.image); err != nil {
			return fmt.Errorf("%w: volume %s, since checkpoint %s (doubt: %q): %w", errWrong, v.name, m.name, p.Doubt, err)
		}
		g.count(func(t *lossTally) {
			if p.Doubt == "" {
				t.Exact++
			} else {
				t.Doubted++
			}
		})
		keep = append(keep, m)
	}
	v.marks = keep
	return nil
}

// adopt reads what the volume holds, which must be what it may hold.
func (g *poweredGuest) adopt(ctx context.Context, c *nbd.Client, v *lossVol) (now []byte, err error) {
	for _, l := range v.lanes {
		got := make([]byte, len(l.shadow))
		for off := int64(0); off < int64(len(got)); off += spotSize {
			if err := c.ReadAt(ctx, got[off:off+spotSize], l.at(off)); err != nil {
				return nil, err
			}
		}
		if err := l.adopt(got); err != nil {
			return nil, fmt.Errorf("%w: volume %s, from spot %d on: %w", errWrong, v.name, l.first, err)
		}
		now = append(now, got...)
	}
	return now, nil
}

// covers says whether all blocks that differ from then are marked as changed now.
func (g *poweredGuest) covers(exts []blockmap.Extent, now, then []byte) error {
	var all lossTally
	for spot := range int64(spots) {
		for _, e := range blockmap.Clip(exts, spot*spotStride, spotSize) {
			off := spot*spotSize + e.Offset - spot*spotStride
			switch same := bytes.Equal(now[off:off+e.Length], then[off:off+e.Length]); {
			case !same && e.State == blockmap.Clean:
				return fmt.Errorf("%d bytes at %d changed and are not marked", e.Length, e.Offset)
			case !same:
				all.Changed++
			case e.State == blockmap.Clean:
				all.Clean++
			}
		}
	}
	g.count(func(t *lossTally) { t.Changed, t.Clean = t.Changed+all.Changed, t.Clean+all.Clean })
	return nil
}
