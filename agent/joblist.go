package agent

import (
	"context"
	"strings"

	"github.com/cairnbackup/cairn/internal/catalog"
)

// live returns the task of a job that has not ended.
func (e *engine) live(id string) (*task, Job, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.tasks {
		if t.job.ID == id {
			return t, t.job, true
		}
	}
	return nil, Job{}, false
}

// known returns a job of which more is known than the catalog has.
func (e *engine) known(id string) (Job, bool) {
	if _, j, ok := e.live(id); ok {
		return j, true
	}
	return e.late.get(id)
}

// current returns a job as it is now.
func (e *engine) current(ctx context.Context, id string) (Job, error) {
	if j, ok := e.known(id); ok {
		return j, nil
	}
	return e.cat.Job(ctx, id)
}

// jobs returns the newest jobs with what is known of them now.
func (e *engine) jobs(ctx context.Context, limit int) ([]Job, error) {
	l, err := e.cat.Jobs(ctx, limit)
	for i := range l {
		if j, ok := e.known(l[i].ID); ok {
			l[i] = j
		}
	}
	return l, err
}

// find returns the job with this ID, or the only one whose ID begins so.
func (e *engine) find(ctx context.Context, ref string) (Job, error) {
	l, err := e.jobs(ctx, keepJobs)
	if err != nil {
		return Job{}, err
	}
	var found []Job
	for _, j := range l {
		if j.ID == ref {
			return j, nil
		}
		if len(ref) >= 4 && strings.HasPrefix(j.ID, ref) {
			found = append(found, j)
		}
	}
	switch len(found) {
	case 0:
		return Job{}, refuse(CodeNotFound, "there is no job %q: \"cairn job list\" shows the newest", ref)
	case 1:
		return found[0], nil
	default:
		return Job{}, refuse(CodeConflict, "%d jobs have an ID that begins with %q: give more of it", len(found), ref)
	}
}

// using returns a job that has not ended and that match accepts.
func (e *engine) using(match func(Job) bool) (Job, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.usingLocked(match)
}

func (e *engine) usingLocked(match func(Job) bool) (Job, bool) {
	for _, t := range e.tasks {
		if match(t.job) {
			return t.job, true
		}
	}
	return Job{}, false
}

// counts returns how many jobs wait and run.
func (e *engine) counts() (queued, running int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.tasks {
		if t.job.State == catalog.Running {
			running++
		}
	}
	return len(e.tasks) - running, running
}
