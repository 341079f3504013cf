package agent

import (
	"context"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
)

// control makes and holds volumes and their snapshots, whatever is behind them: the data
// plane is one, and backups and restores ask nothing else of it than this. What
// each method promises is written at [serve.Client]. A method that a kind of volume does
// not have refuses it with a sentence ([serve.ErrInvalid]).
type control interface {
	Status(ctx context.Context) (serve.Status, error)
	volumeControl
	checkpointControl
	snapshotControl
}

type volumeControl interface {
	Volumes(ctx context.Context) ([]Volume, error)
	Volume(ctx context.Context, ref string) (Volume, error)
	CreateVolume(ctx context.Context, req serve.CreateVolume) (Volume, error)
	ExtendVolume(ctx context.Context, ref string, size int64) (Volume, error)
	ReopenVolume(ctx context.Context, ref string) (Volume, error)
	SetAttributes(ctx context.Context, ref string, req serve.SetAttributes) (Volume, error)
	DeleteVolume(ctx context.Context, ref string) error
}

type checkpointControl interface {
	CreateCheckpoint(ctx context.Context, volumeRef, name string) (serve.Checkpoint, error)
	DropCheckpoint(ctx context.Context, volumeRef, name string) error
	AliasCheckpoint(ctx context.Context, snapshotRef, name string) error
}

type snapshotControl interface {
	// CreateSnapshots has the instant of the snapshots made within still, unless that is nil.
	CreateSnapshots(ctx context.Context, req CreateSnapshots, still source.Still) ([]Snapshot, error)
	Snapshots(ctx context.Context, volumeRef string) ([]Snapshot, error)
	Snapshot(ctx context.Context, ref string) (Snapshot, error)
	RevertVolume(ctx context.Context, snapshotRef string) error
	// ReleaseSnapshot may be refused also where a snapshot is kept whole (ErrInvalid), or by
	// a data plane that is too old (ErrNotFound): then all of it can still be read.
	ReleaseSnapshot(ctx context.Context, ref string, before int64) error
	// VerifySnapshot says whether all that was read from a snapshot until now was good: an
	// error means that it was not, or that nobody can tell.
	VerifySnapshot(ctx context.Context, ref string) error
	// WatchSnapshot returns without an error when ctx ends, or at once if the snapshot needs
	// no watching; an error is why it was ended before.
	WatchSnapshot(ctx context.Context, ref string) error
	DeleteSnapshot(ctx context.Context, ref string) error
}

// plane is the control of the data plane's volumes.
type plane struct{ *serve.Client }

var _ control = plane{}

// CreateSnapshots makes them within still: the data plane needs milliseconds for the
// whole of it.
func (p plane) CreateSnapshots(ctx context.Context, req CreateSnapshots, still source.Still) (l []Snapshot, err error) {
	create := func(ctx context.Context) (cerr error) {
		l, cerr = p.Client.CreateSnapshots(ctx, req)
		return cerr
	}
	if still == nil {
		return l, create(ctx)
	}
	return l, still(ctx, create)
}

// VerifySnapshot has nothing to ask: a snapshot of the data plane that broke answers reads
// with errors.
func (plane) VerifySnapshot(context.Context, string) error { return nil }

// WatchSnapshot has nothing to watch: the data plane sees to the room itself.
func (plane) WatchSnapshot(context.Context, string) error { return nil }
