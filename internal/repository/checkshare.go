package repository

import (
	"fmt"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// A check that reads a share of the data takes the packs in the order of their
// IDs, round and round, and remembers nothing but the last that it took. So packs
// may come and go between two checks: each that stays is read before the round
// comes back to where it began. The position moves when a check has finished; one
// that was interrupted goes on behind the packs that it told of (Read, Before), or is
// made again.

func (o CheckOptions) validate() error {
	if o.Share < 0 || o.Share > 100 {
		return fmt.Errorf("check %d percent of the data: only 1 to 100 can be: %w", o.Share, ErrInvalid)
	}
	if o.After != "" && !IsPosition(o.After) {
		return fmt.Errorf("check from the position %.80q: it is none that a check gave: %w", o.After, ErrInvalid)
	}
	return nil
}

// IsPosition reports whether a text can be the Position of a check.
func IsPosition(text string) bool {
	_, err := chunk.ParsePackID(text)
	return err == nil
}

// choose decides which packs are read.
func (c *checker) choose() {
	ids := c.sorted()
	c.report.Position = c.o.After
	if len(ids) == 0 {
		return
	}
	share := c.o.Share
	if share == 0 {
		share = 100
	}
	count := (len(ids)*share + 99) / 100
	from := 0
	if c.o.After != "" {
		after, err := chunk.ParsePackID(c.o.After)
		if err == nil { // validate has seen to it
			from = slices.IndexFunc(ids, func(id chunk.PackID) bool { return slices.Compare(id[:], after[:]) > 0 })
		}
		from = max(from, 0) // behind the last comes the first
	}
	c.window = make(map[chunk.PackID]bool, count)
	for i := range count {
		id := ids[(from+i)%len(ids)]
		c.window[id] = true
		c.order = append(c.order, id)
	}
	c.report.Position = ids[(from+count-1)%len(ids)].String()
}

// reads reports whether the data of a pack is read.
func (c *checker) reads(id chunk.PackID) bool {
	return c.o.ReadData && (c.window == nil || c.window[id])
}
