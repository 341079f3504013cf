package catalog

import (
	"cmp"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"
)

// Status is the state of a backup.
type Status string

// The states of a backup.
const (
	Creating  Status = "creating"
	Available Status = "available"
	Failed    Status = "error"
	Deleting  Status = "deleting"
	Restoring Status = "restoring"
)

// Backup is the record of one backup. Sizes are in bytes.
type Backup struct { //nolint:recvcheck // JSON wants a value to write and a pointer to read
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Project     string `json:"project,omitempty"` // whose it is; empty = the operator's
	User        string `json:"user,omitempty"`    // who asked for it, ID; empty = the operator
	Status      Status `json:"status"`
	Volume      string `json:"volume"`
	VolumeID    string `json:"volume_id"`
	SnapshotID  string `json:"snapshot_id,omitempty"` // the snapshot that the caller asked to have backed up
	Size        int64  `json:"size"`
	Incremental bool   `json:"incremental"`
	Parent      string `json:"parent"`

	BytesRead    int64 `json:"bytes_read"`    // read from the volume
	BytesAudited int64 `json:"bytes_audited"` // besides, from blocks known as clean
	BytesChanged int64 `json:"bytes_changed"` // in blocks that differ from the parent's
	BytesNew     int64 `json:"bytes_new"`     // of them, not yet in the repository
	BytesStored  int64 `json:"bytes_stored"`  // sealed, before parity
	BytesShards  int64 `json:"bytes_shards"`  // with parity

	Duration          time.Duration `json:"-"` // MarshalJSON writes it as duration_seconds
	FullCompareReason string        `json:"full_compare_reason"`
	Created           time.Time     `json:"created_at"`
	Updated           time.Time     `json:"updated_at,omitzero"`
	DataTime          time.Time     `json:"data_timestamp,omitzero"` // of the content: when its snapshot was made
	Quiesced          bool          `json:"quiesced,omitempty"`      // whoever writes to the volume stood still then, with all written
	FailReason        string        `json:"fail_reason"`
	Warning           string        `json:"warning,omitempty"`
	RetainUntil       time.Time     `json:"retain_until,omitzero"` // it cannot be deleted before

	Container   string            `json:"container,omitempty"` // a label
	Metadata    map[string]string `json:"metadata,omitempty"`
	VolumeNotes json.RawMessage   `json:"volume_notes,omitempty"` // what the agent noted of the volume then
	StoredAs    string            `json:"stored_as,omitempty"`    // its ID in the repository, if that is another: it was imported

	Shown      Status `json:"shown,omitempty"`    // what an administrator wants to be shown as its state; empty = Status
	Unwanted   bool   `json:"unwanted,omitempty"` // to be deleted as soon as its job has ended
	Session    string `json:"session,omitempty"`  // of the repository
	Checkpoint string `json:"checkpoint,omitempty"`
	Undecided  bool   `json:"undecided,omitempty"` // whether the session committed is not known yet
	Host       string `json:"host,omitempty"`      // that brought it into its state, and works on it in one that passes
}

// Stored is the ID that the backup has in the repository.
func (b *Backup) Stored() string { return cmp.Or(b.StoredAs, b.ID) }

// plainBackup is Backup without its methods.
type plainBackup Backup

// backupJSON adds the fields whose form in JSON is another.
type backupJSON struct {
	plainBackup
	Seconds float64 `json:"duration_seconds"`
}

// MarshalJSON writes the fields of the HTTP interface.
func (b Backup) MarshalJSON() ([]byte, error) {
	return json.Marshal(backupJSON{plainBackup(b), b.Duration.Seconds()})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (b *Backup) UnmarshalJSON(data []byte) error {
	var j backupJSON
	if err := json.Unmarshal(data, &j); err != nil {
		return err
	}
	*b = Backup(j.plainBackup)
	b.Duration = time.Duration(j.Seconds * float64(time.Second))
	return nil
}

const backupColumns = `id, name, description, metadata, unwanted, shown, project, user_id, container, status, volume, volume_id, volume_notes, snapshot_id,
	size, incremental, parent, bytes_read, bytes_audited, bytes_changed, bytes_new, bytes_stored, bytes_shards,
	duration_ns, full_compare_reason, created, updated, data_time, fail_reason, warning, session, checkpoint, undecided, retain_until, stored_as, host, quiesced`

// kept is how many of the first columns PutBackup leaves as they are.
const kept = 6

// values are what is recorded of a backup that host works on, unless it names another.
func (b *Backup) values(host string) ([]any, error) {
	metadata, err := encodeMetadata(b.Metadata)
	return []any{
		b.ID, b.Name, b.Description, metadata, b.Unwanted, b.Shown, b.Project, b.User, b.Container, b.Status, b.Volume, b.VolumeID, string(b.VolumeNotes), b.SnapshotID,
		b.Size, b.Incremental, b.Parent, b.BytesRead, b.BytesAudited, b.BytesChanged, b.BytesNew, b.BytesStored, b.BytesShards,
		int64(b.Duration), sentence(b.FullCompareReason), stamp(b.Created), stamp(b.Updated), stamp(b.DataTime), sentence(b.FailReason), sentence(b.Warning), b.Session, b.Checkpoint, b.Undecided, stamp(b.RetainUntil), b.StoredAs, cmp.Or(b.Host, host), b.Quiesced,
	}, err
}

func encodeMetadata(m map[string]string) (string, error) {
	if len(m) == 0 {
		return "", nil
	}
	text, err := json.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("metadata: %w", err)
	}
	return string(text), nil
}

func scanBackup(r *sql.Rows) (Backup, error) {
	var b Backup
	var created, updated, data, duration, retain int64
	var metadata, notes string
	err := r.Scan(
		&b.ID, &b.Name, &b.Description, &metadata, &b.Unwanted, &b.Shown, &b.Project, &b.User, &b.Container, &b.Status, &b.Volume, &b.VolumeID, &notes, &b.SnapshotID,
		&b.Size, &b.Incremental, &b.Parent, &b.BytesRead, &b.BytesAudited, &b.BytesChanged, &b.BytesNew, &b.BytesStored, &b.BytesShards,
		&duration, &b.FullCompareReason, &created, &updated, &data, &b.FailReason, &b.Warning, &b.Session, &b.Checkpoint, &b.Undecided, &retain, &b.StoredAs, &b.Host, &b.Quiesced)
	b.Created, b.Updated, b.DataTime = moment(created), moment(updated), moment(data)
	b.Duration, b.RetainUntil = time.Duration(duration), moment(retain)
	if notes != "" {
		b.VolumeNotes = json.RawMessage(notes)
	}
	if err == nil && metadata != "" {
		if err = json.Unmarshal([]byte(metadata), &b.Metadata); err != nil {
			err = fmt.Errorf("metadata of backup %s: %w", b.ID, err)
		}
	}
	return b, err
}
