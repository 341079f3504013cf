package source

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// Set is the foreign volumes of one agent. It is safe for concurrent use. Names and IDs
// that are not its own are [serve.ErrNotFound].
type Set struct {
	fs      vfs.FS
	dir     string
	drivers map[string]driver

	due     chan struct{} // see Due
	coming  chan struct{} // held by who adds or removes a volume
	ending  chan struct{} // held by who ends a snapshot for want of room
	mu      sync.Mutex    // never held while a server or the disk is waited for
	volumes map[string]*volume
}

// volume is one volume of a set.
type volume struct {
	turn chan struct{} // holds a token while nobody works on it

	// Guarded by Set.mu; rec is written on disk first.
	rec   Record
	err   error             // why the record cannot be used: only its ID is known
	snaps []*serve.Snapshot // that are there now
	swept bool              // nothing of earlier snapshots is left
	seen  state             // how it was
	at    time.Time         // when it was seen so; zero = never
	gone  bool
}

// Open reads the records in a folder, which is made when it is not there. What guests
// overwrite while a snapshot of their disk lasts goes to the folder fleeces in it. Nothing is
// asked of any server: [Set.Sweep] does what an earlier process left to be done.
func Open(fsys vfs.FS, dir string) (*Set, error) {
	fleeces := filepath.Join(dir, "fleeces")
	s := &Set{
		fs: fsys, dir: dir, due: make(chan struct{}, 1), coming: make(chan struct{}, 1), ending: make(chan struct{}, 1),
		volumes: map[string]*volume{},
		drivers: map[string]driver{KindNBD: nbdServer{}, KindQEMU: newQEMUDisk(fleeces)},
	}
	if err := vfs.MkdirAll(fsys, fleeces, 0o700); err != nil {
		return nil, err
	}
	l, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the foreign volumes: %w", err)
	}
	for _, e := range l {
		id, ok := strings.CutSuffix(e.Name(), fileName(""))
		if !ok || uuid.Validate(id) != nil {
			continue // a half-written one
		}
		s.volumes[id] = s.load(id)
	}
	return s, nil
}

func newVolume(r Record) *volume {
	v := &volume{turn: make(chan struct{}, 1), rec: r}
	v.turn <- struct{}{}
	return v
}

// load reads one record. One that is damaged is a volume all the same.
func (s *Set) load(id string) *volume {
	name := filepath.Join(s.dir, fileName(id))
	var r Record
	err := recordFormat.Read(s.fs, name, &r)
	if err == nil && r.ID != id {
		err = fmt.Errorf("the volume's ID is %q", r.ID)
	}
	if err == nil {
		err = r.check()
	}
	if err == nil {
		return newVolume(r)
	}
	v := newVolume(Record{ID: id, Name: id})
	v.err = fmt.Errorf("its record %s cannot be read: %w", name, err)
	return v
}

// Has reports whether ref is the name or ID of one of the volumes.
func (s *Set) Has(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, v := s.findLocked(ref)
	return v != nil
}

// HasSnapshot reports whether ref is the ID or name of one of the volumes' snapshots, or
// VOLUME@NAME.
func (s *Set) HasSnapshot(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, x := s.snapshotLocked(ref)
	return x != nil
}

func (s *Set) findLocked(ref string) (id string, v *volume) {
	if id = strings.ToLower(ref); s.volumes[id] != nil {
		return id, s.volumes[id]
	}
	for id, v := range s.volumes {
		if v.rec.Name == ref {
			return id, v
		}
	}
	return "", nil
}

func (s *Set) snapshotLocked(ref string) (*volume, *serve.Snapshot) {
	for _, v := range s.volumes {
		for _, x := range v.snaps {
			if x.ID == strings.ToLower(ref) || x.Name == ref || v.rec.Name+"@"+x.Name == ref {
				return v, x
			}
		}
	}
	return nil, nil
}

// work waits for its turn with a volume and calls f with its record, which f may change:
// what it left, without an error, is durable and valid when work returns.
func (s *Set) work(ctx context.Context, ref string, f func(v *volume, r *Record) error) error {
	s.mu.Lock()
	_, v := s.findLocked(ref)
	s.mu.Unlock()
	if v == nil {
		return noVolume(ref)
	}
	return s.turn(ctx, v, f)
}

func (s *Set) turn(ctx context.Context, v *volume, f func(v *volume, r *Record) error) error {
	select {
	case <-v.turn:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { v.turn <- struct{}{} }()
	s.mu.Lock()
	was, broken, gone := v.rec.clone(), v.err, v.gone
	s.mu.Unlock()
	switch {
	case gone:
		return noVolume(was.Name)
	case broken != nil:
		return refuse(serve.CodeConflict, "volume %s cannot be used, as %v: delete the volume and make it anew with the same --id", was.ID, broken)
	}
	now := was.clone()
	if err := f(v, &now); err != nil {
		return err
	}
	if now.same(was) {
		return nil
	}
	if err := s.save(now); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.rec = now
	return nil
}

func (s *Set) save(r Record) error {
	if err := recordFormat.Write(s.fs, filepath.Join(s.dir, fileName(r.ID)), r); err != nil {
		return fmt.Errorf("record volume %s: %w", r.Name, err)
	}
	return nil
}

func noVolume(ref string) error {
	return refuse(serve.CodeNotFound, "Volume %s could not be found: \"cairn volume list\" shows what there is.", ref)
}

func (s *Set) snapshotsOf(v *volume) []*serve.Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(v.snaps)
}
