// Package quiesce brings a guest's file systems to rest for the instant of a snapshot,
// by the QEMU guest agent or by a command. What is frozen is thawed, whatever happens
// to the caller, unless this process dies: then somebody must call Thaw at the next
// start, so note a freeze durably before it begins. QUIESCE.md says more.
package quiesce

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// DefaultLimit is how long file systems may stay frozen: what Windows allows, and what
// programs in a guest bear.
const DefaultLimit = 10 * time.Second

const (
	// thawLimit is how long it is tried to thaw: a guest agent may first have to end
	// a freeze that took too long.
	thawLimit = time.Minute
	// thawAgain is the pause between two tries.
	thawAgain = 500 * time.Millisecond
)

var (
	// ErrUntouched is wrapped by errors of Freeze after which nothing is frozen by it.
	ErrUntouched = errors.New("nothing was frozen")
	// ErrFrozen is wrapped when thawing failed: the guest may stand still.
	ErrFrozen = errors.New("the guest may still be frozen")
	// ErrLimit is wrapped when the limit passed before all was done: the guest was
	// thawed then.
	ErrLimit = errors.New("the guest was frozen for as long as it may be")
)

// Hook freezes and thaws what is on one volume. Both return when ctx ends. Thaw of
// what is not frozen is no error.
type Hook interface {
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
}

// Around calls fn while the guest is frozen. It is thawed when fn returns, and at the
// latest when the limit has passed since the beginning or ctx has ended: fn's context
// ends then, and what fn has done by then counts as failed, as the guest may have
// written. An error that wraps ErrFrozen is for a human.
func Around(ctx context.Context, h Hook, limit time.Duration, fn func(context.Context) error) error {
	frozen, cancel := context.WithTimeoutCause(ctx, limit, ErrLimit)
	defer cancel()
	err := h.Freeze(frozen)
	if errors.Is(err, ErrUntouched) {
		return err //nolint:wrapcheck // a sentence of this package's
	}
	thawed := make(chan error, 1)
	thaw := func() { thawed <- thawForSure(ctx, h) }
	stop := context.AfterFunc(frozen, thaw)
	if err == nil {
		err = fn(frozen)
	}
	late := !stop()
	if !late {
		thaw()
	}
	if err == nil && late {
		err = fmt.Errorf("quiesce: %w: nothing that was done counts (limit %v)", context.Cause(frozen), limit)
	}
	return errors.Join(err, <-thawed)
}

// thawForSure thaws in time of its own, and tries again.
func thawForSure(ctx context.Context, h Hook) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), thawLimit)
	defer cancel()
	for {
		err := h.Thaw(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (%w)", err, ErrFrozen)
		case <-time.After(thawAgain):
		}
	}
}
