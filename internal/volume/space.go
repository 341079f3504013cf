package volume

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
)

// spaceGuard counts the bytes of preimages and refuses more when the limit is
// reached or when the file system is nearly full.
type spaceGuard struct {
	dir     string                // the state folder
	limit   int64                 // 0 = none
	reserve int64                 // free bytes to leave; 0 = none
	free    func() (int64, error) // nil = not known

	used   atomic.Int64
	budget atomic.Int64 // bytes that may be taken before free is asked again
}

const (
	defaultReserve = 256 << 20
	spaceStep      = 16 << 20 // how much may be taken between two looks at the free space
)

// take accounts for n more bytes, or says why there is no room.
func (g *spaceGuard) take(n int64) error {
	if used := g.used.Add(n); g.limit > 0 && used > g.limit {
		g.used.Add(-n)
		return fmt.Errorf("the limit of %d bytes for preimages is reached", g.limit)
	}
	if g.free == nil || g.reserve <= 0 || g.budget.Add(-n) > 0 {
		return nil
	}
	free, err := g.free()
	if err == nil && free < g.reserve+n {
		g.used.Add(-n)
		g.budget.Store(0)
		return fmt.Errorf("only %d bytes are free on the disk of %s, and %d are kept for the volume itself", free, g.dir, g.reserve)
	}
	if err == nil {
		g.budget.Store(min(spaceStep, (free-g.reserve)/2))
	}
	return nil // a file system that cannot tell says ENOSPC itself
}

// give returns n bytes.
func (g *spaceGuard) give(n int64) { g.used.Add(-n) }

// adopt accounts for bytes that are there already.
func (g *spaceGuard) adopt(n int64) { g.used.Add(n) }

// roomless adds to an error that is a full disk of the state folder what to do about it.
func (v *Volume) roomless(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("free some space on the disk of %s: %w", v.dir, err)
	}
	return err
}
