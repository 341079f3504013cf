package catalog

import (
	"context"
	"database/sql"
	"time"
)

// Export is a backup that the agent serves over NBD, also after a restart.
type Export struct {
	Name    string
	Backup  string // ID
	Overlay bool   // writable over a local overlay
	Purpose string // in the words of whoever asked for it; may be empty
	Created time.Time
}

// PutExport records an export.
func (c *Catalog) PutExport(ctx context.Context, e Export) error {
	return c.exec(ctx, "record export "+e.Name,
		`INSERT OR REPLACE INTO exports (name, backup_id, overlay, purpose, created) VALUES (?, ?, ?, ?, ?)`, e.Name, e.Backup, e.Overlay, e.Purpose, stamp(e.Created))
}

// RemoveExport forgets an export; one that is not there is forgotten already.
func (c *Catalog) RemoveExport(ctx context.Context, name string) error {
	return c.exec(ctx, "forget export "+name, `DELETE FROM exports WHERE name = ?`, name)
}

// Exports returns all exports by name.
func (c *Catalog) Exports(ctx context.Context) ([]Export, error) {
	var l []Export
	err := c.rows(ctx, "list exports", func(r *sql.Rows) error {
		var e Export
		var created int64
		err := r.Scan(&e.Name, &e.Backup, &e.Overlay, &e.Purpose, &created)
		e.Created = moment(created)
		l = append(l, e)
		return err
	}, `SELECT name, backup_id, overlay, purpose, created FROM exports ORDER BY name`)
	return l, err
}

// Checkpoint is a checkpoint that the agent asked the data plane to make, and
// is therefore the agent's to drop. It is recorded before it is made.
type Checkpoint struct {
	Name     string
	VolumeID string
	Backup   string // ID of the backup that it belongs to
}

// PutCheckpoint records a checkpoint.
func (c *Catalog) PutCheckpoint(ctx context.Context, p Checkpoint) error {
	return c.exec(ctx, "record checkpoint "+p.Name,
		`INSERT OR REPLACE INTO checkpoints (name, volume_id, backup_id) VALUES (?, ?, ?)`, p.Name, p.VolumeID, p.Backup)
}

// RemoveCheckpoint forgets a checkpoint that was dropped.
func (c *Catalog) RemoveCheckpoint(ctx context.Context, volumeID, name string) error {
	return c.exec(ctx, "forget checkpoint "+name, `DELETE FROM checkpoints WHERE volume_id = ? AND name = ?`, volumeID, name)
}

// Checkpoints returns all recorded checkpoints by volume.
func (c *Catalog) Checkpoints(ctx context.Context) ([]Checkpoint, error) {
	var l []Checkpoint
	err := c.rows(ctx, "list checkpoints", func(r *sql.Rows) error {
		var p Checkpoint
		err := r.Scan(&p.Name, &p.VolumeID, &p.Backup)
		l = append(l, p)
		return err
	}, `SELECT name, volume_id, backup_id FROM checkpoints ORDER BY volume_id, name`)
	return l, err
}

// PutUnfinished records a volume that a job makes, so that it is deleted when
// the job does not end well.
func (c *Catalog) PutUnfinished(ctx context.Context, volumeID, job string) error {
	return c.exec(ctx, "record unfinished volume "+volumeID, `INSERT OR REPLACE INTO unfinished_volumes (volume_id, job_id) VALUES (?, ?)`, volumeID, job)
}

// RemoveUnfinished forgets a volume that is finished or deleted.
func (c *Catalog) RemoveUnfinished(ctx context.Context, volumeID string) error {
	return c.exec(ctx, "forget unfinished volume "+volumeID, `DELETE FROM unfinished_volumes WHERE volume_id = ?`, volumeID)
}

// Unfinished returns the job of each unfinished volume.
func (c *Catalog) Unfinished(ctx context.Context) (map[string]string, error) {
	l := map[string]string{}
	err := c.rows(ctx, "list unfinished volumes", func(r *sql.Rows) error {
		var volume, job string
		err := r.Scan(&volume, &job)
		l[volume] = job
		return err
	}, `SELECT volume_id, job_id FROM unfinished_volumes`)
	return l, err
}
