package source

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// TestSnapshotsEndForRoom: of the snapshots that take up too much room as many end, each
// with the reason, as it takes for the others to go on.
func TestSnapshotsEndForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		f := &fake{size: 1 << 20}
		s := open(t, vfs.NewMem(), f)
		full, room := errors.New("only 7 MiB are free in /fleeces"), 3
		f.full = func() error {
			s.mu.Lock()
			defer s.mu.Unlock()
			n := 0
			for _, v := range s.volumes {
				n += len(v.snaps)
			}
			if n > room {
				return full
			}
			return nil
		}
		watching, stop := context.WithCancel(ctx)
		ended := make(chan error, 3)
		for _, name := range []string{"one", "two", "three"} {
			create(t, s, name)
			req := temporary(name, "")
			req.Name = "b-" + name
			l, err := s.CreateSnapshots(ctx, req, nil)
			if err != nil {
				t.Fatal(err)
			}
			go func() { ended <- s.WatchSnapshot(watching, l[0].ID) }()
		}
		synctest.Wait()
		s.mu.Lock()
		room = 1
		s.mu.Unlock()
		for range 2 {
			if err := <-ended; !errors.Is(err, full) {
				t.Error(err)
			}
		}
		l, err := s.Snapshots("")
		if err != nil || len(l) != 1 {
			t.Errorf("there is %+v, %v", l, err)
		}
		stop()
		if err = <-ended; err != nil {
			t.Error(err)
		}
		if err = s.WatchSnapshot(ctx, "x"); !errors.Is(err, serve.ErrNotFound) {
			t.Error(err)
		}
	})
}
