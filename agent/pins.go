package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
)

// briefly is how long an export that some program made for itself, as mounts do,
// goes without a pin: most have ended by then.
const briefly = time.Minute

// tidyPins makes the pins of exports that have none, and removes those whose
// export has ended. A pin is recorded before it is made and until it is removed,
// so that nothing that the agent does not know of stays on the stores.
func (s *server) tidyPins(ctx context.Context) error {
	pins, err := s.cat.Pins(ctx)
	if err != nil {
		return err
	}
	pinned := map[string]bool{}
	var errs []error
	for _, p := range pins {
		x, ok := s.exports.get(p.Export)
		switch {
		case !ok || x.rec.Backup != p.Backup:
			errs = append(errs, s.unpin(ctx, p))
			continue
		case !p.Made:
			errs = append(errs, s.pin(ctx, p, x.rec))
		}
		pinned[p.Export] = true
	}
	for _, x := range s.exports.all() {
		if pinned[x.rec.Name] || x.rec.Purpose != "" && time.Since(x.rec.Created) < briefly {
			continue
		}
		p := catalog.Pin{ID: uuid.NewString(), Backup: x.rec.Backup, Export: x.rec.Name}
		if err := s.cat.PutPin(ctx, p); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, s.pin(ctx, p, x.rec))
	}
	return errors.Join(errs...)
}

func (s *server) pin(ctx context.Context, p catalog.Pin, x catalog.Export) error {
	by := "exported as " + x.Name
	if x.Purpose != "" {
		by += ", " + x.Purpose
	}
	if err := s.repo.Pin(ctx, p.ID, s.exports.stored(ctx, p.Backup), by); err != nil {
		return fmt.Errorf("export %s: %w", x.Name, err)
	}
	p.Made = true
	if err := s.cat.PutPin(ctx, p); err != nil {
		return err
	}
	s.exports.pin(p)
	return nil
}

func (s *server) unpin(ctx context.Context, p catalog.Pin) error {
	if err := s.repo.Unpin(ctx, p.ID); err != nil && !errors.Is(err, repository.ErrNotFound) {
		return fmt.Errorf("export %s has ended: %w", p.Export, err)
	}
	s.exports.unpin(p)
	return s.cat.RemovePin(ctx, p.ID)
}

// pins lists who uses backups, here and elsewhere.
func (s *server) pins(ctx context.Context, _ request) (any, error) {
	l, err := s.repo.Pins(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Pin, 0, len(l))
	for _, p := range l {
		out = append(out, Pin{ID: p.ID, Backup: p.Backup, Volume: p.Volume, By: p.By, Agent: p.Agent, Since: p.Since})
	}
	return out, nil
}

// pin notes under which pin an export can be opened when its backup is gone.
func (x *exports) pin(p catalog.Pin) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pins[p.Export] = p
}

func (x *exports) unpin(p catalog.Pin) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.pins[p.Export].ID == p.ID {
		delete(x.pins, p.Export)
	}
}

// stored is the ID that a backup has in the repository.
func (x *exports) stored(ctx context.Context, id string) string {
	if b, err := x.cat.Backup(ctx, id); err == nil {
		return b.Stored()
	}
	return id // its record is gone, and what is left of it is found by its own ID or not at all
}

// image opens the backup of an export, by its pin if it was deleted meanwhile.
func (x *exports) image(ctx context.Context, e catalog.Export) (*repository.Image, error) {
	img, err := x.repo.Image(ctx, x.stored(ctx, e.Backup))
	x.mu.Lock()
	p, ok := x.pins[e.Name]
	x.mu.Unlock()
	if ok && p.Backup == e.Backup && errors.Is(err, repository.ErrNotFound) {
		return x.repo.Image(ctx, p.ID)
	}
	return img, err
}
