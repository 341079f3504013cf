package nbd

import (
	"errors"
	"fmt"
	"math"

	"github.com/cairnbackup/cairn/blockmap"
)

// maxStatusChunk bounds one BLOCK_STATUS chunk that the client takes. Extents
// are stored as they arrive, so the number alone costs nothing.
const maxStatusChunk = 16 << 20

// statusLayout is how a chunk of block status looks: an ID and perhaps a count,
// then extents of a length and a state, each half of an extent's size.
type statusLayout struct {
	kind         uint16
	head, extent uint64
}

func (l *link) status() statusLayout {
	if l.session.framing == extendedHeaders {
		return statusLayout{chunkStatusExt, 4 + 4, 8 + 8}
	}
	return statusLayout{chunkBlockStatus, 4, 4 + 4}
}

func (l *link) statusChunk(c *call, length uint64) error {
	s := l.status()
	if length < s.head+s.extent || (length-s.head)%s.extent != 0 || length > maxStatusChunk+s.head {
		return fmt.Errorf("the server sent a status chunk of %d bytes", length)
	}
	if err := l.in.fill(int(s.head), clientBuffer); err != nil { //nolint:gosec // a few bytes
		return midway(err)
	}
	h := cursor{b: l.in.take(int(s.head))} //nolint:gosec // a few bytes
	id, count := h.u32(), (length-s.head)/s.extent
	if said := uint64(h.u32()); s.kind == chunkStatusExt && said != 0 && said != count { // 0 is for servers that do not count
		return fmt.Errorf("the server sent %d extents as %d", count, said)
	}
	switch name, ok := l.session.context(id); {
	case !ok:
		return fmt.Errorf("the server sent the status of the context %d, which was not negotiated", id)
	case name != c.context:
		return l.in.discard(int64(length - s.head)) //nolint:gosec // at most maxStatusChunk
	}
	if c.mapped {
		return errors.New("the server sent the status of one context twice")
	}
	c.mapped = true
	at := c.off
	for range count {
		n, err := l.extent(c, at, s)
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}

// extent receives one extent at an offset and returns how far it goes, which is
// never beyond the export.
func (l *link) extent(c *call, at int64, s statusLayout) (int64, error) {
	if err := l.in.fill(int(s.extent), clientBuffer); err != nil { //nolint:gosec // a few bytes
		return 0, midway(err)
	}
	h := cursor{b: l.in.take(int(s.extent))} //nolint:gosec // a few bytes
	var n, state uint64
	if s.kind == chunkStatusExt {
		n, state = h.u64(), h.u64()
	} else {
		n, state = uint64(h.u32()), uint64(h.u32())
	}
	if n == 0 {
		return 0, errors.New("the server sent an empty extent")
	}
	if c.taken++; at >= l.session.size || c.room.Add(-1) < 0 {
		return 0, errors.New("the server sent more extents than the range can hold")
	}
	if state > math.MaxUint32 && c.err == nil {
		c.err = fmt.Errorf("the server sent the state %#x, and those of more than 32 bits are not known here", state)
	}
	length := int64(min(n, uint64(l.session.size-at)))                                                                //nolint:gosec // both are positive
	c.extents = blockmap.Append(c.extents, blockmap.Extent{Offset: at, Length: length, State: blockmap.State(state)}) //nolint:gosec // or c.err is set
	return length, nil
}
