package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/cairnbackup/cairn/blockmap"
)

// SnapshotOptions describe a snapshot to be taken.
type SnapshotOptions struct {
	// ID is uuid.Nil for a fresh one.
	ID   uuid.UUID
	Name string
	// Temporary: for one backup; it does not survive Close or a crash, and its
	// preimages cost no fsync.
	Temporary bool
	// Checkpoint, if not empty, is a further name of the position, kept when the snapshot is deleted.
	Checkpoint string
	// Fresh: no page that was cached before another host wrote is in the snapshot.
	Fresh bool
}

// pending is a snapshot being taken.
type pending struct {
	v     *Volume
	o     SnapshotOptions
	snap  *Snapshot
	epoch *epoch
	at    int // in the caller's order

	swapped bool // installed, and its checkpoints set
}

// SnapshotGroup takes a snapshot of each volume, all at one instant: no write to
// any of them was acknowledged after it and is in one snapshot while an earlier
// acknowledged write to another is missing. opts go with vols one to one; the
// result is in the same order. When it returns without error the content of all
// snapshots is on stable storage (and, but for temporary ones, so are the
// snapshots). On an error none was taken, and no checkpoint either.
func SnapshotGroup(ctx context.Context, vols []*Volume, opts []SnapshotOptions) ([]*Snapshot, error) {
	ps, err := pendings(vols, opts)
	if err != nil {
		return nil, err
	}
	// The order of the IDs keeps two groups from waiting for each other.
	slices.SortFunc(ps, func(a, b *pending) int { return slices.Compare(a.v.id[:], b.v.id[:]) })
	for _, p := range ps {
		p.v.admin.Lock()
		defer p.v.admin.Unlock()
	}
	if err := takeGroup(ctx, ps); err != nil {
		for _, p := range ps {
			err = errors.Join(err, p.undo())
		}
		return nil, fmt.Errorf("take a snapshot: %w", err)
	}
	slices.SortFunc(ps, func(a, b *pending) int { return cmp.Compare(a.at, b.at) })
	snaps := make([]*Snapshot, len(ps))
	for i, p := range ps {
		snaps[i] = p.snap
	}
	return snaps, nil
}

func pendings(vols []*Volume, opts []SnapshotOptions) ([]*pending, error) {
	if len(vols) == 0 || len(vols) != len(opts) {
		return nil, fmt.Errorf("%w: %d volumes and %d snapshot options", ErrInvalid, len(vols), len(opts))
	}
	seen := map[*Volume]bool{}
	ps := make([]*pending, len(vols))
	for i, v := range vols {
		if seen[v] {
			return nil, fmt.Errorf("%w: volume %s is named twice", ErrInvalid, v.name)
		}
		seen[v] = true
		o := opts[i]
		if o.ID == uuid.Nil {
			o.ID = uuid.New()
		}
		ps[i] = &pending{v: v, o: o, at: i}
	}
	return ps, nil
}

func takeGroup(ctx context.Context, ps []*pending) error {
	for _, p := range ps {
		if err := p.prepare(); err != nil {
			return fmt.Errorf("volume %s: %w", p.v.name, p.v.roomless(err))
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := swapGroup(ps); err != nil {
		return err
	}
	// The disks catch up with the instant while guests go on: what they overwrite
	// is saved first, and the snapshots are not available before this is done.
	var g errgroup.Group
	for _, p := range ps {
		g.Go(p.v.syncData)
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, p := range ps {
		if err := p.commit(); err != nil {
			return fmt.Errorf("volume %s: %w", p.v.name, err)
		}
	}
	return nil
}

// prepare makes the new epoch's logs, before anybody has to wait.
func (p *pending) prepare() error {
	v := p.v
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	if p.o.Fresh {
		if err := v.RefreshCache(); err != nil {
			return err
		}
	}
	old := v.snaps.set.Load()
	if old == nil {
		old = &snapSet{}
	}
	if len(old.snaps) >= maxSnapshots {
		return fmt.Errorf("%w: there are %d snapshots already; delete some", ErrInvalid, maxSnapshots)
	}
	number := v.nextEpoch
	size := v.size.Load()
	p.snap = &Snapshot{v: v, id: p.o.ID, name: p.o.Name, epoch: number, size: size, created: time.Now().UTC(), temporary: p.o.Temporary}
	for _, s := range old.snaps {
		if s.id == p.o.ID {
			return fmt.Errorf("%w: there is a snapshot %s already", ErrExist, s.id)
		}
	}
	// The next segment is laid out before the guests are held up, not while.
	if err := v.tracker.PrepareCheckpoint(); err != nil {
		return err
	}
	e := &epoch{number: number, idx: newIndex(blocksOf(size))}
	p.epoch = e
	// What nobody needs now nobody will: snapshots that are older only go away.
	var err error
	if !p.o.Temporary || old.sound(func(s *Snapshot) bool { return !s.temporary }) {
		if e.log, err = createLog(v.fs, v.logName(number, logSuffix), v.id, number, size, &v.space, true); err != nil {
			return err
		}
	}
	if p.o.Temporary || old.sound(func(s *Snapshot) bool { return s.temporary }) {
		if e.temp, err = createLog(v.fs, v.logName(number, tempSuffix), v.id, number, size, &v.space, false); err != nil {
			return err
		}
	}
	v.nextEpoch++
	return nil
}

// swapGroup is the instant: with all gates closed every volume's tracker opens a
// new segment and its writers a new epoch.
func swapGroup(ps []*pending) error {
	for _, p := range ps {
		p.v.gate.lock()
		defer p.v.gate.unlock()
	}
	var g errgroup.Group
	for _, p := range ps {
		g.Go(p.swap)
	}
	return g.Wait()
}

func (p *pending) swap() error {
	v := p.v
	if v.size.Load() != p.snap.size { // admin is held, so only a mistake in this package leads here
		return fmt.Errorf("%w: volume %s changed its size", ErrInvalid, v.name)
	}
	names := []string{p.snap.checkpoint()}
	if p.o.Checkpoint != "" {
		names = append(names, p.o.Checkpoint)
	}
	if err := v.tracker.AddCheckpoint(names...); err != nil {
		return fmt.Errorf("close the segment of volume %s: %w", v.name, err)
	}
	p.swapped = true
	next := &snapSet{}
	if old := v.snaps.set.Load(); old != nil {
		next.epochs, next.snaps = slices.Clone(old.epochs), slices.Clone(old.snaps)
	}
	next.epochs, next.snaps = append(next.epochs, p.epoch), append(next.snaps, p.snap)
	v.snaps.set.Store(next)
	return nil
}

// commit makes the snapshot survive, if it is to.
func (p *pending) commit() error {
	if err := p.snap.sound(); err != nil {
		return err
	}
	if p.snap.temporary {
		return nil
	}
	r := p.v.rec
	r.Snapshots = append(slices.Clone(r.Snapshots), snapshotRecord{
		ID: p.snap.id, Name: p.snap.name, Epoch: p.snap.epoch, Size: p.snap.size, Created: p.snap.created,
	})
	return p.v.saveRecord(&r)
}

// undo takes back a snapshot of a group that failed.
func (p *pending) undo() error {
	if !p.swapped {
		var err error
		if p.epoch != nil {
			for _, l := range p.epoch.logs() {
				err = errors.Join(err, l.remove())
			}
		}
		return err
	}
	err := p.v.forget(p.snap)
	if p.o.Checkpoint != "" {
		if derr := p.v.tracker.DropCheckpoint(p.o.Checkpoint); derr != nil && !errors.Is(derr, blockmap.ErrCheckpoint) {
			err = errors.Join(err, derr)
		}
	}
	return err
}

const (
	logSuffix  = ".log"
	tempSuffix = ".tmp"
)

func (v *Volume) logName(number uint64, suffix string) string {
	return filepath.Join(v.dir, preimagesDir, strconv.FormatUint(number, 10)+suffix)
}
