package e2e

import (
	"bytes"
	"fmt"
)

// content is what a disk must hold after a power failure: of each sector what was durable
// at the last flush, or anything written to it since.
type content struct {
	shadow  []byte             // what a guest that never lost power would read
	durable []byte             // as of the last acknowledged flush
	maybe   map[int64][][]byte // by sector: what was written since
}

func newContent(n int64) content {
	return content{shadow: make([]byte, n), durable: make([]byte, n), maybe: map[int64][][]byte{}}
}

// begin says that a write is asked for: from now on the disk may hold it.
func (c *content) begin(off int64, data []byte) {
	for i := int64(0); i < int64(len(data)); i += sector {
		s := (off + i) / sector
		c.maybe[s] = append(c.maybe[s], data[i:i+sector])
	}
}

// wrote says that a write was acknowledged.
func (c *content) wrote(off int64, data []byte) { copy(c.shadow[off:], data) }

// settled takes the present content as durable.
func (c *content) settled() {
	copy(c.durable, c.shadow)
	clear(c.maybe)
}

// settledRange is settled for a part.
func (c *content) settledRange(off, n int64) {
	copy(c.durable[off:off+n], c.shadow[off:])
	for s := off / sector; s < (off+n)/sector; s++ {
		delete(c.maybe, s)
	}
}

// adopt takes over what the disk holds after a power failure, if that can be.
func (c *content) adopt(got []byte) error {
	for s := range int64(len(c.shadow) / sector) {
		now := got[s*sector:][:sector]
		ok := bytes.Equal(now, c.durable[s*sector:][:sector])
		for _, p := range c.maybe[s] {
			ok = ok || bytes.Equal(now, p)
		}
		if !ok {
			return fmt.Errorf("sector %d holds neither what was flushed nor what was written since", s)
		}
	}
	copy(c.shadow, got)
	c.settled()
	return nil
}
