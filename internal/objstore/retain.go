package objstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Retainer is a store that can refuse the deletion of objects for a time,
// whoever asks for it.
type Retainer interface {
	// Retain sees to it that the object cannot be deleted before until: Delete
	// then fails with ErrRetained. An object that is retained for longer stays
	// so. An error is of errors.ErrUnsupported when the store does not retain.
	Retain(ctx context.Context, name string, until time.Time) error
}

// Retain retains an object of any store; errors.ErrUnsupported says that it does
// not do that.
func Retain(ctx context.Context, s Store, name string, until time.Time) error {
	if r, ok := s.(Retainer); ok {
		return r.Retain(ctx, name, until) //nolint:wrapcheck // stores name themselves and the object
	}
	return fmt.Errorf("retain %s in %s: %w", name, s.URL(), errors.ErrUnsupported)
}
