package repository

import (
	"context"
	"maps"
	"slices"

	"github.com/cairnbackup/cairn/internal/chunk"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// A check that goes on from an interrupted one takes over two things: which packs
// were sound, and of which backups that was said. The cells of such a pack are not
// read again, nor are the chunks that those backups have in it. A backup that was
// made since may name a chunk there that does not open, or one where nothing is: its
// own are opened.

// leafRange are leaves of a manifest.
type leafRange struct{ first, count int64 }

// miss notes leaves that could not be read while chunks were opened: should they be
// readable later, their chunks are opened then.
func (c *checker) miss(n int, first, count int64) {
	if r := (leafRange{first, count}); !slices.Contains(c.missed[n], r) {
		c.missed[n] = append(c.missed[n], r)
	}
}

func (c *checker) hasMissed(n int, leaf int64) bool {
	return slices.ContainsFunc(c.missed[n], func(r leafRange) bool { return leaf >= r.first && leaf-r.first < r.count })
}

// recall takes over what an interrupted check found to be sound. A pack that lacks a
// shard by now, or has one of a wrong size, is read again.
func (c *checker) recall(ctx context.Context) error {
	var packs []chunk.PackID
	for _, id := range c.order {
		p := c.packs[id]
		if c.o.Before[id.String()] && c.sound(p) && !c.known.has(id) {
			p.recalled, p.verified, p.opened = true, true, true
			packs = append(packs, id)
		}
	}
	c.opened = make(map[string]bool)
	for n, img := range c.images {
		session := c.report.Backups[n].Backup.Session
		if img != nil && (len(c.o.Before) == 0 || c.o.Opened[session]) {
			c.opened[session] = true
		}
	}
	if len(packs) == 0 {
		return nil
	}
	return c.openMore(ctx, packs)
}

// openMore opens what backups have in recalled packs that the interrupted check did
// not look at.
func (c *checker) openMore(ctx context.Context, packs []chunk.PackID) error {
	var more []int
	seen := make(map[nodeKey]bool) // leaves of the others
	for n, img := range c.images {
		switch {
		case img == nil:
		case !c.opened[c.report.Backups[n].Backup.Session]:
			more = append(more, n)
		default:
			err := img.tree.Nodes(ctx, func(level int, _ int64, ref chunk.Ref) error {
				if level == 0 {
					seen[nodeKey{ref.ID, ref.Location}] = true
				}
				return nil
			}, func(int64, int64, chunk.Ref, error) error { return ctx.Err() }) //nolint:wrapcheck // what is lost, the report says
			if err != nil {
				return err //nolint:wrapcheck // canceled
			}
		}
	}
	wanted := packSet(packs)
	for _, n := range more {
		if err := c.openAll(ctx, n, c.base(n), wanted, seen); err != nil {
			return err
		}
	}
	for _, id := range packs {
		if p := c.packs[id]; c.o.Read != nil && !c.sound(p) && !p.doubt {
			if err := c.o.Read(id.String(), false); err != nil {
				return err
			}
		}
	}
	return nil
}

// base returns the newest backup of the same volume that the interrupted check
// looked through; nil: there is none.
func (c *checker) base(n int) *Image {
	var base *Image
	mine := c.report.Backups[n].Backup
	for i, img := range c.images {
		b := c.report.Backups[i].Backup
		if img != nil && c.opened[b.Session] && b.Project == mine.Project && b.VolumeID == mine.VolumeID &&
			(base == nil || b.Created.After(base.Backup().Created)) {
			base = img
		}
	}
	return base
}

// sameLeaf returns what a backup has in the place of a leaf; an empty one if it has
// none that can be read.
func sameLeaf(ctx context.Context, img *Image, leaf int64) *manifest.Leaf {
	if img == nil || leaf >= img.tree.Leaves() {
		return &manifest.Leaf{}
	}
	l, err := img.tree.Leaf(ctx, leaf)
	if err != nil {
		return &manifest.Leaf{}
	}
	return l
}

// tellOpened says, before any pack is told of, of which backups all chunks in it were
// opened, and in all packs that were told of before.
func (c *checker) tellOpened() error {
	before := len(c.opened)
	for n := range c.missed {
		delete(c.opened, c.report.Backups[n].Backup.Session)
	}
	if c.o.Opens == nil || c.toldOpened && len(c.opened) == before {
		return nil
	}
	c.toldOpened = true
	return c.o.Opens(slices.Sorted(maps.Keys(c.opened)))
}
