package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// JobState is the state of a job.
type JobState string

// The states of a job. The last three are final.
const (
	Queued    JobState = "queued"
	Running   JobState = "running"
	Succeeded JobState = "succeeded"
	JobFailed JobState = "failed"
	Canceled  JobState = "canceled"
)

// Final says whether a job in this state has ended.
func (s JobState) Final() bool {
	return s != "" && s != Queued && s != Running
}

// The kinds of jobs.
const (
	BackupJob  = "backup"
	RestoreJob = "restore"
)

// Job is the record of one piece of long work.
type Job struct {
	ID       string          `json:"id"`
	Kind     string          `json:"kind"`
	State    JobState        `json:"state"`
	Volume   string          `json:"volume,omitempty"`
	VolumeID string          `json:"volume_id,omitempty"`
	Snapshot string          `json:"snapshot_id,omitempty"` // that a backup is made of, if the caller named one
	Backup   string          `json:"backup"`                // ID
	Target   string          `json:"target,omitempty"`      // of a restore: the volume's name or the file's path
	Owner    string          `json:"owner"`                 // host and process
	Error    string          `json:"error,omitempty"`
	Code     string          `json:"code,omitempty"` // of a failed job: what kind of failure Error is; see the HTTP interface
	Progress Progress        `json:"progress"`
	Result   json.RawMessage `json:"result,omitempty"` // by kind; see the HTTP interface
	Created  time.Time       `json:"created_at"`
	Started  time.Time       `json:"started_at,omitzero"`
	Finished time.Time       `json:"finished_at,omitzero"`
}

// Progress is how far a job has come, in bytes. Done of Total is what a bar shows.
type Progress struct {
	Phase   string `json:"phase,omitempty"` // what is going on, in two or three words
	Total   int64  `json:"bytes_total"`
	Done    int64  `json:"bytes_done"`
	Read    int64  `json:"bytes_read"`
	Written int64  `json:"bytes_written"` // restore: to the target
	New     int64  `json:"bytes_new"`     // backup: not yet in the repository
	Stored  int64  `json:"bytes_stored"`  // backup: sealed, before parity
	Hole    int64  `json:"bytes_hole"`    // neither read nor written, as there is nothing
}

const jobColumns = `id, kind, state, volume, volume_id, backup_id, target, owner, error, progress, result, created, started, finished, code, snapshot_id`

// PutJob writes a record, in place of the one with its ID if there is one.
func (c *Catalog) PutJob(ctx context.Context, j Job) error {
	progress, err := json.Marshal(j.Progress)
	if err != nil {
		return fmt.Errorf("record job %s: %w", j.ID, err)
	}
	v := []any{
		j.ID, j.Kind, j.State, j.Volume, j.VolumeID, j.Backup, j.Target, j.Owner, j.Error,
		string(progress), string(j.Result), stamp(j.Created), stamp(j.Started), stamp(j.Finished), j.Code, j.Snapshot,
	}
	return c.exec(ctx, "record job "+j.ID,
		`INSERT OR REPLACE INTO jobs (`+jobColumns+`) VALUES (?`+strings.Repeat(", ?", len(v)-1)+`)`, v...)
}

func scanJob(r *sql.Rows) (Job, error) {
	var j Job
	var progress, result string
	var created, started, finished int64
	if err := r.Scan(&j.ID, &j.Kind, &j.State, &j.Volume, &j.VolumeID, &j.Backup, &j.Target, &j.Owner, &j.Error,
		&progress, &result, &created, &started, &finished, &j.Code, &j.Snapshot); err != nil {
		return j, err
	}
	j.Created, j.Started, j.Finished = moment(created), moment(started), moment(finished)
	if result != "" {
		j.Result = json.RawMessage(result)
	}
	if err := json.Unmarshal([]byte(progress), &j.Progress); err != nil {
		return j, fmt.Errorf("progress of job %s: %w", j.ID, err)
	}
	return j, nil
}

// Job returns the record of the job with this ID.
func (c *Catalog) Job(ctx context.Context, id string) (Job, error) {
	l, err := c.jobs(ctx, `WHERE id = ?`, id)
	if err == nil && len(l) == 0 {
		err = fmt.Errorf("job %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return Job{}, err
	}
	return l[0], nil
}

// Jobs returns the newest limit jobs, oldest first.
func (c *Catalog) Jobs(ctx context.Context, limit int) ([]Job, error) {
	return c.jobs(ctx, `WHERE id IN (SELECT id FROM jobs ORDER BY created DESC, id DESC LIMIT ?)`, limit)
}

// UnfinishedJobs returns the jobs that are queued or running, oldest first.
func (c *Catalog) UnfinishedJobs(ctx context.Context) ([]Job, error) {
	return c.jobs(ctx, `WHERE state IN (?, ?)`, Queued, Running)
}

// TrimJobs forgets all finished jobs but the newest keep.
func (c *Catalog) TrimJobs(ctx context.Context, keep int) error {
	return c.exec(ctx, "trim jobs", `DELETE FROM jobs WHERE state NOT IN (?, ?)
		AND id NOT IN (SELECT id FROM jobs ORDER BY created DESC, id DESC LIMIT ?)`, Queued, Running, keep)
}

func (c *Catalog) jobs(ctx context.Context, where string, args ...any) ([]Job, error) {
	var l []Job
	err := c.rows(ctx, "list jobs", func(r *sql.Rows) error {
		j, err := scanJob(r)
		l = append(l, j)
		return err
	}, `SELECT `+jobColumns+` FROM jobs `+where+` ORDER BY created, id`, args...)
	return l, err
}
