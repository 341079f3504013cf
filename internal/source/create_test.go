package source

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// slowDisk is a file system whose renames and removals, which put a record where it is read
// and take it away, wait until a test goes on.
type slowDisk struct {
	*vfs.Mem

	begun, goOn chan struct{}
}

func (d *slowDisk) Rename(from, to string) error {
	d.begun <- struct{}{}
	<-d.goOn
	return d.Mem.Rename(from, to)
}

func (d *slowDisk) Remove(name string) error {
	d.begun <- struct{}{}
	<-d.goOn
	return d.Mem.Remove(name)
}

// TestDiskIsNotWaitedFor: while the disk takes its time with a record the set answers, and
// of two volumes with one name, or one ID, one is made.
func TestDiskIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		d := &slowDisk{vfs.NewMem(), make(chan struct{}), make(chan struct{})}
		s := open(t, d, &fake{size: 1 << 20})
		const id = "0f8fad5b-d9cb-469f-a165-70867728950e"
		results := make(chan error, 3)
		add := func(name, id string) {
			go func() {
				_, err := s.Create(ctx, Record{ID: id, Name: name, Kind: KindNBD, URI: "nbd://host/" + name})
				results <- err
			}()
		}
		add("disk", id)
		<-d.begun
		add("disk", "")
		add("other", id)
		synctest.Wait()
		select {
		case <-d.begun:
			t.Error("two volumes are written at once")
			d.goOn <- struct{}{}
		default:
		}
		if s.Has("disk") || len(s.Volumes(ctx)) != 0 {
			t.Error("a volume is shown before it is durable")
		}
		d.goOn <- struct{}{}
		refused := 0
		for range 3 {
			if err := <-results; errors.Is(err, serve.ErrConflict) {
				refused++
			} else if err != nil {
				t.Error(err)
			}
		}
		if refused != 2 || !s.Has("disk") || s.Has("other") {
			t.Errorf("%d were refused", refused)
		}

		ends := make(chan error, 1)
		go func() { ends <- s.Delete(ctx, id) }()
		<-d.begun
		add("disk", id)
		synctest.Wait()
		if !s.Has("disk") {
			t.Error("a volume is gone before that is durable")
		}
		d.goOn <- struct{}{}
		if err := <-ends; err != nil {
			t.Error(err)
		}
		<-d.begun
		d.goOn <- struct{}{}
		if err := <-results; err != nil || !s.Has("disk") {
			t.Error(err)
		}
	})
}
