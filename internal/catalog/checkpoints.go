package catalog

import (
	"context"
	"database/sql"
)

// Checkpoint is a checkpoint that a host's agent asked its data plane to make, and
// is therefore that agent's to drop. It is recorded before it is made.
type Checkpoint struct {
	Name     string
	VolumeID string
	Backup   string // ID of the backup that it belongs to
	Others   string // what other hosts with the volume said before it was made: JSON of whoever recorded it, "" = there were none
}

// PutCheckpoint records a checkpoint of the host's.
func (c *Catalog) PutCheckpoint(ctx context.Context, p Checkpoint) error {
	return c.exec(ctx, "record checkpoint "+p.Name, `INSERT INTO checkpoints (host, volume_id, name, backup_id, others) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (host, volume_id, name) DO UPDATE SET backup_id = excluded.backup_id, others = excluded.others`, c.host, p.VolumeID, p.Name, p.Backup, p.Others)
}

// RemoveCheckpoint forgets a checkpoint that was dropped.
func (c *Catalog) RemoveCheckpoint(ctx context.Context, volumeID, name string) error {
	return c.exec(ctx, "forget checkpoint "+name, `DELETE FROM checkpoints WHERE host = ? AND volume_id = ? AND name = ?`, c.host, volumeID, name)
}

// Checkpoints returns all recorded checkpoints of the host by volume.
func (c *Catalog) Checkpoints(ctx context.Context) ([]Checkpoint, error) {
	return list(ctx, c, "list checkpoints", func(r *sql.Rows) (p Checkpoint, err error) {
		return p, r.Scan(&p.Name, &p.VolumeID, &p.Backup, &p.Others)
	}, `SELECT name, volume_id, backup_id, others FROM checkpoints WHERE host = ? ORDER BY volume_id, name`, c.host)
}

// PutUnfinished records a volume that a job makes on the host, so that it is deleted
// when the job does not end well.
func (c *Catalog) PutUnfinished(ctx context.Context, volumeID, job string) error {
	return c.exec(ctx, "record unfinished volume "+volumeID, `INSERT INTO unfinished_volumes (host, volume_id, job_id) VALUES (?, ?, ?)
		ON CONFLICT (host, volume_id) DO UPDATE SET job_id = excluded.job_id`, c.host, volumeID, job)
}

// RemoveUnfinished forgets a volume that is finished or deleted.
func (c *Catalog) RemoveUnfinished(ctx context.Context, volumeID string) error {
	return c.exec(ctx, "forget unfinished volume "+volumeID, `DELETE FROM unfinished_volumes WHERE host = ? AND volume_id = ?`, c.host, volumeID)
}

// Unfinished returns the job of each of the host's unfinished volumes.
func (c *Catalog) Unfinished(ctx context.Context) (map[string]string, error) {
	type made struct{ volume, job string }
	l, err := list(ctx, c, "list unfinished volumes", func(r *sql.Rows) (m made, err error) {
		return m, r.Scan(&m.volume, &m.job)
	}, `SELECT volume_id, job_id FROM unfinished_volumes WHERE host = ?`, c.host)
	if err != nil {
		return nil, err
	}
	jobs := make(map[string]string, len(l))
	for _, m := range l {
		jobs[m.volume] = m.job
	}
	return jobs, nil
}
