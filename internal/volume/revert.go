package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
)

// Revert makes the volume's content that of a persistent snapshot, as tracked
// changes: other snapshots and later incrementals see them like a guest's
// writes. The volume keeps its size; what lies beyond the snapshot's reads as
// zeros. No guest may write meanwhile.
//
// All preimages are read and checked before anything is changed, and only until
// then ctx can stop it. After a crash the next Open finishes the revert. If it
// cannot be finished, the volume refuses writes until a Revert succeeds.
func (v *Volume) Revert(ctx context.Context, id uuid.UUID) error {
	v.admin.Lock()
	defer v.admin.Unlock()
	if f := v.failed.Load(); f != nil && !f.halfReverted {
		return f.err
	}
	s, err := v.snapshotRecorded(id)
	if err != nil {
		return err
	}
	if err := v.revert(ctx, s); err != nil {
		return fmt.Errorf("revert volume %s to snapshot %s: %w", v.name, id, err)
	}
	return nil
}

// finishRevert is Revert at an Open that finds one unfinished.
func (v *Volume) finishRevert(id uuid.UUID) error {
	s, err := v.snapshotRecorded(id)
	if err == nil {
		err = v.revert(context.Background(), s)
	}
	if err != nil {
		v.halfReverted(id, err)
	}
	return err
}

func (v *Volume) revert(ctx context.Context, s *Snapshot) error {
	todo, err := v.checkPreimages(ctx, s)
	if err != nil {
		return err
	}
	return v.whileOpen(func() error { return v.revertBlocks(s, todo) })
}

// revertBlocks puts the blocks of a snapshot back that differ, or is said to
// have done only a part of it.
func (v *Volume) revertBlocks(s *Snapshot, todo *blockmap.Bitmap) error {
	r := v.rec
	r.Reverting = &s.id
	if err := v.saveRecord(&r); err != nil {
		if v.unsure.Load() { // The next open may revert, over all that would be written until then.
			v.halfReverted(s.id, err)
		}
		return err
	}
	// Blocks whose trim was put off become content again.
	v.gate.lock()
	v.deferred.cancel(0, v.size.Load())
	if f := v.failed.Load(); f != nil && f.halfReverted {
		v.failed.CompareAndSwap(f, nil)
	}
	v.gate.unlock()
	err := v.putBack(s, todo)
	if err == nil {
		err = v.syncData()
	}
	if err == nil {
		r := v.rec
		r.Reverting = nil
		err = v.saveRecord(&r)
	}
	if err != nil {
		v.halfReverted(s.id, err)
	}
	return err
}

// halfReverted makes the volume refuse writes until it is reverted in full.
func (v *Volume) halfReverted(id uuid.UUID, cause error) {
	err := fmt.Errorf("volume %s is only partly reverted to snapshot %s (%w); revert it again, or restore a backup to another volume: %w", v.name, id, cause, ErrFailed)
	v.failed.CompareAndSwap(nil, &failure{err: err, halfReverted: true})
}

// checkPreimages reads all preimages of the snapshot and returns their blocks.
func (v *Volume) checkPreimages(ctx context.Context, s *Snapshot) (*blockmap.Bitmap, error) {
	if err := s.sound(); err != nil {
		return nil, err
	}
	set := v.snaps.set.Load()
	todo := blockmap.NewBitmap(s.blocks())
	for _, e := range set.epochs {
		if e.number >= s.epoch {
			e.idx.saved(func(b int64, _ uint32) bool { todo.Set(b, 1); return true })
		}
	}
	for first, count := range todo.Runs() {
		for b := first; b < first+count; b++ {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			e, c := set.find(s.epoch, b)
			p, err := e.whole(c, b)
			if err != nil {
				return nil, s.unreadable(err)
			}
			p.free()
		}
	}
	return todo, nil
}

// putBack writes the preimages over the live content, by the guest's own path.
// Doing it again changes nothing: what the snapshot needs is saved already.
func (v *Volume) putBack(s *Snapshot, todo *blockmap.Bitmap) error {
	for first, count := range todo.Runs() {
		for b := first; b < first+count; b++ {
			if err := v.putBackBlock(s, b); err != nil {
				return err
			}
		}
	}
	if rest := v.size.Load() - s.size; rest > 0 {
		return v.Zero(s.size, rest, true)
	}
	return nil
}

func (v *Volume) putBackBlock(s *Snapshot, b int64) error {
	e, c := v.snaps.set.Load().find(s.epoch, b)
	if e == nil {
		return errors.New("a preimage is gone") // admin is held, so only a mistake in this package leads here
	}
	p, err := e.whole(c, b)
	if err != nil {
		return err
	}
	defer p.free()
	off := b * blockmap.DefaultBlockSize
	content := p.content()[:min(int64(p.length), s.size-off)]
	if p.zeros {
		return v.Zero(off, int64(len(content)), true)
	}
	_, err = v.WriteAt(content, off)
	return err
}
