package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// PutBackup writes a record. Of one that is there its name, description, metadata and
// what others made of it stay: those change while a job works on it, by
// [Catalog.DescribeBackup], [Catalog.UnwantBackup] and [Catalog.ShowBackup]. So does
// its warning, in front of b's if b's does not have it: somebody may have warned of
// the backup since b was read.
func (c *Catalog) PutBackup(ctx context.Context, b Backup) error {
	v, err := b.values(c.host)
	if err != nil {
		return fmt.Errorf("record backup %s: %w", b.ID, err)
	}
	return c.exec(ctx, "record backup "+b.ID, putBackup, v...)
}

// ErrTaken says that another host has settled a backup, as it took this one to be down.
var ErrTaken = errors.New("another host has settled it meanwhile, as this one was taken to be down")

// PutBackupOf is PutBackup by the job that makes a backup, as long as that is being made at
// this host: [ErrTaken] when it was settled meanwhile, whoever has it now, or is not there
// any more.
func (c *Catalog) PutBackupOf(ctx context.Context, b Backup) error {
	return c.putBackupIf(ctx, b, `host = ? AND status = ?`, c.host, Creating)
}

// SettleBackup is PutBackup by who settles what was left as it was then: [ErrTaken] when it
// went on or was settled meanwhile, or its host is another one and up. It is this host's from then on.
func (c *Catalog) SettleBackup(ctx context.Context, b, was Backup) error {
	return c.putBackupIf(ctx, b, `host = ? AND status = ? AND session = ? AND undecided = ?
		AND (host = ? OR host NOT IN (SELECT name FROM hosts WHERE beat > `+c.d.now+` - ?))`,
		was.Host, was.Status, was.Session, was.Undecided, c.host, int64(DownAfter))
}

func (c *Catalog) putBackupIf(ctx context.Context, b Backup, where string, args ...any) error {
	b.Host = c.host
	v, err := b.values(c.host)
	if err != nil {
		return fmt.Errorf("record backup %s: %w", b.ID, err)
	}
	return c.tx(ctx, "record backup "+b.ID, func(ctx context.Context, q conn) error {
		// One that was deleted since must not come back.
		n, err := q.exec(ctx, `UPDATE backups SET host = ? WHERE id = ? AND `+where, append([]any{c.host, b.ID}, args...)...)
		if err == nil && n == 0 {
			err = ErrTaken
		}
		if err == nil {
			_, err = q.exec(ctx, putBackup, v...)
		}
		return err
	})
}

var putBackup = strings.Replace(upsert("backups", backupColumns, kept), "warning = excluded.warning", "warning = "+bothWarnings, 1)

// bothWarnings is the new and the old warning of a backup, each once.
const bothWarnings = `CASE
	WHEN backups.warning = '' OR replace(excluded.warning, backups.warning, '') <> excluded.warning THEN excluded.warning
	WHEN excluded.warning = '' OR replace(backups.warning, excluded.warning, '') <> backups.warning THEN backups.warning
	ELSE backups.warning || '; ' || excluded.warning END`

// upsert is a statement that inserts a record or changes the one that has its ID,
// the first of the columns, but for the first keep columns.
func upsert(table, columns string, keep int) string {
	names := strings.Split(columns, ",")
	set := make([]string, 0, len(names))
	for _, name := range names[keep:] {
		name = strings.TrimSpace(name)
		set = append(set, name+" = excluded."+name)
	}
	return `INSERT INTO ` + table + ` (` + columns + `) VALUES (?` + strings.Repeat(", ?", len(names)-1) + `)
		ON CONFLICT (id) DO UPDATE SET ` + strings.Join(set, ", ")
}

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
// [ErrNotFound] when the backup is not in the state from (any more): of several
// that try at once one succeeds, and its host is the backup's.
func (c *Catalog) SetBackupStatus(ctx context.Context, id string, from, to Status) error {
	return c.one(ctx, fmt.Sprintf("set backup %s from %s to %s", id, from, to),
		`UPDATE backups SET status = ?, host = ? WHERE id = ? AND status = ?`, to, c.host, id, from)
}

// UnwantBackup records that a backup is to be deleted as soon as its job has ended.
// It is [ErrNotFound] when the backup is not in the state from (any more).
func (c *Catalog) UnwantBackup(ctx context.Context, id string, from Status) error {
	return c.one(ctx, "record that backup "+id+" is unwanted", `UPDATE backups SET unwanted = ? WHERE id = ? AND status = ?`, true, id, from)
}

// WantBackup takes back what [Catalog.UnwantBackup] recorded; one that is not there needs
// nothing of that.
func (c *Catalog) WantBackup(ctx context.Context, id string) error {
	return c.exec(ctx, "record that backup "+id+" is wanted", `UPDATE backups SET unwanted = ? WHERE id = ?`, false, id)
}

// ShowBackup sets what is shown as the state of a backup; "" is the state itself.
func (c *Catalog) ShowBackup(ctx context.Context, id string, shown Status) error {
	return c.one(ctx, "set what is shown as the state of backup "+id, `UPDATE backups SET shown = ? WHERE id = ?`, shown, id)
}

// WarnBackup adds a sentence to the warning of a backup, and changes nothing
// else of it; one that is not there (any more) needs none.
func (c *Catalog) WarnBackup(ctx context.Context, id, text string) error {
	text = sentence(text)
	return c.exec(ctx, "warn of backup "+id,
		`UPDATE backups SET warning = CASE warning WHEN '' THEN ? ELSE warning || '; ' || ? END WHERE id = ?`, text, text, id)
}

// RemoveBackup forgets a record; one that is not there is forgotten already.
func (c *Catalog) RemoveBackup(ctx context.Context, id string) error {
	return c.exec(ctx, "forget backup "+id, `DELETE FROM backups WHERE id = ?`, id)
}

// RemoveBackupIn forgets a record that is in a state. It is [ErrNotFound] when it is not in
// that (any more).
func (c *Catalog) RemoveBackupIn(ctx context.Context, id string, status Status) error {
	return c.one(ctx, "forget backup "+id, `DELETE FROM backups WHERE id = ? AND status = ?`, id, status)
}

// AddFound records a backup that was found in the repository, unless there is a record of
// it: whoever made that knows better. False: there is one.
func (c *Catalog) AddFound(ctx context.Context, b Backup) (bool, error) {
	v, err := b.values(c.host)
	if err != nil {
		return false, fmt.Errorf("record backup %s: %w", b.ID, err)
	}
	err = c.one(ctx, "record backup "+b.ID, addFound, v...)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

var addFound = `INSERT INTO backups (` + backupColumns + `) VALUES (?` + strings.Repeat(", ?", strings.Count(backupColumns, ",")) + `) ON CONFLICT (id) DO NOTHING`

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

// BackupsListed returns the backups of a project, or all when it is "", oldest first, to be
// shown: without their metadata and the notes of their volumes, which may be large, are not
// read, and would be lost if such a record was put.
func (c *Catalog) BackupsListed(ctx context.Context, project string) ([]Backup, error) {
	where, args := ``, []any(nil)
	if project != "" {
		where, args = ` WHERE project = ?`, []any{project}
	}
	return list(ctx, c, "list backups", scanBackup, `SELECT `+listedColumns+` FROM backups`+where+` ORDER BY created, id`, args...)
}

var listedColumns = strings.NewReplacer(" metadata,", " '',", " volume_notes,", " '',").Replace(backupColumns)

// metadataAtOnce is of how many backups one query reads them: databases have a limit for
// the arguments of one.
const metadataAtOnce = 500

// BackupMetadata returns those of these backups that have any, by ID.
func (c *Catalog) BackupMetadata(ctx context.Context, ids []string) (map[string]map[string]string, error) {
	type row struct {
		id   string
		text string
	}
	got := make(map[string]map[string]string, len(ids))
	for some := range slices.Chunk(ids, metadataAtOnce) {
		args := make([]any, len(some))
		for i, id := range some {
			args[i] = id
		}
		l, err := list(ctx, c, "read the metadata of backups", func(r *sql.Rows) (x row, err error) { return x, r.Scan(&x.id, &x.text) },
			`SELECT id, metadata FROM backups WHERE metadata <> '' AND id IN (?`+strings.Repeat(", ?", len(some)-1)+`)`, args...)
		if err != nil {
			return nil, err
		}
		for _, x := range l {
			var m map[string]string
			if err = json.Unmarshal([]byte(x.text), &m); err != nil {
				return nil, fmt.Errorf("metadata of backup %s: %w", x.id, err)
			}
			got[x.id] = m
		}
	}
	return got, nil
}

// BackupsStoredAs returns the records whose data are one backup of the repository,
// oldest first.
func (c *Catalog) BackupsStoredAs(ctx context.Context, id string) ([]Backup, error) {
	return c.backups(ctx, `WHERE stored_as = ? OR (id = ? AND stored_as = '')`, id, id)
}

// Parents returns the IDs of all backups that another was started from.
func (c *Catalog) Parents(ctx context.Context) (map[string]bool, error) {
	l, err := list(ctx, c, "list parents", func(r *sql.Rows) (id string, err error) { return id, r.Scan(&id) },
		`SELECT DISTINCT parent FROM backups WHERE parent <> ''`)
	if err != nil {
		return nil, err
	}
	got := make(map[string]bool, len(l))
	for _, id := range l {
		got[id] = true
	}
	return got, nil
}

// UndecidedBackups returns the backups of which nobody knows yet whether their
// session committed.
func (c *Catalog) UndecidedBackups(ctx context.Context) ([]Backup, error) {
	return c.backups(ctx, `WHERE undecided`)
}

func (c *Catalog) backups(ctx context.Context, where string, args ...any) ([]Backup, error) {
	return list(ctx, c, "list backups", scanBackup, `SELECT `+backupColumns+` FROM backups `+where+` ORDER BY created, id`, args...)
}
