package agent

import (
	"context"

	"github.com/cairnbackup/cairn/internal/serve"
)

// control makes and holds volumes and their snapshots, whatever is behind them: the data
// plane's client is one, and backups and restores ask nothing else of it than this. What
// each method promises is written at [serve.Client]. A method that a kind of volume does
// not have refuses it with a sentence ([serve.ErrInvalid]).
type control interface {
	Status(ctx context.Context) (serve.Status, error)

	Volumes(ctx context.Context) ([]Volume, error)
	Volume(ctx context.Context, ref string) (Volume, error)
	CreateVolume(ctx context.Context, req serve.CreateVolume) (Volume, error)
	ExtendVolume(ctx context.Context, ref string, size int64) (Volume, error)
	ReopenVolume(ctx context.Context, ref string) (Volume, error)
	SetAttributes(ctx context.Context, ref string, req serve.SetAttributes) (Volume, error)
	DeleteVolume(ctx context.Context, ref string) error
	CreateCheckpoint(ctx context.Context, volumeRef, name string) (serve.Checkpoint, error)
	DropCheckpoint(ctx context.Context, volumeRef, name string) error

	CreateSnapshots(ctx context.Context, req CreateSnapshots) ([]Snapshot, error)
	Snapshots(ctx context.Context, volumeRef string) ([]Snapshot, error)
	Snapshot(ctx context.Context, ref string) (Snapshot, error)
	AliasCheckpoint(ctx context.Context, snapshotRef, name string) error
	RevertVolume(ctx context.Context, snapshotRef string) error
	DeleteSnapshot(ctx context.Context, ref string) error
}

var _ control = (*serve.Client)(nil)
