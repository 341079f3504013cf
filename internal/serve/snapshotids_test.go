package serve

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// Snapshots have the IDs that the caller gave, and are found by them when they
// are back.
func TestSnapshotIDs(t *testing.T) {
	p := testPlane(t, vfs.OS())
	for _, name := range []string{"a", "b"} {
		_, err := p.createVolume(t.Context(), CreateVolume{Name: name, Size: 1 << 20})
		must(t, err)
	}
	ids := []string{uuid.NewString(), uuid.NewString()}
	ss, err := p.createSnapshots(t.Context(), CreateSnapshots{Volumes: []string{"b", "a"}, IDs: ids})
	must(t, err)
	if len(ss) != 2 || ss[0].ID != ids[0] || ss[0].Volume != "b" || ss[1].ID != ids[1] || ss[1].Volume != "a" {
		t.Errorf("snapshots %+v, want those with the IDs %s", ss, ids)
	}
	_, err = p.reopenVolume(t.Context(), "a")
	must(t, err)
	if s, showErr := p.showSnapshot("a@" + ids[1]); showErr != nil || s.ID != ids[1] {
		t.Errorf("snapshot %+v, %v", s, showErr)
	}
	must(t, p.deleteSnapshot(t.Context(), ids[1]))
	// The ID of one that is gone is free.
	_, err = p.createSnapshots(t.Context(), CreateSnapshots{Volumes: []string{"b"}, IDs: ids[1:]})
	must(t, err)
	if len(p.making) != 0 {
		t.Errorf("%d snapshots are still being made", len(p.making))
	}
}

// Of many requests for one ID, on whatever volumes, one gets it.
func TestOneSnapshotForAnID(t *testing.T) {
	p := testPlane(t, vfs.OS())
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		_, err := p.createVolume(t.Context(), CreateVolume{Name: name, Size: 1 << 20})
		must(t, err)
	}
	for range 5 {
		id := uuid.NewString()
		errs := make([]error, 2*len(names))
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				_, errs[i] = p.createSnapshots(t.Context(), CreateSnapshots{Volumes: []string{names[i%len(names)]}, IDs: []string{id}})
			})
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else if !errors.Is(err, ErrConflict) {
				t.Errorf("refused: %v", err)
			}
		}
		if made != 1 {
			t.Errorf("%d snapshots with one ID", made)
		}
		must(t, p.deleteSnapshot(t.Context(), id))
	}
}

// Who deletes a snapshot by the ID that he gave finds it, also while it is still
// being made.
func TestDeleteSnapshotBeingMade(t *testing.T) {
	p := testPlane(t, vfs.OS())
	_, err := p.createVolume(t.Context(), CreateVolume{Name: "vol", Size: 1 << 20})
	must(t, err)
	e, err := p.find("vol")
	must(t, err)
	must(t, e.lock(t.Context())) // the request waits for another change
	id := uuid.NewString()
	made, deleted := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := p.createSnapshots(t.Context(), CreateSnapshots{Volumes: []string{"vol"}, IDs: []string{id}})
		made <- err
	}()
	for {
		p.mu.RLock()
		n := len(p.making)
		p.mu.RUnlock()
		if n > 0 {
			break
		}
		select {
		case err := <-made:
			t.Fatalf("the snapshot was made, or not, under a lock: %v", err)
		default:
		}
	}
	hungUp, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.deleteSnapshot(hungUp, id); !errors.Is(err, context.Canceled) {
		t.Errorf("who hung up: %v", err)
	}
	go func() { deleted <- p.deleteSnapshot(t.Context(), "vol@"+id) }()
	e.unlock()
	must(t, <-made)
	must(t, <-deleted)
	if _, err := p.showSnapshot(id); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted: %v", err)
	}
	if err := p.deleteSnapshot(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Errorf("deleted again: %v", err)
	}
}
