package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cairnbackup/cairn/internal/serve"
)

// releasing lets the snapshot go that a backup took for itself, as far as it has been
// read: guests pay for each block that they overwrite and that is still to be read, and
// for no other. tell says how far that is, from one goroutine at a time, and waits for
// nothing. It is passed on beside the reading, one request at a time, each with the newest
// that was told; stop waits a moment for the last. No backup fails for it.
func (r *backupRun) releasing(ctx context.Context) (tell func(before int64), stop func()) {
	if r.rec.SnapshotID != "" {
		return func(int64) {}, func() {} // it stays, and others may read it
	}
	ctx, cancel := context.WithCancel(ctx)
	newest := make(chan int64, 1)
	var wg sync.WaitGroup
	wg.Go(func() { r.release(ctx, newest) })
	tell = func(before int64) {
		select {
		case <-newest:
		default: // it was taken
		}
		newest <- before // only this puts something in
	}
	return tell, func() {
		close(newest)
		defer time.AfterFunc(releasePatience, cancel).Stop()
		wg.Wait()
		cancel()
	}
}

// releasePatience is how long the end of the reading waits for the last release.
const releasePatience = 2 * time.Second

// release passes on what comes, until nothing more does or nobody wants to know.
func (r *backupRun) release(ctx context.Context, newest <-chan int64) {
	done, failed := int64(0), false
	for before := range newest {
		if before <= done {
			continue
		}
		err := r.serve.ReleaseSnapshot(ctx, r.snap.ID, before)
		if errors.Is(err, serve.ErrNotFound) || errors.Is(err, serve.ErrInvalid) {
			r.log.LogAttrs(ctx, slog.LevelDebug, "what was read of the snapshot is kept", slog.Any("error", err))
			return
		}
		r.released = true // also if the answer was lost
		switch {
		case err == nil:
			done = before
		case ctx.Err() == nil && !failed:
			failed = true
			r.log.LogAttrs(ctx, slog.LevelWarn, "what was read of the snapshot is not released yet", slog.String("snapshot", r.snap.ID), slog.Any("error", err))
		}
	}
}

// retakeSnapshot takes another snapshot in the place of the backup's own, of which a part
// is released. The checkpoint goes with the first one, so that the catalog never says of it
// what was seen before the second.
func (r *backupRun) retakeSnapshot(ctx context.Context) error {
	r.dropSnapshot(ctx)
	if r.snap.ID != "" {
		return errors.New("the one that was read cannot be deleted yet")
	}
	r.released = false
	if err := r.serve.DropCheckpoint(ctx, r.vol.ID, r.rec.Checkpoint); err != nil && !errors.Is(err, serve.ErrNotFound) {
		return err
	}
	return r.takeSnapshot(ctx)
}
