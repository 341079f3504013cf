package volume

import (
	"fmt"

	"github.com/cairnbackup/cairn/blockmap"
)

// Release says that what lies before an offset will not be read from a temporary
// snapshot any more: from then on no preimage is saved for its sake of blocks that
// lie wholly before it, and to read them is ErrReleased. What was released stays
// so: a lower offset than before changes nothing. It takes no lock and waits for
// nobody. A persistent snapshot, which has no reader that could vouch for all
// others, is ErrInvalid.
func (s *Snapshot) Release(before int64) error {
	if !s.temporary {
		return fmt.Errorf("%w: snapshot %s of volume %s is not a temporary one, and is kept whole", ErrInvalid, s.id, s.v.name)
	}
	if before < 0 {
		return fmt.Errorf("%w: release snapshot %s of volume %s before %d", ErrInvalid, s.id, s.v.name, before)
	}
	blocks := before / blockmap.DefaultBlockSize
	if before >= s.size {
		blocks = s.blocks() // a short last one, too
	}
	for {
		was := s.released.Load()
		if blocks <= was || s.released.CompareAndSwap(was, blocks) {
			return nil
		}
	}
}

// wants tells whether the snapshot shall keep the content of block b. Once it does
// not it never will again.
func (s *Snapshot) wants(b int64) bool {
	return !s.isBroken() && b >= s.released.Load() && b < s.blocks()
}

// readable returns the error of a snapshot of which nothing is to be read, or
// nothing from off on because that begins before what is released.
func (s *Snapshot) readable(off int64) error {
	if err := s.sound(); err != nil {
		return err
	}
	if off/blockmap.DefaultBlockSize < s.released.Load() {
		return fmt.Errorf("snapshot %s of volume %s at %d: %w", s.id, s.v.name, off, ErrReleased)
	}
	return nil
}
