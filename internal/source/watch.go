package source

import (
	"context"
	"time"
)

const (
	lookAtRoom = 100 * time.Millisecond // how often it is looked whether there is room left
	endLimit   = 30 * time.Second       // for the end of a snapshot that has to end
)

// WatchSnapshot returns when ctx ends, or with the reason why it has ended the snapshot
// before: what its volume's server keeps for it would take the last room of a disk here.
// Of several snapshots one after the other is ended, until there is room.
func (s *Set) WatchSnapshot(ctx context.Context, ref string) error {
	s.mu.Lock()
	v, x := s.snapshotLocked(ref)
	if x == nil {
		s.mu.Unlock()
		return noSnapshot(ref)
	}
	r := v.rec.clone()
	s.mu.Unlock()
	tick := time.NewTicker(lookAtRoom)
	defer tick.Stop()
	for {
		if err := s.endWithoutRoom(ctx, r, x.ID); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// endWithoutRoom ends a snapshot if there is no room for it, and says so. What cannot be
// ended now a sweep removes.
func (s *Set) endWithoutRoom(ctx context.Context, r Record, snapshot string) error {
	d := s.drivers[r.Kind]
	if d.room(r) == nil {
		return nil
	}
	select {
	case s.ending <- struct{}{}:
		defer func() { <-s.ending }()
	case <-ctx.Done():
		return nil
	}
	why := d.room(r) // another one may have ended meanwhile
	if why == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endLimit)
	defer cancel()
	_ = s.DeleteSnapshot(ctx, snapshot)
	return why
}
