package volume

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cairnbackup/cairn/blockmap"
)

// snapSet is what the volume knows about its snapshots: immutable, replaced as a
// whole. Writers see one set while they are inside the gate; readers load it anew
// for every look-up.
type snapSet struct {
	epochs []*epoch    // ascending; writers save into the last one
	snaps  []*Snapshot // ascending by epoch; broken ones included
}

// epoch is the time between one snapshot and the next, with the preimages of the
// blocks that were first overwritten in it. Its snapshot may be gone while an
// older one still needs the preimages.
type epoch struct {
	number uint64
	idx    *index
	log    *preLog // preimages that a persistent snapshot needs; nil if there was none
	temp   *preLog // those that only temporary ones need; not durable; nil if there was none
}

// logOf returns the log that a saved cell points into.
func (e *epoch) logOf(cell uint32) *preLog {
	if cell&cellTemp != 0 {
		return e.temp
	}
	return e.log
}

// load reads a record of block b that a saved cell leads to, and says which of the
// pages are in it: all, unless the cell names a part. There is at least one page, and
// all are saved.
func (e *epoch) load(cell uint32, b int64, pages pageSet) (preimage, pageSet, error) {
	l := e.logOf(cell)
	if l == nil { // only a mistake in this package leads here
		return preimage{}, 0, fmt.Errorf("%w: the log of the preimage of block %d is gone", ErrDamaged, b)
	}
	if !isPart(cell) {
		p, err := l.load(cell&cellMask, b, false)
		return p, pages, err
	}
	first, _ := pages.first()
	p, err := l.load(e.idx.part(cell).sector[first], b, true)
	if err != nil {
		return p, 0, err
	}
	end := p.page + (p.length+pageSize-1)/pageSize
	if first < p.page || first >= end {
		p.free()
		return p, 0, fmt.Errorf("%w: page %d of block %d is not where it should be", ErrDamaged, first, b)
	}
	return p, pages & pageRun(p.page, end), nil
}

// whole is load for a block whose preimage is of all of it, as that of a persistent snapshot is.
func (e *epoch) whole(cell uint32, b int64) (preimage, error) {
	if isPart(cell) {
		return preimage{}, fmt.Errorf("%w: only pages of block %d are saved", ErrDamaged, b)
	}
	p, _, err := e.load(cell, b, allPages)
	return p, err
}

// logs lists the logs that there are.
func (e *epoch) logs() []*preLog {
	var l []*preLog
	for _, p := range []*preLog{e.log, e.temp} {
		if p != nil {
			l = append(l, p)
		}
	}
	return l
}

func (e *epoch) size() (n int64) {
	for _, l := range e.logs() {
		n += l.size()
	}
	return n
}

// find returns where the content that block b had at the beginning of epoch from
// is saved: in the smallest epoch not older than it. nil: nowhere, the block
// still has that content. Of a part more may be in later epochs, see pages.
func (s *snapSet) find(from uint64, b int64) (*epoch, uint32) {
	for _, e := range s.epochs {
		if e.number < from {
			continue
		}
		if c := e.idx.load(b); isSaved(c) {
			return e, c
		}
	}
	return nil, 0
}

// pages calls f, if it is not nil, with each epoch that has the content which some of
// the pages of block b had at the beginning of epoch from, and with these pages: the
// smallest epoch not older than it. It returns the pages that are saved nowhere, and
// f's error.
func (s *snapSet) pages(from uint64, b int64, pages pageSet, f func(e *epoch, cell uint32, pages pageSet) error) (pageSet, error) {
	for _, e := range s.epochs {
		if e.number < from {
			continue
		}
		c := e.idx.load(b)
		has := e.idx.savedPages(c) & pages
		if has == 0 {
			continue
		}
		if f != nil {
			if err := f(e, c, has); err != nil {
				return pages, err
			}
		}
		if pages &^= has; pages == 0 {
			break
		}
	}
	return pages, nil
}

// covers tells whether all that a snapshot has of block b is saved.
func (s *snapSet) covers(sn *Snapshot, b int64) bool {
	missing, _ := s.pages(sn.epoch, b, pagesOf(0, sn.size, b), nil)
	return missing == 0
}

// touched is the first block from b up to end that find may find, end if there
// is none: most of a large volume is not written to while a snapshot is there.
func (s *snapSet) touched(from uint64, b, end int64) int64 {
	for _, e := range s.epochs {
		if e.number >= from {
			end = e.idx.touched(b, end)
		}
	}
	return end
}

// newest is the epoch that writers save into; nil if there are no snapshots to save for.
func (s *snapSet) newest() *epoch {
	if s == nil || len(s.epochs) == 0 {
		return nil
	}
	return s.epochs[len(s.epochs)-1]
}

// route says where the preimage of a block has to go that is about to be
// overwritten in the last epoch of the set.
type route uint8

const (
	routeNone    route = iota // nobody needs it
	routeTemp                 // only temporary snapshots need it
	routeDurable              // a persistent snapshot needs it
)

// needs decides the route. The newest snapshot of a kind that wants the block decides
// for all older ones: whatever covers it covers them. One that is broken, or has
// released the block, decides nothing: an older one may want what that one lacks.
func (s *snapSet) needs(b int64) route {
	r := routeNone
	for _, sn := range slices.Backward(s.snaps) {
		if !sn.wants(b) || (sn.temporary && r == routeTemp) {
			continue
		}
		covered := s.covers(sn, b)
		switch {
		case !covered && !sn.temporary:
			return routeDurable
		case !covered:
			r = routeTemp
		case !sn.temporary:
			return r
		}
	}
	return r
}

// uncovered lists the snapshots that want block b and would lose some of it if it were overwritten now.
func (s *snapSet) uncovered(b int64) []*Snapshot {
	var l []*Snapshot
	for _, sn := range s.snaps {
		if !sn.wants(b) {
			continue
		}
		if !s.covers(sn, b) {
			l = append(l, sn)
		}
	}
	return l
}

// reliesOn tells whether an older persistent snapshot needs a preimage that is,
// or is just being written, in the durable log of an epoch.
func (s *snapSet) reliesOn(sn *Snapshot, e *epoch) (yes bool) {
	e.idx.each(func(b int64, c uint32) bool {
		if b < sn.blocks() && (c == cellCopying || isSaved(c) && c&cellTemp == 0) {
			x, _ := s.find(sn.epoch, b)
			yes = x == nil || x.number >= e.number
		}
		return !yes
	})
	return yes
}

// upTo is the set without the epochs and snapshots after number.
func (s *snapSet) upTo(number uint64) *snapSet {
	return &snapSet{
		epochs: slices.DeleteFunc(slices.Clone(s.epochs), func(e *epoch) bool { return e.number > number }),
		snaps:  slices.DeleteFunc(slices.Clone(s.snaps), func(n *Snapshot) bool { return n.epoch > number }),
	}
}

// sound tells whether there is an unbroken snapshot that satisfies ok.
func (s *snapSet) sound(ok func(*Snapshot) bool) bool {
	return slices.ContainsFunc(s.snaps, func(n *Snapshot) bool { return !n.isBroken() && ok(n) })
}

// at returns the epoch of a number, or nil.
func (s *snapSet) at(number uint64) *epoch {
	for _, e := range s.epochs {
		if e.number == number {
			return e
		}
	}
	return nil
}

// snapshots holds the current set.
type snapshots struct{ set atomic.Pointer[snapSet] }

func blocksOf(size int64) int64 {
	return (size + blockmap.DefaultBlockSize - 1) / blockmap.DefaultBlockSize
}
