package restore

import (
	"context"
	"fmt"
)

// skips says whether an error of the image may be passed over.
func (r *run) skips(err error) bool { return r.o.Skip != nil && r.o.Skip(err) }

// skip passes over a range that cannot be read.
func (r *run) skip(off, n int64, err error) {
	if r.o.Skipped == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.o.Skipped(off, n, err)
}

// salvage is write for a range of which something cannot be read: block by block.
func (w *worker) salvage(ctx context.Context, off, n int64, d *Progress) error {
	size := int64(w.o.BlockSize)
	for end := off + n; off < end; {
		next := min(end, off-off%size+size)
		p := w.fresh[:next-off]
		err := w.img.ReadAt(ctx, p, off)
		switch {
		case err == nil:
			d.Read += next - off
			if err = w.put(ctx, p, off, d); err != nil {
				return err
			}
		case w.skips(err):
			d.Skipped += next - off
			w.skip(off, next-off, err)
		default:
			return fmt.Errorf("read the backup at byte %d: %w", off, err)
		}
		off = next
	}
	return nil
}
