package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/serve"
)

// told is what the agent told its catalog of the volumes and snapshots of its data
// plane: quotas count it, and agents that share the catalog show it. The data plane is
// the truth, and each telling brings the catalog back to it.
type told struct {
	mu       sync.Mutex
	known    map[string]catalog.Volume // by ID; nil = not known, it is read first
	reserved map[string]int            // by ID: being made or enlarged, so the data plane does not decide yet
	wake     chan struct{}             // something may have changed
}

func (t *told) poke() {
	select {
	case t.wake <- struct{}{}:
	default: // a wake-up is pending already
	}
}

// keepTelling tells when something changed, and now and then, until ctx ends.
func (s *server) keepTelling(ctx context.Context) {
	tick := time.NewTicker(catalog.BeatEvery)
	defer tick.Stop()
	for {
		if err := s.tellVolumes(ctx); err != nil && ctx.Err() == nil {
			level := slog.LevelWarn
			if errors.Is(err, serve.ErrUnreachable) {
				level = slog.LevelInfo // said by every request that needs it
			}
			s.log.LogAttrs(ctx, level, "volumes not told to the catalog yet", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-s.hub.told.wake:
		case <-tick.C:
		}
	}
}

// tellVolumes brings the catalog to what the data plane has.
func (s *server) tellVolumes(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiWorkTimeout)
	defer cancel()
	t := &s.hub.told
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := s.recallLocked(ctx); err != nil {
		return err
	}
	now, err := s.hub.blockStorage().toTell(ctx)
	if err != nil {
		return err
	}
	var put []catalog.Volume
	var gone []string
	for id, v := range now {
		if was, ok := t.known[id]; t.reserved[id] == 0 && (!ok || !sameVolume(was, v)) {
			put = append(put, v)
		}
	}
	for id, was := range t.known {
		if _, ok := now[id]; !ok && t.reserved[id] == 0 && was.Kind != catalog.GoneKind {
			gone = append(gone, id)
		}
	}
	if err := s.cat.TellVolumes(ctx, put, gone); err != nil {
		t.known = nil // some of it may be there
		return err
	}
	for _, v := range put {
		t.known[v.ID] = v
	}
	for _, id := range gone {
		delete(t.known, id)
	}
	return nil
}

// recallLocked reads what an earlier telling left.
func (s *server) recallLocked(ctx context.Context) error {
	t := &s.hub.told
	if t.known != nil {
		return nil
	}
	l, err := s.cat.OwnVolumes(ctx)
	if err != nil {
		return err
	}
	t.known = make(map[string]catalog.Volume, len(l))
	for _, v := range l {
		t.known[v.ID] = v
	}
	return nil
}

func sameVolume(a, b catalog.Volume) bool {
	return a.Kind == b.Kind && a.Project == b.Project && a.Gigabytes == b.Gigabytes && a.Epoch == b.Epoch && a.Open == b.Open && bytes.Equal(a.Data, b.Data)
}

// toTell is what the data plane has, by ID.
func (b *blockStorage) toTell(ctx context.Context) (map[string]catalog.Volume, error) {
	volumes, err := b.serve.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := b.serve.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	now := b.underway()
	out := make(map[string]catalog.Volume, len(volumes)+len(snapshots))
	notes := make(map[string]volumeNotes, len(volumes))
	for _, v := range volumes {
		notes[v.ID] = notesOf(v)
		if out[v.ID], err = b.volumeRecord(v, now); err != nil {
			return nil, err
		}
	}
	for _, x := range snapshots {
		if x.Temporary {
			continue
		}
		shown := now.snapshot(x, notes[x.VolumeID])
		data, err := json.Marshal(shown)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", x.ID, err)
		}
		out[x.ID] = catalog.Volume{ID: x.ID, Kind: catalog.SnapshotKind, Project: shown.Project, Gigabytes: shown.Size, Data: data}
	}
	return out, nil
}

func (b *blockStorage) volumeRecord(v Volume, now underway) (catalog.Volume, error) {
	shown := b.shownVolume(v, now)
	data, err := json.Marshal(shown)
	if err != nil {
		return catalog.Volume{}, fmt.Errorf("volume %s: %w", v.ID, err)
	}
	out := catalog.Volume{ID: v.ID, Kind: catalog.VolumeKind, Project: shown.Project, Gigabytes: shown.Size, Open: v.InUse, Data: data}
	if v.Epoch != nil {
		out.Epoch = int64(*v.Epoch) //nolint:gosec // no host opens a volume so often
	}
	return out, nil
}

// reserve takes room in a project's quota for a volume or snapshot that begin makes, or
// for one that it enlarges. What begin did counts from then on, whatever it returns:
// the data plane is asked again.
func (b *blockStorage) reserve(ctx context.Context, x catalog.Volume, begin func() error) error {
	if err := b.tellVolumes(ctx); err != nil { // to count what is there
		return fault(err, "")
	}
	if err := b.reserving(ctx, x); err != nil {
		return fault(err, "")
	}
	err := func() error {
		defer b.hub.told.release(x.ID) // also if begin panics: nothing else would ever count it right again
		return begin()
	}()
	// Whoever was told of a failure need not know that it is still counted for a moment.
	if terr := b.tellVolumes(context.WithoutCancel(ctx)); terr != nil {
		b.log.LogAttrs(ctx, slog.LevelWarn, "volumes not told to the catalog yet", slog.Any("error", terr))
		b.hub.told.poke()
	}
	return err
}

func (b *blockStorage) reserving(ctx context.Context, x catalog.Volume) error {
	t := &b.hub.told
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := b.recallLocked(ctx); err != nil {
		return err
	}
	if was, ok := t.known[x.ID]; ok { // to be enlarged
		x.Data, x.Epoch, x.Open = was.Data, was.Epoch, was.Open
	}
	err := b.cat.ReserveVolume(ctx, x, defaultLimits)
	if _, full := errors.AsType[*catalog.QuotaError](err); full {
		return err
	}
	if err != nil {
		t.known = nil // it may be there
		return err
	}
	t.known[x.ID] = x
	if t.reserved == nil {
		t.reserved = map[string]int{}
	}
	t.reserved[x.ID]++
	return nil
}

func (t *told) release(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reserved[id]--; t.reserved[id] == 0 {
		delete(t.reserved, id)
	}
}

// reservation is a record for what is about to be made, with the ID that it is to have.
func reservation(kind, project string, size int64) catalog.Volume {
	return catalog.Volume{ID: uuid.NewString(), Kind: kind, Project: project, Gigabytes: size}
}
