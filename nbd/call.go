package nbd

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cairnbackup/cairn/blockmap"
)

// call is a request on its way.
type call struct {
	command uint16
	flags   uint16
	off, n  int64
	payload []byte // WRITE
	covers  uint64 // FLUSH: see ledger

	// READ
	p       []byte
	arrived coverage

	// BLOCK_STATUS
	context string
	mapped  bool
	extents []blockmap.Extent
	room    *atomic.Int64 // for extents, of all the requests that share it
	taken   int64         // of it

	err      error         // the server's answer, or the link's end
	finished chan struct{} // closed after err was set

	// Guarded by link.mu. While receiving is set p is being written to; whoever
	// abandons the call then waits for released.
	abandoned, receiving bool
	released             chan struct{}
}

// fresh makes c what it was before it was sent over a connection that ended.
func (c *call) fresh() {
	if c.room != nil {
		c.room.Add(c.taken)
	}
	*c = call{
		command: c.command, flags: c.flags, off: c.off, n: c.n, payload: c.payload, covers: c.covers,
		p: c.p, context: c.context, room: c.room,
	}
}

// volatile reports whether c changes something that needs a flush to last.
func (c *call) volatile() bool {
	switch c.command {
	case cmdWrite, cmdWriteZeroes, cmdTrim:
		return c.flags&cmdFlagFUA == 0
	default:
		return false
	}
}

// refuse notes an error of the server; the first one stays.
func (c *call) refuse(code Error, text string) {
	switch {
	case c.err != nil:
	case text == "":
		c.err = code
	default:
		c.err = fmt.Errorf("%w (the server says: %s)", code, text)
	}
}

// complete checks that a call that the server has ended without an error got all
// that it asked for.
func (c *call) complete() error {
	switch {
	case c.command == cmdRead && !c.arrived.whole(int64(len(c.p))):
		return fmt.Errorf("the server ended a read of %d bytes before all had come", len(c.p))
	case c.command == cmdBlockStatus && !c.mapped:
		return errors.New("the server ended BLOCK_STATUS without the context that was negotiated")
	default:
		return nil
	}
}

// part checks that n bytes at the wire's offset lie in the read and are new.
func (c *call) part(offset, n uint64) (start int64, err error) {
	at := offset - uint64(c.off) //nolint:gosec // not negative; a wrapped difference is out of range
	size := uint64(len(c.p))
	if offset < uint64(c.off) || n == 0 || at > size || n > size-at { //nolint:gosec // not negative
		return 0, fmt.Errorf("the server sent %d bytes at %d for a read of %d at %d", n, offset, size, c.off)
	}
	start = int64(at)                          //nolint:gosec // within p
	if !c.arrived.add(start, start+int64(n)) { //nolint:gosec // within p
		return 0, fmt.Errorf("the server sent %d bytes at %d twice, or in too many parts", n, offset)
	}
	return start, nil
}
