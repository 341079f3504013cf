package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
)

// What of volumes a quota limits.
const (
	QuotaVolumes   = "volumes"
	QuotaSnapshots = "snapshots"
	QuotaSize      = "gigabytes"            // GiB of volumes and snapshots
	QuotaOneSize   = "per_volume_gigabytes" // of the largest volume
)

// The kinds of records that the volumes of hosts have.
const (
	VolumeKind   = "volume"
	SnapshotKind = "snapshot"
	GoneKind     = "gone" // a volume that the host had, and another has still
)

// Volume is what a host tells the others of a volume that it has, or of a snapshot. The
// host's data plane knows it better: this is as it was a moment ago.
type Volume struct {
	Host      string
	ID        string
	Kind      string
	Project   string
	Gigabytes int64
	Epoch     int64           // how often the host opened it for writing
	Open      bool            // for writing, at that moment
	Data      json.RawMessage // what the Block Storage API shows
}

// reserved is what the record of something has that is about to be made.
const reserved = "{}"

// Reserved says whether it is about to be made: there is nothing to show of it yet.
func (v *Volume) Reserved() bool { return string(v.Data) == reserved }

const volumeColumns = `host, id, kind, project, gigabytes, epoch, open, data`

func (v *Volume) values(host string) []any {
	return []any{host, v.ID, v.Kind, v.Project, v.Gigabytes, v.Epoch, v.Open, string(v.Data)}
}

const putVolume = `INSERT INTO volumes (` + volumeColumns + `) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
	ON CONFLICT (host, id) DO UPDATE SET kind = excluded.kind, project = excluded.project, gigabytes = excluded.gigabytes,
		epoch = excluded.epoch, open = excluded.open, data = excluded.data`

// ReserveVolume records a volume or a snapshot that this host is about to make (without
// Data), or to enlarge, if its project's quota has room for it: [*QuotaError] otherwise. What a project uses
// is counted from the records of all hosts, in the same transaction. Limits that
// nobody set are those of defaults; one below zero is none, and what belongs to no
// project has none.
func (c *Catalog) ReserveVolume(ctx context.Context, v Volume, defaults map[string]int64) error {
	if len(v.Data) == 0 {
		v.Data = json.RawMessage(reserved)
	}
	return c.tx(ctx, "record "+v.Kind+" "+v.ID, func(ctx context.Context, q conn) error {
		if v.Project != "" {
			if err := c.roomFor(ctx, q, v, defaults); err != nil {
				return err
			}
		}
		_, err := q.exec(ctx, putVolume, v.values(c.host)...)
		return err
	})
}

// roomFor refuses what is too much for its project.
func (c *Catalog) roomFor(ctx context.Context, q conn, v Volume, defaults map[string]int64) error {
	if err := c.d.alone(ctx, q, "cairn quota "+v.Project); err != nil {
		return err
	}
	limits := maps.Clone(defaults)
	if limits == nil {
		limits = map[string]int64{}
	}
	if err := readLimits(ctx, q, v.Project, limits); err != nil {
		return err
	}
	used, err := readVolumeUsage(ctx, q, v.Project)
	if err != nil {
		return err
	}
	var there, had int64 // records, and GiB, of what is to be enlarged
	if err = q.row(ctx, []any{&there, &had}, `SELECT COUNT(*), CAST(COALESCE(SUM(gigabytes), 0) AS BIGINT) FROM volumes WHERE host = ? AND id = ?`, c.host, v.ID); err != nil {
		return err
	}
	if most, ok := limits[QuotaOneSize]; ok && most >= 0 && v.Kind == VolumeKind && v.Gigabytes > most {
		return &QuotaError{QuotaOneSize, most, 0, v.Gigabytes}
	}
	count := QuotaVolumes
	if v.Kind == SnapshotKind {
		count = QuotaSnapshots
	}
	for _, x := range []struct {
		resource string
		more     int64
	}{{count, 1 - there}, {QuotaSize, v.Gigabytes - had}} {
		most, ok := limits[x.resource]
		if ok && most >= 0 && x.more > 0 && used[x.resource] > most-x.more {
			return &QuotaError{x.resource, most, used[x.resource], x.more}
		}
	}
	return nil
}

// VolumeUsage returns what a project has of QuotaVolumes, QuotaSnapshots and QuotaSize.
func (c *Catalog) VolumeUsage(ctx context.Context, project string) (map[string]int64, error) {
	var used map[string]int64
	err := c.tx(ctx, "count volumes", func(ctx context.Context, q conn) (err error) {
		used, err = readVolumeUsage(ctx, q, project)
		return err
	})
	return used, err
}

func readVolumeUsage(ctx context.Context, q conn, project string) (map[string]int64, error) {
	var volumes, snapshots, size int64
	// A volume that several hosts have is one.
	err := q.row(ctx, []any{&volumes, &snapshots, &size}, `SELECT COUNT(CASE kind WHEN 'volume' THEN 1 END), COUNT(CASE kind WHEN 'snapshot' THEN 1 END),
		CAST(COALESCE(SUM(gigabytes), 0) AS BIGINT) FROM (SELECT id, kind, MAX(gigabytes) AS gigabytes FROM volumes WHERE project = ? AND kind <> 'gone' GROUP BY id, kind) AS each_one`, project)
	return map[string]int64{QuotaVolumes: volumes, QuotaSnapshots: snapshots, QuotaSize: size}, err
}

// TellVolumes records what this host has, of those in put, and that it has none of gone
// any more. A volume that is gone, and that another host has, leaves a record behind,
// with its epoch: without it the other would take it for one that nobody else wrote to.
func (c *Catalog) TellVolumes(ctx context.Context, put []Volume, gone []string) error {
	if len(put)+len(gone) == 0 {
		return nil
	}
	return c.tx(ctx, "record the volumes of host "+c.host, func(ctx context.Context, q conn) error {
		for _, v := range put {
			if _, err := q.exec(ctx, putVolume, v.values(c.host)...); err != nil {
				return err
			}
		}
		for _, id := range gone {
			if _, err := q.exec(ctx, `DELETE FROM volumes WHERE host = ? AND id = ?
				AND (epoch = 0 OR NOT EXISTS (SELECT 1 FROM volumes AS o WHERE o.id = volumes.id AND o.host <> volumes.host))`, c.host, id); err != nil {
				return err
			}
			// Should it come back and go again, that is another record.
			if _, err := q.exec(ctx, `UPDATE volumes SET kind = 'gone', project = '', gigabytes = 0, open = FALSE, data = ? WHERE host = ? AND id = ?`, `"`+rand.Text()+`"`, c.host, id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Volumes returns what all hosts have, by ID and host.
func (c *Catalog) Volumes(ctx context.Context) ([]Volume, error) {
	return c.volumes(ctx, ``)
}

// VolumeAt returns what hosts have under an ID, by host.
func (c *Catalog) VolumeAt(ctx context.Context, id string) ([]Volume, error) {
	return c.volumes(ctx, `WHERE id = ?`, id)
}

// OwnVolumes returns what is recorded of this host's.
func (c *Catalog) OwnVolumes(ctx context.Context) ([]Volume, error) {
	return c.volumes(ctx, `WHERE host = ?`, c.host)
}

func (c *Catalog) volumes(ctx context.Context, where string, args ...any) ([]Volume, error) {
	l, err := list(ctx, c, "list volumes of hosts", func(r *sql.Rows) (v Volume, err error) {
		var data string
		err = r.Scan(&v.Host, &v.ID, &v.Kind, &v.Project, &v.Gigabytes, &v.Epoch, &v.Open, &data)
		v.Data = json.RawMessage(data)
		return v, err
	}, `SELECT `+volumeColumns+` FROM volumes `+where+` ORDER BY id, host`, args...)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return l, nil
}
