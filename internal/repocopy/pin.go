package repocopy

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/repository"
)

// unpinTime bounds the end of a pin.
const unpinTime = 30 * time.Second

// pinID is the ID of the pin of a copy whose session in the destination has this
// ID: the same, written as pins' IDs are.
func pinID(session string) (string, error) {
	id, err := uuid.Parse(session)
	if err != nil {
		return "", fmt.Errorf("session %q: %w", session, err)
	}
	return id.String(), nil
}

// pinSession is its inverse. Not ok: the pin is none of a copy.
func pinSession(pin string) (session string, ok bool) {
	id, err := uuid.Parse(pin)
	return hex.EncodeToString(id[:]), err == nil
}

// use is how the use of pins of copies to the destination begins.
func (c *copier) use() string { return "copied to repository " + c.dst.Info().ID }

// endStale removes the pins of copies to the same destination that are over: their
// processes were killed, or could not reach the source at their end. What cannot be
// told or removed is left to the next copy.
func (c *copier) endStale(ctx context.Context, pins []repository.Pin) {
	for _, p := range pins {
		session, ok := pinSession(p.ID)
		if !ok || p.State != repository.Available || !strings.HasPrefix(p.By, c.use()) {
			continue
		}
		over, err := c.dst.SessionOver(ctx, session)
		if err == nil && over {
			err = c.end(ctx, p.ID)
		}
		if err != nil {
			c.stale = fmt.Sprintf("a copy that is over may have left pin %s in the source, which the next copy looks at again (%v)", p.ID, err)
		}
	}
}

// pin pins the backup in the source until unpin, which says what went wrong with
// it, is called. A source that does not take pins – its stores are read-only for
// us, or too few answer – is read without, and not asked again. errGone: the source
// has it no longer.
func (r *one) pin(ctx context.Context, session string) (unpin func() string, err error) {
	none := func() string { return "" }
	if r.unpinned != "" {
		return none, nil
	}
	id, err := pinID(session)
	if err != nil {
		return none, err
	}
	perr := r.src.Pin(ctx, id, r.b.ID, r.use()+r.by())
	if perr == nil {
		return func() string { return r.unpin(ctx, id) }, nil
	}
	_ = r.end(ctx, id) // it may have been made all the same; a prune settles the rest
	switch {
	case ctx.Err() != nil:
		return none, fmt.Errorf("pin the backup in the source: %w", ctx.Err())
	case errors.Is(perr, repository.ErrNotFound):
		return none, errGone
	case errors.Is(perr, repository.ErrPruning): // the next may be spared
	default:
		r.unpinned = perr.Error()
	}
	r.warn("it is not protected while it is read, as the source takes no pins: when somebody deletes it, a prune may end the copy (" + perr.Error() + ")")
	return none, nil
}

// unpin ends a pin and says what is left of it.
func (r *one) unpin(ctx context.Context, id string) string {
	if err := r.end(ctx, id); err != nil {
		return fmt.Sprintf("it stays pinned in the source: the next copy to the same repository ends that, or \"cairn repo unpin %s\" (%v)", id, err)
	}
	return ""
}

func (c *copier) end(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unpinTime)
	defer cancel()
	if err := c.src.Unpin(ctx, id); err != nil && !errors.Is(err, repository.ErrNotFound) {
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
