package agent

import (
	"time"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/identity"
	"github.com/cairnbackup/cairn/internal/serve"
)

// The records that the agent passes on have the type of the package that
// makes them: there is one definition of each.
type (
	// Caller is who calls the Block Storage API.
	Caller = identity.Caller
	// Volume is a volume, of the data plane or a foreign one.
	Volume = serve.Volume
	// Snapshot is a snapshot of a volume.
	Snapshot = serve.Snapshot
	// CreateSnapshots asks for snapshots of volumes at one instant.
	CreateSnapshots = serve.CreateSnapshots
	// Backup is the record of a backup.
	Backup = catalog.Backup
	// BackupStatus is the state of a backup.
	BackupStatus = catalog.Status
	// Job is the record of a job. The Code of one that failed is a [Code].
	Job = catalog.Job
	// JobState is the state of a job; its method Final says whether the job has ended.
	JobState = catalog.JobState
	// Progress is how far a job has come.
	Progress = catalog.Progress
)

// The states of backups and jobs, as the catalog has them.
const (
	BackupCreating  = catalog.Creating
	BackupAvailable = catalog.Available
	BackupError     = catalog.Failed
	BackupDeleting  = catalog.Deleting
	BackupRestoring = catalog.Restoring

	JobQueued    = catalog.Queued
	JobRunning   = catalog.Running
	JobSucceeded = catalog.Succeeded
	JobFailed    = catalog.JobFailed
	JobCanceled  = catalog.Canceled
)

// CreateBackup asks for a backup of a volume. Volume and Snapshot are names
// or IDs. At most one of Incremental and Auto is set; without either the
// backup is full.
type CreateBackup struct {
	Volume      string `json:"volume"`
	Snapshot    string `json:"snapshot,omitempty"` // back this snapshot up instead of the volume's present content
	Name        string `json:"name,omitempty"`
	Description string `json:"description,omitempty"`
	Incremental bool   `json:"incremental,omitempty"` // refused when there is no backup to start from
	Auto        bool   `json:"auto,omitempty"`        // incremental when it can be
	Force       bool   `json:"force,omitempty"`       // also while a guest uses the volume: crash-consistent
	// Retain is for how many seconds the backup cannot be deleted. Without it the
	// agent's default counts; 0 = it can be.
	Retain *int64 `json:"retain_seconds,omitempty"`
}

// Restore asks for a backup's content. At most one of Volume (existing),
// NewVolume, File and NBD is set; without any a volume is made and named
// restore_backup_ and the first eight characters of its ID.
type Restore struct {
	Backup    string `json:"backup"`               // name or ID
	Volume    string `json:"volume,omitempty"`     // name or ID; only blocks that differ are written
	NewVolume string `json:"new_volume,omitempty"` // name
	File      string `json:"file,omitempty"`       // absolute path on the agent's machine
	NBD       string `json:"nbd,omitempty"`        // URI of an export of any NBD server; only blocks that differ are written
	Overwrite bool   `json:"overwrite,omitempty"`  // replace File if it exists
	// SkipDamaged restores all that can be read, and says what could not.
	SkipDamaged bool `json:"skip_damaged,omitempty"`
	Verify      bool `json:"verify,omitempty"` // read back from the target what was written to it
}

// RestoreResult is the Result of a restore job.
type RestoreResult struct {
	Backup       string `json:"backup"`
	Volume       string `json:"volume,omitempty"`
	VolumeID     string `json:"volume_id,omitempty"`
	File         string `json:"file,omitempty"`
	NBD          string `json:"nbd,omitempty"`
	BytesRead    int64  `json:"bytes_read"`        // from the repository
	BytesWritten int64  `json:"bytes_written"`     // to the target
	Warning      string `json:"warning,omitempty"` // what the target could not promise

	// With SkipDamaged: what could not be read. A new volume or file reads as
	// zeros there, an existing volume keeps what it had.
	BytesSkipped int64          `json:"bytes_skipped"`
	Skipped      []SkippedRange `json:"skipped,omitempty"` // at most 1000, in order
}

// SkippedRange is a range of bytes of a backup that could not be restored.
type SkippedRange struct {
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Why    string `json:"why"`
}

// Export asks for an NBD address of a volume, a snapshot or a backup.
type Export struct {
	Ref     string `json:"ref"`               // name or ID
	Name    string `json:"name,omitempty"`    // of a backup's export; its ID otherwise
	Overlay bool   `json:"overlay,omitempty"` // a backup: writable; what is written is discarded by Unexport
	Purpose string `json:"purpose,omitempty"` // shown to whoever wants to delete the backup, such as "mounted on /mnt by process 12"
}

// ExportInfo is where something is served.
type ExportInfo struct {
	Name    string    `json:"name"`
	URI     string    `json:"uri"`
	TCPURI  string    `json:"tcp_uri,omitempty"` // over TCP with TLS; empty = there is no door for that
	Socket  string    `json:"socket"`
	Kind    string    `json:"kind"`             // "volume", "snapshot" or "backup"
	Backup  string    `json:"backup,omitempty"` // ID
	Overlay bool      `json:"overlay"`
	Size    int64     `json:"size"`
	Clients int       `json:"clients"` // connections now
	Purpose string    `json:"purpose,omitempty"`
	Pinned  bool      `json:"pinned"`          // a backup: what it holds stays on the stores until Unexport, whoever deletes it
	Error   string    `json:"error,omitempty"` // why it is not served at present
	Created time.Time `json:"created_at,omitzero"`
}

// Rebuilt is what filling the catalog from the repository came to.
type Rebuilt struct {
	Found int `json:"found"` // backups that the catalog did not know
}

// Pin is somebody's use of a backup: what the backup holds stays on the stores
// until that ends, also when it is deleted.
type Pin struct {
	ID     string    `json:"id"`
	Backup string    `json:"backup"` // ID
	Volume string    `json:"volume"`
	By     string    `json:"by"`    // the use, such as "exported as web-1"
	Agent  string    `json:"agent"` // host name and process
	Since  time.Time `json:"since"`
}

// Status is the state of an agent and of what it hangs on.
type Status struct {
	Version    string           `json:"version"`
	PID        int              `json:"pid"`
	Started    time.Time        `json:"started_at"`
	State      string           `json:"state"`
	Serve      *serve.Status    `json:"serve,omitempty"`       // the data plane
	ServeError string           `json:"serve_error,omitempty"` // why there is none
	Repository RepositoryStatus `json:"repository"`
	Scrub      *ScrubStatus     `json:"scrub,omitempty"` // nil: there is none
	Backups    int              `json:"backups"`
	Exports    int              `json:"exports"`
	Queued     int              `json:"jobs_queued"`
	Running    int              `json:"jobs_running"`
	Undecided  int              `json:"undecided"` // backups that wait for the stores to say whether they committed

	NBDListen string `json:"nbd_listen,omitempty"` // addresses of the door for exports over TCP; empty = there is none

	Keystone string `json:"keystone,omitempty"` // URL of the Identity service that has projects and users, besides the users file

	CatalogError string `json:"catalog_error,omitempty"` // why the catalog does not answer: backups and undecided are not known then

	Others []NamedRepository `json:"other_repositories,omitempty"` // those that were not asked for
}

// NamedRepository is one of several repositories of an agent.
type NamedRepository struct {
	Name       string           `json:"name"`
	Repository RepositoryStatus `json:"repository"`
	Backups    int              `json:"backups"`
	Exports    int              `json:"exports"`
	Undecided  int              `json:"undecided"`

	CatalogError string `json:"catalog_error,omitempty"` // as of [Status]
}

// RepositoryStatus is the state of the repository.
type RepositoryStatus struct {
	ID        string        `json:"id"`
	Data      int           `json:"data"`
	Parity    int           `json:"parity"`
	Losses    int           `json:"losses"` // further store losses that a fresh backup survives
	BlockSize int           `json:"block_size"`
	Format    int           `json:"format"`
	Stores    []StoreStatus `json:"stores"`
	Error     string        `json:"error,omitempty"` // why it is not open: nothing above is known then
}

// StoreStatus is the state of one store of the repository.
type StoreStatus struct {
	URL   string `json:"url"`
	ID    string `json:"id"`
	State string `json:"state"` // "up", "down" or "foreign"
	Error string `json:"error,omitempty"`
	Owed  int    `json:"owed"` // shards that it should keep and does not
}
