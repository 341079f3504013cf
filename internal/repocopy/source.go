package repocopy

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnbackup/cairn/internal/backup"
	"github.com/cairnbackup/cairn/internal/repository"
)

// ReadError says which part of a backup the source does not give.
type ReadError struct {
	Backup       string
	First, Count int64 // blocks
	Offset, End  int64 // bytes
	Err          error
}

// Error returns the sentence.
func (e *ReadError) Error() string {
	return fmt.Sprintf("blocks %d to %d (bytes %d to %d) cannot be read in the source: %v", e.First, e.First+e.Count-1, e.Offset, e.End, e.Err)
}

// Unwrap returns the cause.
func (e *ReadError) Unwrap() error { return e.Err }

// source is an image as what is backed up.
type source struct{ img *repository.Image }

var _ backup.Source = source{}

// ReadAt implements backup.Source. An error is a *ReadError, except when ctx has
// ended.
func (s source) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := s.img.ReadAt(ctx, p, off)
	if err == nil || ctx.Err() != nil {
		return err //nolint:wrapcheck // of the context
	}
	g := s.img.Geometry()
	first, count := g.Span(off, int64(len(p)))
	if errors.Is(err, repository.ErrDamaged) {
		first, count, err = s.narrow(ctx, p, off, err)
	}
	return &ReadError{
		Backup: s.img.Backup().ID, First: first, Count: count,
		Offset: g.Offset(first), End: min(g.Offset(first+count), g.Size), Err: err,
	}
}

// narrow finds the first run of blocks that is damaged: a read is of many.
func (s source) narrow(ctx context.Context, p []byte, off int64, why error) (first, count int64, err error) {
	g := s.img.Geometry()
	all, n := g.Span(off, int64(len(p)))
	for b := all; b < all+n; b++ {
		err := s.img.ReadAt(ctx, p[:g.BlockLen(b)], g.Offset(b))
		switch {
		case ctx.Err() != nil:
			return all, n, why
		case err == nil && count > 0:
			return first, count, why
		case err != nil && count == 0:
			first, count, why = b, 1, err
		case err != nil:
			count++
		}
	}
	if count == 0 { // it was there the second time
		return all, n, why
	}
	return first, count, why
}

// session lets backup.Run write to the destination.
type session struct{ *repository.Session }

var _ backup.Session = session{}

// Worker opens a worker for one goroutine.
func (s session) Worker() (backup.Worker, error) {
	w, err := s.Session.Worker()
	if err != nil {
		return nil, err //nolint:wrapcheck // the run wraps it
	}
	return w, nil
}
