// Package memstore keeps objects in memory. It is the honest fake that tests
// run on: it does what the contract of objstore.Store says and nothing more,
// and WithFaults makes it misbehave in every way that a real store may.
package memstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/objstore"
)

// Store is an objstore.Store in memory.
type Store struct {
	name string

	mu      sync.RWMutex
	objects map[string][]byte
	now     func() time.Time // nil: it does not retain
	until   map[string]time.Time
}

var _ objstore.Store = (*Store)(nil)

// New returns an empty store. The name only serves URL.
func New(name string) *Store {
	return &Store{name: name, objects: make(map[string][]byte)}
}

// Put implements objstore.Store.
func (s *Store) Put(ctx context.Context, name string, body []byte) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("put: %w", err)
	}
	if len(body) > objstore.MaxObject {
		return fmt.Errorf("put %s: %d bytes: %w", name, len(body), objstore.ErrTooLarge)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.objects[name]; ok {
		return fmt.Errorf("put %s: %w", name, objstore.ErrExist)
	}
	s.objects[name] = slices.Clone(body)
	return nil
}

// Get implements objstore.Store.
func (s *Store) Get(ctx context.Context, name string, off, n int64, dst []byte) ([]byte, error) {
	if err := check(ctx, name); err != nil {
		return dst, fmt.Errorf("get: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	body, ok := s.objects[name]
	if !ok {
		return dst, fmt.Errorf("get %s: %w", name, objstore.ErrNotExist)
	}
	size := int64(len(body))
	if off < 0 || off > size || n > size-off {
		return dst, fmt.Errorf("get %s: %d bytes from %d of %d: %w", name, n, off, size, objstore.ErrRange)
	}
	if n < 0 {
		n = size - off
	}
	return append(dst, body[off:off+n]...), nil
}

// Stat implements objstore.Store.
func (s *Store) Stat(ctx context.Context, name string) (int64, error) {
	if err := check(ctx, name); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	body, ok := s.objects[name]
	if !ok {
		return 0, fmt.Errorf("stat %s: %w", name, objstore.ErrNotExist)
	}
	return int64(len(body)), nil
}

// List implements objstore.Store. It walks a copy of the names, in order, so
// that a test that fails fails the same way again.
func (s *Store) List(ctx context.Context, prefix string, fn func(objstore.Info) error) error {
	if err := objstore.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	s.mu.RLock()
	var infos []objstore.Info
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(name, prefix) {
			infos = append(infos, objstore.Info{Name: name, Size: int64(len(s.objects[name]))})
		}
	}
	s.mu.RUnlock()
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %q: %w", prefix, err)
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements objstore.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if until, ok := s.until[name]; ok && s.now().Before(until) {
		return fmt.Errorf("delete %s in %s: until %s: %w", name, s.URL(), until.UTC().Format(time.DateTime), objstore.ErrRetained)
	}
	delete(s.objects, name)
	delete(s.until, name)
	return nil
}

// Retains makes the store one that retains, by this clock.
func (s *Store) Retains(now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now, s.until = now, make(map[string]time.Time)
}

// Retain implements objstore.Retainer.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	if err := check(ctx, name); err != nil {
		return fmt.Errorf("retain: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now == nil {
		return fmt.Errorf("retain %s in %s: %w", name, s.URL(), errors.ErrUnsupported)
	}
	if _, ok := s.objects[name]; !ok {
		return fmt.Errorf("retain %s: %w", name, objstore.ErrNotExist)
	}
	if until.After(s.until[name]) {
		s.until[name] = until
	}
	return nil
}

// Until returns until when an object is retained, the zero time if it is not.
func (s *Store) Until(name string) time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.until[name]
}

// URL implements objstore.Store.
func (s *Store) URL() string { return "mem:" + s.name }

// Close implements objstore.Store. The objects stay: a test reopens the store
// by using it again.
func (s *Store) Close() error { return nil }

// Clone returns a copy that shares nothing with s: what a test goes back to.
func (s *Store) Clone() *Store {
	s.mu.RLock()
	defer s.mu.RUnlock()
	// Bodies are never changed in place, so that sharing them is safe.
	return &Store{name: s.name, objects: maps.Clone(s.objects), now: s.now, until: maps.Clone(s.until)}
}

// Replace puts body in the place of an object, or of none: damage, or the work
// of a hostile store.
func (s *Store) Replace(name string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[name] = slices.Clone(body)
}

// Names returns the names of all objects, sorted.
func (s *Store) Names() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Sorted(maps.Keys(s.objects))
}

func check(ctx context.Context, name string) error {
	if err := objstore.CheckName(name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
