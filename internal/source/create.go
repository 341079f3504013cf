package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/serve"
)

// Create finds the disk that r says and makes a volume of it: it takes a name, a kind and
// what that needs, and may have an ID and attributes. Whether the name is free elsewhere
// is the caller's to know.
func (s *Set) Create(ctx context.Context, r Record) (serve.Volume, error) {
	if r.ID == "" {
		r.ID = uuid.NewString()
	}
	r.ID, r.Made, r.Checkpoints = strings.ToLower(r.ID), time.Now().UTC(), nil
	if err := r.normal(); err != nil {
		return serve.Volume{}, err
	}
	var err error
	if r.Size, err = s.drivers[r.Kind].look(ctx, r); err != nil {
		return serve.Volume{}, err
	}
	v, err := s.add(ctx, r)
	if err != nil {
		return serve.Volume{}, err
	}
	return s.show(ctx, v, 0), nil
}

// add makes a new record a volume, which nobody sees before it is durable.
func (s *Set) add(ctx context.Context, r Record) (*volume, error) {
	leave, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err = s.free(r); err != nil {
		return nil, err
	}
	if err = s.save(r); err != nil {
		return nil, err
	}
	// An earlier volume may have had the ID, and have left something there.
	v := newVolume(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes[r.ID] = v
	return v, nil
}

// enter waits until nobody adds or removes a volume, and keeps others from it until leave
// is called.
func (s *Set) enter(ctx context.Context) (leave func(), err error) {
	select {
	case s.coming <- struct{}{}:
		return func() { <-s.coming }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// free refuses a record whose name or ID another volume has.
func (s *Set) free(r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, v := s.findLocked(r.Name); v != nil {
		return refuse(serve.CodeConflict, "there is a volume %s already (%s): name this one otherwise", r.Name, id)
	}
	if _, v := s.findLocked(r.ID); v != nil {
		return refuse(serve.CodeConflict, "volume %s has the ID %s already", v.rec.Name, r.ID)
	}
	return nil
}

// Delete forgets a volume, and drops what was made for it where it is served, if that
// answers. It is refused while it has a snapshot.
func (s *Set) Delete(ctx context.Context, ref string) error {
	s.mu.Lock()
	_, v := s.findLocked(ref)
	broken := v != nil && v.err != nil
	s.mu.Unlock()
	switch {
	case v == nil:
		return noVolume(ref)
	case broken:
		return s.remove(ctx, v)
	}
	return s.turn(ctx, v, func(v *volume, r *Record) error {
		if len(s.snapshotsOf(v)) > 0 {
			return refuse(serve.CodeBusy, "a backup reads volume %s: wait for its job or cancel it, then delete the volume", r.Name)
		}
		d := s.drivers[r.Kind]
		err := d.sweep(ctx, *r)
		for _, c := range r.Checkpoints {
			if err == nil {
				err = d.forget(ctx, *r, c.Name)
			}
		}
		if err != nil && !errors.Is(err, ErrAway) {
			return err
		}
		return s.remove(ctx, v)
	})
}

// remove takes a volume out of the set, durably, unless another call has.
func (s *Set) remove(ctx context.Context, v *volume) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	s.mu.Lock()
	name, gone := v.rec.Name, v.gone
	s.mu.Unlock()
	if gone {
		return noVolume(name)
	}
	err = s.fs.Remove(filepath.Join(s.dir, fileName(v.rec.ID)))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("forget volume %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.gone = true
	delete(s.volumes, v.rec.ID)
	return nil
}
