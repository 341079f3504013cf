package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

func (o *Options) setDefaults() {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Host == nil {
		o.Host = linux{}
	}
	if o.PreimageReserve == 0 {
		o.PreimageReserve = defaultReserve
	}
}

// Open opens the volume of a state folder and holds its data file until Close.
// It finishes what a crash interrupted (Extend, Revert, deletions), drops
// temporary snapshots, and distrusts the tracker when the data file shows signs
// of writes by others; snapshots are broken then, because their preimages lack
// what was overwritten.
func Open(o Options, dir string) (_ *Volume, err error) {
	o.setDefaults()
	r, err := readRecord(o.FS, dir)
	if err != nil {
		return nil, err
	}
	// A kill may have come between the record and its folder's sync. What is shown
	// of its openings must not be taken back by a power failure.
	if err = o.FS.SyncDir(dir); err != nil {
		return nil, fmt.Errorf("open volume %s: sync %s: %w", r.Name, dir, err)
	}
	v := &Volume{fs: o.FS, log: o.Logger, host: o.Host, dir: dir, id: r.ID, name: r.Name, rec: r}
	v.openings.count = r.Openings
	v.size.Store(r.Size)
	v.gate.init()
	v.waits.init()
	defer func() {
		if err != nil {
			err = fmt.Errorf("open volume %s: %w", r.Name, errors.Join(err, v.closeParts()))
		}
	}()
	if v.data, err = openData(o.FS, r.dataPath(dir), r.Kind == kindDevice, os.O_RDWR); err != nil {
		return nil, err
	}
	v.flusher.init(v.data.Sync)
	v.space = spaceGuard{dir: v.dir, limit: o.PreimageLimit, reserve: o.PreimageReserve}
	if v.data.size < r.Size && r.Extending == 0 {
		return nil, fmt.Errorf("%w: %s has %d bytes, the volume has %d; find out what cut it off, and truncate -s %[4]d gives it its size back (with zeros)",
			ErrDamaged, r.dataPath(dir), v.data.size, r.Size)
	}
	reason, err := v.takeOver()
	if err != nil {
		return nil, err
	}
	if f, ok := vfs.OSFile(v.beat.f); ok { // it lies where the preimages do
		v.space.free = func() (int64, error) { return v.host.Free(f) }
	}
	if err := v.openTracker(reason); err != nil {
		return nil, err
	}
	if err := v.openSnapshots(); err != nil {
		return nil, err
	}
	// Whoever was killed with the volume open for writing did not do it. Its failure is the volume's.
	_ = v.syncData()
	return v, v.finish()
}

// closeParts closes what an Open that failed had opened.
func (v *Volume) closeParts() error {
	v.back.Wait()
	var err error
	if set := v.snaps.set.Load(); set != nil {
		for _, e := range set.epochs {
			err = errors.Join(err, e.log.f.Close())
		}
	}
	if v.tracker != nil {
		err = errors.Join(err, v.tracker.Close())
	}
	if v.beat != nil {
		err = errors.Join(err, v.beat.close())
	}
	if v.data != nil {
		err = errors.Join(err, v.data.Close())
	}
	return err
}

// takeOver reads the last owner's heartbeat, says what is to be doubted, and
// puts our own heartbeat in its place.
func (v *Volume) takeOver() (reason string, err error) {
	name := filepath.Join(v.dir, beatFile)
	last, err := readBeat(v.fs, name)
	f := facts{volume: v.id, device: v.rec.Kind == kindDevice, size: v.data.size, resizing: v.rec.Extending != 0, mtime: v.data.info.ModTime(), inode: v.data.inode}
	var berr error
	if f.boot, f.since, berr = v.host.Boot(); berr != nil {
		return "", berr
	}
	if f.device {
		f.counter, f.noCounter = v.host.DeviceWrites(v.data.os)
	}
	foreign := false
	if err != nil {
		reason = err.Error()
	} else {
		reason, foreign = last.doubt(&f)
	}
	if foreign {
		// Before the evidence is overwritten.
		if err = v.breakRecorded(reason); err != nil {
			return "", err
		}
	}
	if reason != "" {
		v.log.Warn("volume in doubt", attrVolume(v), attrReason(reason))
	}
	next := beatRecord{Volume: v.id, Generation: last.Generation + 1, Boot: f.boot, Size: v.data.size, Inode: v.data.inode}
	// The doubt has to survive a crash between here and the tracker's record of it.
	next.Failed = reason != ""
	v.beat, err = openBeat(v.fs, v.host, &v.gate, name, &next)
	return reason, err
}

// breakRecorded marks all snapshots in volume.json as broken.
func (v *Volume) breakRecorded(reason string) error {
	r := v.rec
	r.Snapshots = slices.Clone(r.Snapshots)
	for i := range r.Snapshots {
		if r.Snapshots[i].Broken == "" {
			r.Snapshots[i].Broken = reason
		}
	}
	return v.saveRecord(&r)
}

func (v *Volume) openTracker(doubt string) (err error) {
	dir := filepath.Join(v.dir, trackerDir)
	v.tracker, err = blockmap.OpenTracker(v.fs, dir, trackerOptions(&v.rec, doubt))
	if errors.Is(err, fs.ErrNotExist) {
		// Without checkpoints nothing can be read as unchanged, so a new history is safe.
		v.log.Warn("volume lost its change history", attrVolume(v))
		if err = vfs.MkdirAll(v.fs, dir, 0o700); err != nil {
			return err
		}
		v.tracker, err = blockmap.CreateTracker(v.fs, dir, trackerOptions(&v.rec, ""))
	}
	if err != nil {
		return fmt.Errorf("open the change tracker: %w", err)
	}
	if doubt == "" {
		return nil
	}
	return v.beat.save(func(b *beatRecord) { b.Failed = false })
}

// openSnapshots reads the preimage logs, drops what no snapshot needs, and the
// tracker's positions of snapshots that are gone.
func (v *Volume) openSnapshots() error {
	dir := filepath.Join(v.dir, preimagesDir)
	if err := vfs.MkdirAll(v.fs, dir, 0o700); err != nil {
		return err
	}
	set := &snapSet{}
	v.nextEpoch = 1
	known := map[string]bool{}
	for _, r := range v.rec.Snapshots {
		s := &Snapshot{v: v, id: r.ID, name: r.Name, epoch: r.Epoch, size: r.Size, created: r.Created}
		if r.Broken != "" {
			s.broken.Store(&r.Broken)
		}
		set.snaps = append(set.snaps, s)
		known[s.checkpoint()] = true
		v.nextEpoch = max(v.nextEpoch, r.Epoch+1)
	}
	damaged, err := v.openLogs(set, dir)
	if err != nil {
		return err
	}
	v.snaps.set.Store(set)
	for _, c := range v.tracker.Checkpoints() {
		if strings.HasPrefix(c.Name, checkpointPrefix) && !known[c.Name] {
			if err := v.tracker.DropCheckpoint(c.Name); err != nil {
				return fmt.Errorf("drop the position of a snapshot that is gone: %w", err)
			}
		}
	}
	if err := v.saveBroken(); err != nil {
		return err
	}
	// Not before: a missing log tells less than a damaged one.
	for _, n := range damaged {
		if err := v.fs.Rename(v.logName(n, logSuffix), v.logName(n, damagedSuffix)); err != nil {
			return fmt.Errorf("set a damaged preimage log aside: %w", err)
		}
	}
	if err := v.reclaim(); err != nil {
		v.log.Warn("space of deleted snapshots not reclaimed", attrVolume(v), attrError(err))
	}
	return nil
}

// breakFound marks a snapshot that an open finds to be broken.
func (s *Snapshot) breakFound(reason string) { s.broken.CompareAndSwap(nil, &reason) }

// openLogs fills the epochs of the set. A log that is missing or damaged breaks
// its own snapshot and all older ones, because they may need it too. It returns
// the epochs of the damaged logs.
func (v *Volume) openLogs(set *snapSet, dir string) (damaged []uint64, err error) {
	numbers, err := v.listLogs(dir)
	if err != nil {
		return nil, err
	}
	breakUpTo := func(number uint64, reason string) {
		for _, s := range set.snaps {
			if s.epoch <= number {
				s.breakFound(reason)
			}
		}
	}
	for _, s := range set.snaps {
		if !s.isBroken() && !slices.Contains(numbers, s.epoch) {
			breakUpTo(s.epoch, "a file with its preimages is missing")
		}
	}
	for _, n := range numbers {
		v.nextEpoch = max(v.nextEpoch, n+1)
		l, x, broken, err := openLog(v.fs, v.logName(n, logSuffix), v.id, n, v.rec.Size, &v.space)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				return nil, err
			}
			v.log.Warn("preimage log is damaged", attrVolume(v), attrError(err))
			breakUpTo(n, "a file with its preimages is damaged")
			damaged = append(damaged, n)
			continue
		}
		set.epochs = append(set.epochs, &epoch{number: n, idx: x, log: l})
		for _, s := range set.snaps {
			if broken != "" && s.epoch == n {
				s.breakFound(broken)
			}
		}
	}
	return damaged, nil
}

const damagedSuffix = ".damaged"

// listLogs returns the epochs that have a durable log, ascending, and removes
// temporary and unfinished logs.
func (v *Volume) listLogs(dir string) ([]uint64, error) {
	entries, err := v.fs.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the preimage logs: %w", err)
	}
	var numbers []uint64
	for _, e := range entries {
		name, suffix, _ := strings.Cut(e.Name(), ".")
		n, err := strconv.ParseUint(name, 10, 64)
		switch {
		case err != nil || n == 0 || strconv.FormatUint(n, 10) != name:
		case "."+suffix == logSuffix:
			numbers = append(numbers, n)
		default:
			if err := v.fs.Remove(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove a leftover preimage log: %w", err)
			}
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// finish completes an Extend or Revert that a crash interrupted.
func (v *Volume) finish() error {
	if v.rec.Extending != 0 {
		if err := v.whileOpen(func() error { return v.grow(v.rec.Extending) }); err != nil {
			return err
		}
	}
	if id := v.rec.Reverting; id != nil {
		if err := v.finishRevert(*id); err != nil {
			v.log.Error("revert not finished", attrVolume(v), attrError(err))
		}
	}
	return nil
}

// snapshotRecorded returns a persistent snapshot by its ID.
func (v *Volume) snapshotRecorded(id uuid.UUID) (*Snapshot, error) {
	s, ok := v.Snapshot(id)
	if !ok {
		return nil, fmt.Errorf("snapshot %s of volume %s: %w", id, v.name, ErrNotFound)
	}
	if s.temporary {
		return nil, fmt.Errorf("%w: snapshot %s of volume %s belongs to a backup that is running", ErrInvalid, id, v.name)
	}
	return s, nil
}
