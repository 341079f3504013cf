package cinderapi

import (
	"context"
	"time"

	"github.com/cairnbackup/cairn/internal/identity"
)

// Service is what the API is an interface to. Its methods may be called
// concurrently. They return a [*Fault] for what the caller is to be told; any
// other error is an error of ours, which is logged and answered by 500, or by 503
// when it is a context's.
//
// Whom a thing belongs to is the API's business: it asks for a thing and refuses
// what the caller must not see, before it asks for a change. A Service trusts its
// caller. Sizes of volumes and backups are in GiB, rounded up.
type Service interface { //nolint:interfacebloat // one thing: all that Cinder's API asks for
	Volumes(ctx context.Context) ([]Volume, error)
	Volume(ctx context.Context, id string) (Volume, error)
	CreateVolume(ctx context.Context, by identity.Caller, v NewVolume) (Volume, error)
	UpdateVolume(ctx context.Context, id string, u Update) (Volume, error)
	ExtendVolume(ctx context.Context, id string, size int64) error
	ResetVolume(ctx context.Context, id, status string) error
	DeleteVolume(ctx context.Context, id string, force bool) error

	Snapshots(ctx context.Context) ([]Snapshot, error)
	Snapshot(ctx context.Context, id string) (Snapshot, error)
	CreateSnapshot(ctx context.Context, by identity.Caller, s NewSnapshot) (Snapshot, error)
	UpdateSnapshot(ctx context.Context, id string, u Update) (Snapshot, error)
	ResetSnapshot(ctx context.Context, id, status string) error
	DeleteSnapshot(ctx context.Context, id string) error

	// Backups returns those of a project, or all when it is "". Their metadata may be left out.
	Backups(ctx context.Context, project string) ([]Backup, error)
	// BackupMetadata returns those of these backups, by ID; of one that is gone there are none.
	BackupMetadata(ctx context.Context, ids []string) (map[string]map[string]string, error)
	Backup(ctx context.Context, id string) (Backup, error)
	CreateBackup(ctx context.Context, by identity.Caller, b NewBackup) (Backup, error)
	UpdateBackup(ctx context.Context, id string, u Update) (Backup, error)
	// DeleteBackup begins to delete. One that is being created is canceled with force.
	DeleteBackup(ctx context.Context, id string, force bool) error
	// ResetBackup sets the status. A restore of it is canceled by any but "restoring".
	ResetBackup(ctx context.Context, id, status string) error
	// Restore begins to restore to a volume, or to a new one of the caller's.
	Restore(ctx context.Context, by identity.Caller, id string, r NewRestore) (Restoring, error)
	ExportBackup(ctx context.Context, id string) (Record, error)
	ImportBackup(ctx context.Context, by identity.Caller, r Record) (Backup, error)

	// Quota returns the limits of a project and what it uses of them.
	Quota(ctx context.Context, project string) (Quota, error)
	// SetQuota sets those limits that are in the map, by their key; -1 is no limit.
	SetQuota(ctx context.Context, project string, limits map[string]int64) error
	// DeleteQuota brings the defaults back.
	DeleteQuota(ctx context.Context, project string) error
	// DefaultQuota are the limits of a project for which nobody set any.
	DefaultQuota() Quota

	Hosts(ctx context.Context) ([]Host, error)
	Types() []Type
	// Zone is the availability zone of everything here.
	Zone() string
}

// Volume is a volume as Cinder has it. Its status is one of "creating",
// "available", "in-use", "backing-up", "restoring-backup", "error",
// "error_restoring", "deleting", "error_deleting".
type Volume struct {
	ID, Project, User string
	Name, Description string
	Status            string
	Size              int64
	Type              string // name
	Encrypted         bool
	Bootable          bool
	Metadata          map[string]string
	SnapshotID        string // that it was made from
	BackupID          string // that it was restored from
	Host              string // host@backend#pool
	Created, Updated  time.Time
	Attached          string // who uses it, "" = nobody
}

// NewVolume asks for a volume.
type NewVolume struct {
	Name, Description string
	Size              int64
	Type              string // "" = the default
	SnapshotID        string // of which it is to be a copy, "" = empty
	SourceID          string // a volume of which it is to be a copy
	BackupID          string // that is to be restored to it
	Metadata          map[string]string
}

// Update changes what is not nil.
type Update struct {
	Name, Description *string
	Metadata          *map[string]string
	Bootable          *bool // of a volume
}

// Snapshot is a snapshot as Cinder has it. Its status is one of "creating",
// "available", "backing-up", "error", "deleting".
type Snapshot struct {
	ID, Project, User string
	Name, Description string
	Status            string
	VolumeID          string
	Size              int64
	Metadata          map[string]string
	Created, Updated  time.Time
}

// NewSnapshot asks for a snapshot.
type NewSnapshot struct {
	VolumeID          string
	Name, Description string
	Force             bool // also of a volume that is in use
	Metadata          map[string]string
}

// Backup is a backup as Cinder has it. Its status is one of "creating",
// "available", "error", "restoring", "deleting", "error_deleting".
type Backup struct {
	ID, Project, User string
	Name, Description string
	Status            string
	FailReason        string
	VolumeID          string
	SnapshotID        string
	Container         string
	Size              int64
	Objects           int64
	Incremental       bool
	Dependent         bool // an incremental names it as its parent
	Metadata          map[string]string
	EncryptionKeyID   string
	Host              string
	Created, Updated  time.Time
	DataTime          time.Time // of the content: when its snapshot was made
}

// NewBackup asks for a backup.
type NewBackup struct {
	VolumeID, SnapshotID string
	Name, Description    string
	Container            string
	Incremental, Force   bool
	Metadata             map[string]string
}

// NewRestore says where a backup goes: to a volume, or to a new one of this name,
// which has a default.
type NewRestore struct{ VolumeID, Name string }

// Restoring is a restore that has begun.
type Restoring struct{ BackupID, VolumeID, VolumeName string }

// Record is a backup's record outside of the catalog.
type Record struct{ Service, URL string }

// Quota is what a project may have and what it has, by the keys of Cinder:
// "volumes", "snapshots", "gigabytes", "backups", "backup_gigabytes",
// "per_volume_gigabytes", "groups".
type Quota map[string]Usage

// Usage is one line of a quota.
type Usage struct {
	Limit    int64 `json:"limit"` // -1 is none
	InUse    int64 `json:"in_use"`
	Reserved int64 `json:"reserved"`
}

// Host is an agent that takes part, one line of the service list.
type Host struct {
	Binary   string    `json:"binary"`
	Name     string    `json:"host"`
	Zone     string    `json:"zone"`
	Up       bool      `json:"up"`
	Disabled string    `json:"disabled_reason"` // "" = it is enabled
	Updated  time.Time `json:"updated_at"`
}

// Type is a volume type.
type Type struct {
	ID, Name, Description string
	Encrypted             bool
	Default               bool
}
