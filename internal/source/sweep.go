package source

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"
)

// sweepAtOnce is how many volumes a sweep works on at once: one whose server hangs shall
// not keep the others waiting.
const sweepAtOnce = 8

// Due returns what receives when [Set.Sweep] should be called soon: something could not be
// removed, or where there is something to be removed answers again.
func (s *Set) Due() <-chan struct{} { return s.due }

// leftLocked notes that there is something to be swept of a volume.
func (s *Set) leftLocked(v *volume) {
	v.swept = false
	select {
	case s.due <- struct{}{}:
	default: // nobody has come for the last one yet
	}
}

// left is leftLocked for who does not hold the lock.
func (s *Set) left(v *volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leftLocked(v)
}

// Sweep removes what is left of snapshots where an earlier process made them, or where one
// could not be ended: of each volume that has none now. It is to be called again until it
// succeeds.
func (s *Set) Sweep(ctx context.Context) error {
	s.mu.Lock()
	var l []*volume
	for _, v := range s.volumes {
		if !v.swept && v.err == nil {
			l = append(l, v)
		}
	}
	s.mu.Unlock()
	errs := make([]error, len(l))
	var all errgroup.Group
	all.SetLimit(sweepAtOnce)
	for i, v := range l {
		all.Go(func() error {
			errs[i] = s.turn(ctx, v, func(v *volume, r *Record) error { return s.sweep(ctx, v, *r) })
			return nil
		})
	}
	_ = all.Wait() // each has its own error
	return errors.Join(errs...)
}

// sweep is called in the volume's turn.
func (s *Set) sweep(ctx context.Context, v *volume, r Record) error {
	s.mu.Lock()
	swept, busy := v.swept, len(v.snaps) > 0
	s.mu.Unlock()
	if swept || busy {
		return nil
	}
	if err := s.drivers[r.Kind].sweep(ctx, r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.swept = true
	return nil
}
