package catalog

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
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
	Host     string          `json:"host,omitempty"`        // that runs it
	Error    string          `json:"error,omitempty"`
	Code     string          `json:"code,omitempty"` // of a failed job: what kind of failure Error is; see the HTTP interface
	Progress Progress        `json:"progress"`
	Result   json.RawMessage `json:"result,omitempty"` // by kind; see the HTTP interface
	Created  time.Time       `json:"created_at"`
	Started  time.Time       `json:"started_at,omitzero"`
	Finished time.Time       `json:"finished_at,omitzero"`
	Left     bool            `json:"-"` // it works on neither its volume nor its backup any more; not recorded
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

const jobColumns = `id, kind, state, volume, volume_id, backup_id, target, owner, error, progress, result, created, started, finished, code, snapshot_id, host`

// PutJob writes a record, in place of the one with its ID if there is one. A job
// that names no host is the host's.
func (c *Catalog) PutJob(ctx context.Context, j Job) error {
	v, err := j.values(c.host)
	if err != nil {
		return err
	}
	return c.exec(ctx, "record job "+j.ID, putJob, v...)
}

// EndJob writes the record of a job that another host left, which has an end now. It is
// [ErrNotFound] when it has one already.
func (c *Catalog) EndJob(ctx context.Context, j Job) error {
	v, err := j.values(c.host)
	if err != nil {
		return err
	}
	return c.one(ctx, "record the end of job "+j.ID, putJob+` WHERE jobs.state IN ('queued', 'running')`, v...)
}

func (j *Job) values(host string) ([]any, error) {
	progress, err := json.Marshal(j.Progress)
	if err != nil {
		return nil, fmt.Errorf("record job %s: %w", j.ID, err)
	}
	return []any{
		j.ID, j.Kind, j.State, j.Volume, j.VolumeID, j.Backup, j.Target, j.Owner, sentence(j.Error),
		string(progress), string(j.Result), stamp(j.Created), stamp(j.Started), stamp(j.Finished), j.Code, j.Snapshot, cmp.Or(j.Host, host),
	}, nil
}

var putJob = upsert("jobs", jobColumns, 1)

func scanJob(r *sql.Rows) (Job, error) {
	var j Job
	var progress, result string
	var created, started, finished int64
	if err := r.Scan(&j.ID, &j.Kind, &j.State, &j.Volume, &j.VolumeID, &j.Backup, &j.Target, &j.Owner, &j.Error,
		&progress, &result, &created, &started, &finished, &j.Code, &j.Snapshot, &j.Host); err != nil {
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

// UnfinishedJobs returns the host's jobs that are queued or running, oldest first.
func (c *Catalog) UnfinishedJobs(ctx context.Context) ([]Job, error) {
	return c.jobs(ctx, `WHERE host = ? AND state IN (?, ?)`, c.host, Queued, Running)
}

// JobsLeft returns the jobs that are queued or running at other hosts which are not up,
// oldest first.
func (c *Catalog) JobsLeft(ctx context.Context) ([]Job, error) {
	return c.jobs(ctx, `WHERE host <> ? AND state IN (?, ?) AND host NOT IN (SELECT name FROM hosts WHERE beat > `+c.d.now+` - ?)`, c.host, Queued, Running, int64(DownAfter))
}

// JobsUnderway returns the jobs that are queued or running at other hosts which are up,
// oldest first.
func (c *Catalog) JobsUnderway(ctx context.Context) ([]Job, error) {
	return c.jobs(ctx, `WHERE host <> ? AND state IN (?, ?) AND host IN (SELECT name FROM hosts WHERE beat > `+c.d.now+` - ?)`, c.host, Queued, Running, int64(DownAfter))
}

// JobsElsewhere returns the jobs that work on a backup, or will, at other hosts that
// are up, oldest first.
func (c *Catalog) JobsElsewhere(ctx context.Context, backup string) ([]Job, error) {
	return c.jobs(ctx, `WHERE backup_id = ? AND host <> ? AND state IN (?, ?)
		AND host IN (SELECT name FROM hosts WHERE beat > `+c.d.now+` - ?)`, backup, c.host, Queued, Running, int64(DownAfter))
}

// TrimJobs forgets all finished jobs of the host but the newest keep.
func (c *Catalog) TrimJobs(ctx context.Context, keep int) error {
	return c.exec(ctx, "trim jobs", `DELETE FROM jobs WHERE host = ? AND state NOT IN (?, ?)
		AND id NOT IN (SELECT id FROM jobs WHERE host = ? ORDER BY created DESC, id DESC LIMIT ?)`, c.host, Queued, Running, c.host, keep)
}

func (c *Catalog) jobs(ctx context.Context, where string, args ...any) ([]Job, error) {
	return list(ctx, c, "list jobs", scanJob, `SELECT `+jobColumns+` FROM jobs `+where+` ORDER BY created, id`, args...)
}
