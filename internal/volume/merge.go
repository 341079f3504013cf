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
		if b >= dst.idx.blocks {
			return true
		}
		d := dst.idx.load(b)
		missing := src.idx.savedPages(c) &^ dst.idx.savedPages(d)
		if d != cellAbsent && !isPart(d) || missing == 0 {
			return true
		}
		r := older.needs(b)
		if r == routeNone {
			return true
		}
		n++
		if isPart(c) || isPart(d) {
			err = v.copyPages(older, dst, src, b, c, missing, r)
			return err == nil
		}
		var cell uint32
		if cell, err = v.copyRecord(older, dst, src, b, c, r); err != nil {
			return false
		}
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
	p, err := src.whole(c, b)
	if err != nil {
		return cellAbsent, breakAll(older.uncovered(b), err)
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

// copyPages copies pages of one block, of which dst has single pages or nothing. As with
// copyRecord those that cannot be read break the snapshots that needed them.
func (v *Volume) copyPages(older *snapSet, dst, src *epoch, b int64, c uint32, missing pageSet, r route) error {
	if r == routeDurable {
		return breakAll(older.uncovered(b), errPartKept)
	}
	if dst.temp == nil {
		return errors.New("there is no preimage log to merge into")
	}
	cell := dst.idx.load(b)
	if cell == cellAbsent {
		cell = dst.idx.addPart()
		dst.idx.cell(b).Store(cell)
	}
	for missing != 0 {
		p, has, err := src.load(c, b, missing)
		if err != nil {
			return breakAll(older.uncovered(b), err)
		}
		err = dst.temp.appendPages(&p, has, dst.idx.part(cell))
		p.free()
		if err != nil {
			return err
		}
		missing &^= has
	}
	return nil
}

// appendPages appends pages of a record that was read, as pages of a part.
func (l *preLog) appendPages(p *preimage, pages pageSet, to *part) error {
	for pages != 0 {
		first, end := pages.first()
		pages &^= pageRun(first, end)
		from := (first - p.page) * pageSize
		q := preimage{block: p.block, part: true, page: first, buf: newRecordBuf()}
		q.length = min((end-p.page)*pageSize, p.length) - from
		if q.length <= 0 { // beyond the volume's end
			q.free()
			continue
		}
		copy(q.content(), p.content()[from:])
		q.seal()
		sector, err := l.append(&q)
		q.free()
		if err != nil {
			return err
		}
		to.save(pageRun(first, first+(q.length+pageSize-1)/pageSize), sector)
	}
	return nil
}
