package volume

import (
	"errors"
	"fmt"
	"slices"
)

// merge moves what older snapshots need of epoch src into its older neighbor
// dst, and drops src. src may be the epoch that writers are saving into: most is
// copied beside them, and only the rest while they wait. Both copies of a
// preimage are equal, so readers may find either.
func (v *Volume) merge(dst, src *epoch) error {
	const few = 16 // records that writers may wait for
	for {
		n, err := v.copyRecords(dst, src)
		if err != nil {
			return fmt.Errorf("merge preimages: %w", err)
		}
		if n <= few {
			break
		}
	}
	v.gate.lock()
	_, err := v.copyRecords(dst, src)
	if err == nil && dst.log != nil && dst.log.unlinked.Load() {
		err = errUnlinked // The copies are nothing to rely on.
	}
	if err == nil {
		v.replaceSetLocked(func(set *snapSet) {
			set.epochs = slices.DeleteFunc(set.epochs, func(e *epoch) bool { return e.number == src.number })
		})
	}
	v.gate.unlock()
	if err != nil {
		return fmt.Errorf("merge preimages: %w", err)
	}
	return v.removeLogs(src.logs())
}

// copyRecords copies the preimages of src that dst lacks and that a snapshot not
// newer than dst needs. It returns how many it copied. A preimage that cannot be
// read breaks those snapshots; one that cannot be written leaves all as it is.
func (v *Volume) copyRecords(dst, src *epoch) (n int, err error) {
	older := v.snaps.set.Load().upTo(dst.number)
	var synced []unsynced
	src.idx.saved(func(b int64, c uint32) bool {
		if b >= dst.idx.blocks || dst.idx.load(b) != cellAbsent {
			return true
		}
		r := older.needs(b)
		if r == routeNone {
			return true
		}
		var cell uint32
		if cell, err = v.copyRecord(older, dst, src, b, c, r); err != nil {
			return false
		}
		n++
		switch {
		case cell == cellAbsent:
		case r == routeDurable:
			synced = append(synced, unsynced{b, cell})
		default:
			dst.idx.cell(b).Store(cell)
		}
		return true
	})
	if len(synced) > 0 {
		if serr := dst.log.flush.wait(); serr != nil {
			return n, errors.Join(err, serr)
		}
		for _, u := range synced {
			dst.idx.cell(u.block).Store(u.val)
		}
	}
	return n, err
}

// copyRecord copies one preimage; cellAbsent without an error means that it was
// unreadable and the snapshots that needed it are broken now.
func (v *Volume) copyRecord(older *snapSet, dst, src *epoch, b int64, c uint32, r route) (uint32, error) {
	p, err := src.logOf(c).load(c&cellMask, b)
	if err != nil {
		for _, sn := range older.uncovered(b) {
			if berr := sn.breakOff(err.Error()); berr != nil {
				return cellAbsent, berr
			}
		}
		return cellAbsent, nil
	}
	defer p.free()
	l, flag := dst.temp, uint32(cellTemp)
	if r == routeDurable {
		l, flag = dst.log, 0
	}
	if l == nil {
		return cellAbsent, errors.New("there is no preimage log to merge into")
	}
	sector, err := l.append(&p)
	if err != nil {
		return cellAbsent, err
	}
	return sector | flag, nil
}
