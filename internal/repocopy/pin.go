package repocopy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/repository"
)

// unpinTime bounds the end of a pin.
const unpinTime = 30 * time.Second

// pin pins the backup in the source until unpin, which says what went wrong with
// it, is called. A source that does not take pins – its stores are read-only for
// us, or too few answer – is read without, and not asked again.
func (r *one) pin(ctx context.Context) (unpin func() string, err error) {
	none := func() string { return "" }
	if r.unpinned != "" {
		return none, nil
	}
	id := uuid.NewString()
	perr := r.src.Pin(ctx, id, r.b.ID, "copied to repository "+r.dst.Info().ID+r.by())
	if perr == nil {
		return func() string { return r.unpin(ctx, id) }, nil
	}
	_ = r.end(ctx, id) // it may have been made all the same; a prune settles the rest
	switch {
	case ctx.Err() != nil:
		return none, fmt.Errorf("pin the backup in the source: %w", ctx.Err())
	case errors.Is(perr, repository.ErrNotFound):
		return none, fmt.Errorf("the source has it no longer: %w", perr)
	}
	r.unpinned = perr.Error()
	r.warn("it is not protected while it is read, as the source takes no pins: when somebody deletes it, a prune may end the copy (" + r.unpinned + ")")
	return none, nil
}

// unpin ends a pin and says what is left of it.
func (r *one) unpin(ctx context.Context, id string) string {
	if err := r.end(ctx, id); err != nil {
		return fmt.Sprintf("it stays pinned in the source: \"cairn repo unpin %s\" there ends that (%v)", id, err)
	}
	return ""
}

func (r *one) end(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unpinTime)
	defer cancel()
	if err := r.src.Unpin(ctx, id); err != nil && !errors.Is(err, repository.ErrNotFound) {
		return err //nolint:wrapcheck // only told
	}
	return nil
}

func (r *one) by() string {
	if r.o.By == "" {
		return ""
	}
	return " by " + r.o.By
}
