package repocopy

import (
	"context"
	"fmt"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/backup"
	"github.com/cairnbackup/cairn/internal/manifest"
)

// fullPlan reads all of a backup that is no hole. bytes is how much that is.
func fullPlan(ctx context.Context, t *manifest.Tree) (p backup.Plan, bytes int64, err error) {
	p.Geometry = t.Geometry()
	exts, err := t.Extents(ctx, 0, p.Geometry.Size)
	if err != nil {
		return p, 0, fmt.Errorf("read the manifest: %w", err)
	}
	bytes = p.Geometry.Size
	for _, e := range exts {
		if e.State&blockmap.Zero != 0 {
			p.Allocated = append(p.Allocated, e)
			bytes -= e.Length
		}
	}
	return p, bytes, nil
}

// diffPlan reads the blocks in which a backup differs from its base. Both trees
// are the source's, where equal IDs are equal blocks.
func diffPlan(ctx context.Context, t, base *manifest.Tree) (p backup.Plan, bytes int64, err error) {
	g := t.Geometry()
	p = backup.Plan{Geometry: g, Dirty: []blockmap.Extent{}, Certain: true}
	err = t.Diff(ctx, base, func(leaf int64, mine, theirs *manifest.Leaf) error {
		for i := range manifest.LeafBlocks {
			block := leaf*manifest.LeafBlocks + int64(i)
			if block >= g.Blocks() {
				break
			}
			now, has := mine.At(i)
			was, had := theirs.At(i)
			if has == had && now.ID == was.ID {
				continue
			}
			e := blockmap.Extent{Offset: g.Offset(block), Length: int64(g.BlockLen(block)), State: blockmap.Dirty}
			p.Dirty = blockmap.Append(p.Dirty, e)
			if has {
				bytes += e.Length
				continue
			}
			e.State = blockmap.Hole | blockmap.Zero
			p.Allocated = blockmap.Append(p.Allocated, e)
		}
		return nil
	})
	if err != nil {
		return p, 0, fmt.Errorf("compare two manifests: %w", err)
	}
	// What the volume has grown by is read without being listed, and only what
	// is a hole on both sides was not met above.
	if from := base.Geometry().Size; from < g.Size {
		exts, err := t.Extents(ctx, from, g.Size-from)
		if err != nil {
			return p, 0, fmt.Errorf("read the manifest: %w", err)
		}
		for _, e := range exts {
			if e.State&blockmap.Zero != 0 {
				p.Allocated = append(p.Allocated, e)
			}
		}
	}
	return p, bytes, nil
}
