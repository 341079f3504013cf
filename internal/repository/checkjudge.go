package repository

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/chunk"
)

// judge says what that means for the backups, and ends with them.
func (c *checker) judge(ctx context.Context) error {
	c.judgePacks()
	for n, b := range c.images {
		err := c.blocks(ctx, n, b)
		if b != nil {
			err = errors.Join(err, b.Close())
		}
		if err != nil {
			return err
		}
	}
	for id, p := range c.packs {
		if !p.going {
			c.report.Packs++
			if c.reads(id) {
				c.report.Read++
			}
			if p.recalled {
				c.report.Recalled++
			}
		}
	}
	return nil
}

// good returns how many shards of a pack are there and, as far as is known, right.
func (c *checker) good(id chunk.PackID) int {
	good, p := 0, c.packs[id]
	for slot := range p.sizes {
		if p.sizes[slot] >= 0 && !p.bad[slot] {
			good++
		}
	}
	return good
}

// present returns how many shards of a pack are there.
func (c *checker) present(id chunk.PackID) int {
	n := 0
	for _, size := range c.packs[id].sizes {
		if size >= 0 {
			n++
		}
	}
	return n
}

// judgePacks says of each pack whether enough shards are left.
func (c *checker) judgePacks() {
	need := c.r.membership().Data
	for id, p := range c.packs {
		good := c.good(id)
		if good < need && !c.reads(id) && !p.going {
			p.lost = fmt.Sprintf("pack %s has %d good shards, %d are needed", id, good, need)
		}
	}
}
