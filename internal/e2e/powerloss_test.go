package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/backup"
	"github.com/cairnbackup/cairn/internal/objstore"
	"github.com/cairnbackup/cairn/internal/objstore/dirstore"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/vfs"
	"github.com/cairnbackup/cairn/internal/volume"
)

const (
	lossSize = 2 << 20 // of the volume
	lossOps  = 60      // steps between two power failures, at most
)

// TestPowerLoss runs a host whose every file – data file, tracker, preimages,
// dedup index, six stores – lies on one simulated disk, and cuts the power at a
// random operation: writes that were not synced survive or not, each sector by
// itself. It does so several times in the life of one host, with a few seeds.
// What must hold after each failure: every flushed sector is there; every
// change since every backup's checkpoint is marked; every snapshot that is
// there reads as at its instant; every backup that was told committed is there,
// and every backup that is there equals what its snapshot held.
func TestPowerLoss(t *testing.T) {
	n := rounds(t, 60)
	if testing.Short() {
		n = 4
	}
	rng := seed(t)
	var total tally
	for i := range n {
		s := rng.Uint64()
		w := newWorld(t, s)
		for life := range 4 {
			if err := w.live(); err != nil {
				t.Fatalf("world %d (seed %d), life %d: %v", i, s, life, err)
			}
		}
		total.add(w.tally)
	}
	t.Logf("%d worlds: %+v", n, total)
	if total.Committed < n/4 || total.Snapshots < n/8 || total.Exact < n {
		t.Errorf("too little happened for the test to mean something")
	}
}

// tally counts what a test went through.
type tally struct{ Crashes, Writes, Flushes, Committed, Snapshots, Exact, Doubted int }

func (t *tally) add(o tally) {
	t.Crashes += o.Crashes
	t.Writes += o.Writes
	t.Flushes += o.Flushes
	t.Committed += o.Committed
	t.Snapshots += o.Snapshots
	t.Exact += o.Exact
	t.Doubted += o.Doubted
}

// world is one host over several power failures.
type world struct {
	t   *testing.T
	rng *rand.Rand
	mem *vfs.Mem
	mac *machine
	tally

	vol  *volume.Volume
	repo *repository.Repository

	content
	snaps   map[uuid.UUID]*taken
	backups map[string]*made
	last    string // newest backup told committed
}

// taken is a snapshot that was begun.
type taken struct {
	image []byte
	told  bool // that it was taken
}

// made is a backup that was begun.
type made struct {
	image     []byte
	snapped   bool // its snapshot was told taken: the image is on the disk
	committed bool // told so
}

// machine is a volume.Host whose clock moves on and which boots anew after each failure.
type machine struct {
	boot  string
	since time.Time
	ticks atomic.Int64
}

func (m *machine) Now() time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(m.ticks.Add(1)) * time.Millisecond)
}
func (m *machine) Boot() (string, time.Time, error)      { return m.boot, m.since, nil }
func (m *machine) DeviceWrites(*os.File) (uint64, error) { return 0, nil }
func (m *machine) Free(*os.File) (int64, error)          { return 1 << 40, nil }
func (m *machine) reboot()                               { m.boot, m.since = uuid.NewString(), m.Now() }

var password = []byte("correct horse battery staple")

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), mem: vfs.NewMem(), mac: &machine{},
		content: newContent(lossSize), snaps: map[uuid.UUID]*taken{}, backups: map[string]*made{},
	}
	w.mac.reboot()
	w.mem.SetClock(w.mac.Now)
	var stores []objstore.Store
	for _, dir := range storeDirs() {
		s, err := dirstore.Create(dir, dirstore.Options{FS: w.mem})
		if err != nil {
			t.Fatal(err)
		}
		stores = append(stores, s)
	}
	if _, err := repository.Init(t.Context(), repository.InitOptions{Stores: stores, Data: 4, Parity: 2, Password: password}); err != nil {
		t.Fatal(err)
	}
	v, err := volume.Create(w.volumeOptions(), "/state/vol", volume.Spec{ID: uuid.New(), Name: "disk", Size: lossSize, Managed: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	return w
}

func storeDirs() []string {
	var dirs []string
	for i := range 6 {
		dirs = append(dirs, fmt.Sprintf("/store%d", i))
	}
	return dirs
}

func (w *world) volumeOptions() volume.Options { return volume.Options{FS: w.mem, Host: w.mac} }

// live starts the host, checks everything, works until the power fails, and
// leaves the world with what the failure left on its disk.
func (w *world) live() error {
	if err := w.start(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if err := w.check(); err != nil {
		return err
	}
	old := w.mem
	var left *vfs.Mem
	countdown := 1 + w.rng.IntN(900)
	crash := rand.New(rand.NewPCG(w.rng.Uint64(), 2))
	var ops atomic.Int64
	old.OnOp(func(string, string) {
		if ops.Add(1) == int64(countdown) {
			left = old.Crash(crash)
		}
	})
	ctx := w.t.Context()
	for range lossOps {
		if err := w.step(ctx); err != nil {
			if errors.Is(err, errWrong) || ops.Load() < int64(countdown) {
				return err // the power had not failed
			}
			break
		}
	}
	old.OnOp(nil)
	if left == nil {
		left = old.Crash(crash)
	}
	w.Crashes++
	_ = w.vol.Close()  // without power
	_ = w.repo.Close() // without power
	w.mem = left
	w.mem.SetClock(w.mac.Now)
	w.mac.reboot()
	return nil
}

// errWrong marks a broken promise, as against a lack of power.
var errWrong = errors.New("wrong")

func (w *world) start() error {
	var stores []objstore.Store
	for _, dir := range storeDirs() {
		s, err := dirstore.Open(dir, dirstore.Options{FS: w.mem})
		if err != nil {
			return err
		}
		stores = append(stores, s)
	}
	var err error
	if w.vol, err = volume.Open(w.volumeOptions(), "/state/vol"); err != nil {
		return err
	}
	w.repo, err = repository.Open(w.t.Context(), repository.Options{Stores: stores, Password: password, CacheDir: "/state/index", FS: w.mem})
	return err
}

// step does one random thing.
func (w *world) step(ctx context.Context) error {
	switch k := w.rng.IntN(100); {
	case k < 70:
		return w.write()
	case k < 82:
		return w.flush()
	case k < 88:
		return w.snapshot(ctx)
	case k < 91:
		return w.dropSnapshot()
	default:
		return w.backup(ctx)
	}
}

func (w *world) write() error {
	sizes := []int64{sector, 4096, 4096, 65536, 100 * sector}
	n := sizes[w.rng.IntN(len(sizes))]
	off := w.rng.Int64N((lossSize-n)/sector+1) * sector
	data := make([]byte, n)
	kind := w.rng.IntN(10)
	if kind > 1 {
		fill(data, w.rng)
	}
	w.begin(off, data)
	var err error
	switch kind {
	case 0:
		err = w.vol.Zero(off, n, true)
	case 1:
		err = w.vol.Zero(off, n, false)
	default:
		_, err = w.vol.WriteAt(data, off)
	}
	if err != nil {
		return err
	}
	w.wrote(off, data)
	w.Writes++
	return nil
}

func (w *world) flush() error {
	if err := w.vol.Flush(); err != nil {
		return err
	}
	w.settled()
	w.Flushes++
	return nil
}

func (w *world) snapshot(ctx context.Context) error {
	id := uuid.New()
	w.snaps[id] = &taken{image: bytes.Clone(w.shadow)}
	if _, err := volume.SnapshotGroup(ctx, []*volume.Volume{w.vol}, []volume.SnapshotOptions{{ID: id, Name: id.String()}}); err != nil {
		return err
	}
	w.snaps[id].told = true
	w.settled() // a snapshot flushes the volume
	return nil
}

func (w *world) dropSnapshot() error {
	for _, s := range w.vol.Snapshots() {
		id := s.Info().ID
		delete(w.snaps, id)
		return w.vol.DeleteSnapshot(id)
	}
	return nil
}

// snapshotSource reads a snapshot for a backup.
type snapshotSource struct{ *volume.Snapshot }

func (s snapshotSource) ReadAt(_ context.Context, p []byte, off int64) error {
	_, err := s.Snapshot.ReadAt(p, off)
	return err
}

// session is what backup.Run writes to.
type session struct{ *repository.Session }

func (s session) Worker() (backup.Worker, error) { return s.Session.Worker() }

// backup makes a backup as the agent does, incremental where there is one to
// start from.
func (w *world) backup(ctx context.Context) error {
	id := uuid.New()
	m := &made{image: bytes.Clone(w.shadow)}
	w.backups[id.String()] = m
	snaps, err := volume.SnapshotGroup(ctx, []*volume.Volume{w.vol}, []volume.SnapshotOptions{{ID: uuid.New(), Temporary: true, Checkpoint: id.String()}})
	if err != nil {
		return err
	}
	m.snapped = true
	w.settled()
	snap := snaps[0]
	g := blockmap.Geometry{Size: lossSize, BlockSize: blockmap.DefaultBlockSize}
	plan := backup.Plan{Geometry: g, AuditSeed: w.rng.Uint64()}
	if plan.Allocated, err = snap.Extents(0, lossSize); err != nil {
		return err
	}
	if w.last != "" {
		dirty, doubt, derr := snap.Dirty(w.last)
		if derr != nil {
			return fmt.Errorf("%w: dirty since backup %s: %w", errWrong, w.last, derr)
		}
		plan.Dirty = dirty.Extents(g)
		plan.Compare = doubt != ""
		if err = w.covers(dirty, w.backups[w.last].image); err != nil {
			return fmt.Errorf("%w: since backup %s: %w", errWrong, w.last, err)
		}
	}
	sess, err := w.repo.Begin(ctx, repository.SessionOptions{Project: "p", VolumeID: "v", Volume: "disk", ParentBackup: w.last})
	if err != nil {
		return err
	}
	// The guest goes on meanwhile.
	for range w.rng.IntN(4) {
		if err = w.write(); err != nil {
			return err
		}
	}
	res, err := backup.Run(ctx, snapshotSource{snap}, session{sess}, plan, nil)
	if err != nil {
		return err
	}
	if len(res.AuditMismatch) > 0 {
		return fmt.Errorf("%w: the audit found %d missed changes", errWrong, len(res.AuditMismatch))
	}
	out, err := sess.Commit(ctx, repository.Root{BackupID: id.String(), Name: id.String(), Created: w.mac.Now(), Geometry: g, Top: res.Top})
	if out == repository.OutcomeCommitted {
		m.committed = true
		w.Committed++
		w.last = id.String()
	}
	if err != nil {
		return err
	}
	return w.vol.DeleteSnapshot(snap.Info().ID)
}

// covers says whether all blocks that differ from then are dirty now.
func (w *world) covers(dirty *blockmap.Bitmap, then []byte) error {
	const bs = blockmap.DefaultBlockSize
	for i := range int64(lossSize / bs) {
		if !dirty.Test(i) && !bytes.Equal(w.shadow[i*bs:(i+1)*bs], then[i*bs:(i+1)*bs]) {
			return fmt.Errorf("block %d changed and is not marked", i)
		}
	}
	return nil
}

// check is what must hold after a power failure. It adopts what the disk holds.
func (w *world) check() error {
	got := make([]byte, lossSize)
	if _, err := w.vol.ReadAt(got, 0); err != nil {
		return err
	}
	if err := w.adopt(got); err != nil {
		return err
	}
	if err := w.checkSnapshots(); err != nil {
		return err
	}
	return w.checkBackups()
}

func (w *world) checkSnapshots() error {
	there := map[uuid.UUID]bool{}
	got := make([]byte, lossSize)
	for _, s := range w.vol.Snapshots() {
		info := s.Info()
		want, known := w.snaps[info.ID]
		switch {
		case !known && info.Temporary:
			return fmt.Errorf("temporary snapshot %s outlived a power failure", info.ID)
		case !known:
			// Its deletion had begun when the power failed.
			if err := w.vol.DeleteSnapshot(info.ID); err != nil {
				return err
			}
			continue
		case info.Broken != "":
			return fmt.Errorf("snapshot %s broke: %s", info.ID, info.Broken)
		}
		if _, err := s.ReadAt(got, 0); err != nil {
			return fmt.Errorf("snapshot %s: %w", info.ID, err)
		}
		if !bytes.Equal(got, want.image) {
			return fmt.Errorf("snapshot %s changed at %d", info.ID, firstDifference(got, want.image))
		}
		there[info.ID] = true
		w.Snapshots++
	}
	for id, s := range w.snaps {
		switch {
		case there[id]:
			s.told = true // from now on it must stay
		case s.told:
			return fmt.Errorf("snapshot %s was taken and is gone", id)
		default:
			delete(w.snaps, id) // the power failed while it was taken
		}
	}
	return nil
}

func (w *world) checkBackups() error {
	ctx := w.t.Context()
	list, err := w.repo.Backups(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, b := range list {
		m := w.backups[b.ID]
		if m == nil {
			return fmt.Errorf("backup %s was never made", b.ID)
		}
		if b.State != repository.Available {
			continue
		}
		there[b.ID] = true
		if err := w.checkBackup(ctx, b.ID, m.image); err != nil {
			return err
		}
	}
	for id, m := range w.backups {
		switch {
		case there[id]:
			m.committed = true // from now on it must stay
		case m.committed:
			return fmt.Errorf("backup %s was told committed and is not there", id)
		}
	}
	return w.checkTracker()
}

func (w *world) checkBackup(ctx context.Context, id string, want []byte) (err error) {
	img, err := w.repo.Image(ctx, id)
	if err != nil {
		return fmt.Errorf("backup %s: %w", id, err)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	got := make([]byte, lossSize)
	if err := img.ReadAt(ctx, got, 0); err != nil {
		return fmt.Errorf("backup %s: %w", id, err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("backup %s differs from what its volume held, first at %d", id, firstDifference(got, want))
	}
	return nil
}

// checkTracker looks whether every change since every backup is marked.
func (w *world) checkTracker() error {
	for _, c := range w.vol.Checkpoints() {
		m := w.backups[c.Name]
		if m == nil || !m.snapped {
			continue
		}
		dirty, doubt, err := w.vol.Dirty(c.Name, "")
		if err != nil {
			return err
		}
		if doubt == "" {
			w.Exact++
		} else {
			w.Doubted++
		}
		if err := w.covers(dirty, m.image); err != nil {
			return fmt.Errorf("since checkpoint %s: %w", c.Name, err)
		}
	}
	return nil
}
