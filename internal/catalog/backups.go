package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
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
	Project     string `json:"project,omitempty"`
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
	FailReason        string        `json:"fail_reason"`
	Warning           string        `json:"warning,omitempty"`
	RetainUntil       time.Time     `json:"retain_until,omitzero"` // it cannot be deleted before

	Session    string `json:"session,omitempty"` // of the repository
	Checkpoint string `json:"checkpoint,omitempty"`
	Undecided  bool   `json:"undecided,omitempty"` // whether the session committed is not known yet
}

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

const backupColumns = `id, name, description, project, status, volume, volume_id, snapshot_id, size, incremental, parent,
	bytes_read, bytes_audited, bytes_changed, bytes_new, bytes_stored, bytes_shards,
	duration_ns, full_compare_reason, created, fail_reason, warning, session, checkpoint, undecided, retain_until`

func (b *Backup) values() []any {
	return []any{
		b.ID, b.Name, b.Description, b.Project, b.Status, b.Volume, b.VolumeID, b.SnapshotID, b.Size, b.Incremental, b.Parent,
		b.BytesRead, b.BytesAudited, b.BytesChanged, b.BytesNew, b.BytesStored, b.BytesShards,
		int64(b.Duration), b.FullCompareReason, stamp(b.Created), b.FailReason, b.Warning, b.Session, b.Checkpoint, b.Undecided, stamp(b.RetainUntil),
	}
}

func scanBackup(r *sql.Rows) (Backup, error) {
	var b Backup
	var created, duration, retain int64
	err := r.Scan(
		&b.ID, &b.Name, &b.Description, &b.Project, &b.Status, &b.Volume, &b.VolumeID, &b.SnapshotID, &b.Size, &b.Incremental, &b.Parent,
		&b.BytesRead, &b.BytesAudited, &b.BytesChanged, &b.BytesNew, &b.BytesStored, &b.BytesShards,
		&duration, &b.FullCompareReason, &created, &b.FailReason, &b.Warning, &b.Session, &b.Checkpoint, &b.Undecided, &retain)
	b.Created, b.Duration, b.RetainUntil = moment(created), time.Duration(duration), moment(retain)
	return b, err
}

// PutBackup writes a record, in place of the one with its ID if there is one. Of that
// the warning stays, in front of b's if b's does not have it: somebody may have warned
// of the backup since b was read.
func (c *Catalog) PutBackup(ctx context.Context, b Backup) error {
	v := b.values()
	return c.exec(ctx, "record backup "+b.ID, putBackup+`(?`+strings.Repeat(", ?", len(v)-1)+`) ON CONFLICT (id) DO UPDATE SET `+replaceBackup, v...)
}

const putBackup = `INSERT INTO backups (` + backupColumns + `) VALUES `

// replaceBackup sets all columns but the ID to those of the new record.
var replaceBackup = func() string {
	var set []string
	for column := range strings.SplitSeq(backupColumns, ",") {
		column = strings.TrimSpace(column)
		switch column {
		case "id":
		case "warning":
			set = append(set, `warning = CASE
				WHEN instr(excluded.warning, warning) > 0 THEN excluded.warning
				WHEN instr(warning, excluded.warning) > 0 THEN warning
				ELSE warning || '; ' || excluded.warning END`)
		default:
			set = append(set, column+` = excluded.`+column)
		}
	}
	return strings.Join(set, ", ")
}()

// SetBackupStatus moves a backup from one state to another. It is
// [ErrNotFound] when the backup is not in the state from (any more).
func (c *Catalog) SetBackupStatus(ctx context.Context, id string, from, to Status) error {
	return c.one(ctx, fmt.Sprintf("set backup %s from %s to %s", id, from, to),
		`UPDATE backups SET status = ? WHERE id = ? AND status = ?`, to, id, from)
}

// WarnBackup adds a sentence to the warning of a backup, and changes nothing
// else of it; one that is not there (any more) needs none.
func (c *Catalog) WarnBackup(ctx context.Context, id, sentence string) error {
	return c.exec(ctx, "warn of backup "+id,
		`UPDATE backups SET warning = CASE warning WHEN '' THEN ? ELSE warning || '; ' || ? END WHERE id = ?`, sentence, sentence, id)
}

// RemoveBackup forgets a record; one that is not there is forgotten already.
func (c *Catalog) RemoveBackup(ctx context.Context, id string) error {
	return c.exec(ctx, "forget backup "+id, `DELETE FROM backups WHERE id = ?`, id)
}

// Backup returns the record of the backup with this ID.
func (c *Catalog) Backup(ctx context.Context, id string) (Backup, error) {
	l, err := c.backups(ctx, `WHERE id = ?`, id)
	if err == nil && len(l) == 0 {
		err = fmt.Errorf("backup %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return Backup{}, err
	}
	return l[0], nil
}

// Backups returns all records, oldest first.
func (c *Catalog) Backups(ctx context.Context) ([]Backup, error) {
	return c.backups(ctx, ``)
}

// BackupsNamed returns the backups whose ID or name is ref, oldest first.
func (c *Catalog) BackupsNamed(ctx context.Context, ref string) ([]Backup, error) {
	return c.backups(ctx, `WHERE id = ? OR name = ?`, ref, ref)
}

// BackupsOf returns the backups of a volume, oldest first.
func (c *Catalog) BackupsOf(ctx context.Context, volumeID string) ([]Backup, error) {
	return c.backups(ctx, `WHERE volume_id = ?`, volumeID)
}

// UndecidedBackups returns the backups of which nobody knows yet whether their
// session committed.
func (c *Catalog) UndecidedBackups(ctx context.Context) ([]Backup, error) {
	return c.backups(ctx, `WHERE undecided`)
}

func (c *Catalog) backups(ctx context.Context, where string, args ...any) ([]Backup, error) {
	var l []Backup
	err := c.rows(ctx, "list backups", func(r *sql.Rows) error {
		b, err := scanBackup(r)
		l = append(l, b)
		return err
	}, `SELECT `+backupColumns+` FROM backups `+where+` ORDER BY created, id`, args...)
	return l, err
}
