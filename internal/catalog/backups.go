package catalog

import (
	"cmp"
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
	duration_ns, full_compare_reason, created, updated, data_time, fail_reason, warning, session, checkpoint, undecided, retain_until, stored_as`

// kept is how many of the first columns PutBackup leaves as they are.
const kept = 6

func (b *Backup) values() ([]any, error) {
	metadata, err := encodeMetadata(b.Metadata)
	return []any{
		b.ID, b.Name, b.Description, metadata, b.Unwanted, b.Shown, b.Project, b.User, b.Container, b.Status, b.Volume, b.VolumeID, string(b.VolumeNotes), b.SnapshotID,
		b.Size, b.Incremental, b.Parent, b.BytesRead, b.BytesAudited, b.BytesChanged, b.BytesNew, b.BytesStored, b.BytesShards,
		int64(b.Duration), b.FullCompareReason, stamp(b.Created), stamp(b.Updated), stamp(b.DataTime), b.FailReason, b.Warning, b.Session, b.Checkpoint, b.Undecided, stamp(b.RetainUntil), b.StoredAs,
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
		&duration, &b.FullCompareReason, &created, &updated, &data, &b.FailReason, &b.Warning, &b.Session, &b.Checkpoint, &b.Undecided, &retain, &b.StoredAs)
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

// PutBackup writes a record. Of one that is there its name, description, metadata and
// what others made of it stay: those change while a job works on it, by
// [Catalog.DescribeBackup], [Catalog.UnwantBackup] and [Catalog.ShowBackup]. So does
// its warning, in front of b's if b's does not have it: somebody may have warned of
// the backup since b was read.
func (c *Catalog) PutBackup(ctx context.Context, b Backup) error {
	v, err := b.values()
	if err != nil {
		return fmt.Errorf("record backup %s: %w", b.ID, err)
	}
	return c.exec(ctx, "record backup "+b.ID, putBackup, v...)
}

// putBackup inserts a backup or changes all but the columns that are kept.
var putBackup = func() string {
	columns := strings.Split(backupColumns, ",")
	set := make([]string, 0, len(columns))
	for _, name := range columns[kept:] {
		name = strings.TrimSpace(name)
		value := "excluded." + name
		if name == "warning" {
			value = bothWarnings
		}
		set = append(set, name+" = "+value)
	}
	return `INSERT INTO backups (` + backupColumns + `) VALUES (?` + strings.Repeat(", ?", len(columns)-1) + `)
		ON CONFLICT (id) DO UPDATE SET ` + strings.Join(set, ", ")
}()

// bothWarnings is the new and the old warning of a backup, each once.
const bothWarnings = `CASE
	WHEN backups.warning = '' OR replace(excluded.warning, backups.warning, '') <> excluded.warning THEN excluded.warning
	WHEN excluded.warning = '' OR replace(backups.warning, excluded.warning, '') <> backups.warning THEN backups.warning
	ELSE backups.warning || '; ' || excluded.warning END`

// DescribeBackup changes those of a backup's texts that are not nil.
func (c *Catalog) DescribeBackup(ctx context.Context, id string, name, description *string, metadata *map[string]string, now time.Time) error {
	set, args := []string{"updated = ?"}, []any{stamp(now)}
	if name != nil {
		set, args = append(set, "name = ?"), append(args, *name)
	}
	if description != nil {
		set, args = append(set, "description = ?"), append(args, *description)
	}
	if metadata != nil {
		text, err := encodeMetadata(*metadata)
		if err != nil {
			return fmt.Errorf("describe backup %s: %w", id, err)
		}
		set, args = append(set, "metadata = ?"), append(args, text)
	}
	return c.one(ctx, "describe backup "+id, `UPDATE backups SET `+strings.Join(set, ", ")+` WHERE id = ?`, append(args, id)...)
}

// SetBackupStatus moves a backup from one state to another. It is
// [ErrNotFound] when the backup is not in the state from (any more).
func (c *Catalog) SetBackupStatus(ctx context.Context, id string, from, to Status) error {
	return c.one(ctx, fmt.Sprintf("set backup %s from %s to %s", id, from, to),
		`UPDATE backups SET status = ? WHERE id = ? AND status = ?`, to, id, from)
}

// UnwantBackup records that a backup is to be deleted as soon as its job has ended.
// It is [ErrNotFound] when the backup is not in the state from (any more).
func (c *Catalog) UnwantBackup(ctx context.Context, id string, from Status) error {
	return c.one(ctx, "record that backup "+id+" is unwanted", `UPDATE backups SET unwanted = ? WHERE id = ? AND status = ?`, true, id, from)
}

// ShowBackup sets what is shown as the state of a backup; "" is the state itself.
func (c *Catalog) ShowBackup(ctx context.Context, id string, shown Status) error {
	return c.one(ctx, "set what is shown as the state of backup "+id, `UPDATE backups SET shown = ? WHERE id = ?`, shown, id)
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

// BackupsOfProject returns the backups of a project, oldest first.
func (c *Catalog) BackupsOfProject(ctx context.Context, project string) ([]Backup, error) {
	return c.backups(ctx, `WHERE project = ?`, project)
}

// BackupsStoredAs returns the records whose data are one backup of the repository,
// oldest first.
func (c *Catalog) BackupsStoredAs(ctx context.Context, id string) ([]Backup, error) {
	return c.backups(ctx, `WHERE stored_as = ? OR (id = ? AND stored_as = '')`, id, id)
}

// Parents returns the IDs of all backups that another was started from.
func (c *Catalog) Parents(ctx context.Context) (map[string]bool, error) {
	got := map[string]bool{}
	err := c.rows(ctx, "list parents", func(r *sql.Rows) error {
		var id string
		err := r.Scan(&id)
		got[id] = true
		return err
	}, `SELECT DISTINCT parent FROM backups WHERE parent <> ''`)
	return got, err
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
