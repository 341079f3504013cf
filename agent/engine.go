package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/cinderapi"
)

// Causes for which a job's context ends.
var (
	errCanceled = errors.New("it was canceled on request")
	errStopping = errors.New("the agent was stopped: start the job again when the agent is back")
)

// engine runs the jobs of one repository: one at a time for each volume, some at
// a time in all, both together with the engines of the pool, which says whose turn
// it is; its own in the order in which they came. Every change of a job's state is in
// the catalog before anybody is told.
type engine struct {
	cat   *catalog.Catalog
	log   *slog.Logger
	pool  *pool
	owner string
	wake  chan struct{} // something may have become possible
	ended func()        // called behind the end of each job, when it holds its volume no longer

	mu      *sync.Mutex // the pool's; of the database only a new job's record is waited for under it
	tasks   []*task     // queued and running, oldest first
	stopped bool
	last    int // number of the job that began last, of all of the pool's
	late    late[Job]
}

// task is a job that has not ended.
type task struct {
	e    *engine
	work func(ctx context.Context, t *task) (result any, err error)
	done chan struct{} // closed when the job is final

	request string     // of the Block Storage API that asked for it, if any did
	writing sync.Mutex // its record, so that how far it was does not replace how it ended; taken before e.mu

	// Guarded by e.mu.
	job    Job
	slot   bool                    // it counts as one of the pool's jobs at once
	cause  error                   // why it shall end early, if it shall
	cancel context.CancelCauseFunc // while it runs
}

func newEngine(cat *catalog.Catalog, log *slog.Logger, p *pool, ended func()) *engine {
	e := &engine{cat: cat, log: log, pool: p, mu: &p.mu, ended: ended, wake: make(chan struct{}, 1), owner: fmt.Sprintf("%s:%d", hostName(), os.Getpid())}
	p.engines = append(p.engines, e)
	return e
}

// submit records a job and queues it. work is called exactly once, also when
// the job is canceled before its turn, or its start cannot be recorded: its
// context has ended then.
func (e *engine) submit(ctx context.Context, j Job, work func(ctx context.Context, t *task) (any, error)) (Job, error) {
	j.ID, j.State, j.Owner, j.Host, j.Created = uuid.NewString(), catalog.Queued, e.owner, e.cat.Host(), time.Now().UTC()
	t := &task{e: e, job: j, work: work, done: make(chan struct{}), request: cinderapi.RequestID(ctx)}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return Job{}, refuse(CodeUnavailable, "the agent is stopping: try again when it is back")
	}
	if err := e.cat.PutJob(ctx, j); err != nil {
		return Job{}, err
	}
	e.tasks = append(e.tasks, t)
	e.poke()
	return j, nil
}

func (e *engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default: // a wake-up is pending already
	}
}

// run runs jobs until ctx ends, cancels those that are left, and returns when
// they have ended.
func (e *engine) run(ctx context.Context) {
	var wg sync.WaitGroup
	// Jobs end by their own cancel functions, with a cause.
	base := context.WithoutCancel(ctx)
	for {
		for t := e.next(); t != nil; t = e.next() {
			wg.Go(func() { e.perform(base, t) })
		}
		select {
		case <-e.wake:
		case <-ctx.Done():
			e.stop(stopCause(ctx))
			for t := e.next(); t != nil; t = e.next() {
				wg.Go(func() { e.perform(base, t) })
			}
			wg.Wait()
			return
		}
	}
}

// stopCause is why jobs end with ctx: the repository was taken away, or else the
// agent stops.
func stopCause(ctx context.Context) error {
	if e, ok := errors.AsType[*Error](context.Cause(ctx)); ok {
		return e
	}
	return errStopping
}

// stop cancels all jobs and refuses new ones.
func (e *engine) stop(cause error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	for _, t := range e.tasks {
		t.end(cause)
	}
	e.pool.poke() // no slot is kept for it any more
}

// end makes a task end early. e.mu is held.
func (t *task) end(cause error) {
	if t.cause != nil {
		return
	}
	t.cause = cause
	if t.cancel != nil {
		t.cancel(cause)
	}
}

// commit makes the task go on to its end whatever is asked for from now on,
// unless it was asked to end early before: that is the error.
func (t *task) commit() error {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	if t.cause != nil {
		return t.cause
	}
	t.cancel = nil
	return nil
}

// perform runs one job to its end.
func (e *engine) perform(ctx context.Context, t *task) {
	ctx, cancel := context.WithCancelCause(cinderapi.WithRequestID(ctx, t.request))
	defer cancel(nil)
	e.mu.Lock()
	t.cancel = cancel
	if t.cause != nil {
		cancel(t.cause)
	}
	j := t.job
	e.mu.Unlock()
	log := e.log.With(slog.String("job", j.ID), slog.String("kind", j.Kind), slog.String("volume", j.Volume), slog.String("backup", j.Backup))
	log.LogAttrs(ctx, slog.LevelInfo, "job started")
	if err := e.cat.PutJob(context.WithoutCancel(ctx), j); err != nil {
		cancel(err) // it does not run, but cleans up behind itself
	}
	result, err := t.work(ctx, t)
	e.finish(context.WithoutCancel(ctx), t, result, err)
	e.ended()
	log.LogAttrs(ctx, slog.LevelInfo, "job ended", slog.Any("error", err))
}

// finish records the end of a job and lets the next one begin. Who asks for jobs
// meanwhile does not wait for the database, and is not told of the end before it is there.
func (e *engine) finish(ctx context.Context, t *task, result any, err error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	j := e.endOf(ctx, t, result, err)
	perr := e.cat.PutJob(ctx, j)
	e.mu.Lock()
	defer e.mu.Unlock()
	t.job = j
	if perr != nil {
		// Recorded later; a start before that finds it unfinished and settles it.
		e.late.keep(j.ID, j)
		e.log.LogAttrs(ctx, slog.LevelError, "end of job not recorded", slog.String("job", j.ID), slog.Any("error", perr))
	}
	e.tasks = slices.DeleteFunc(e.tasks, func(x *task) bool { return x == t })
	close(t.done)
	e.pool.poke()
}

// endOf is the job as it ended.
func (e *engine) endOf(ctx context.Context, t *task, result any, err error) Job {
	e.mu.Lock()
	j, cause := t.job, t.cause
	e.mu.Unlock()
	j.Finished, j.Progress.Phase = time.Now().UTC(), ""
	switch {
	case err == nil:
		j.State = catalog.Succeeded
	case errors.Is(cause, errCanceled):
		j.State, j.Error = JobCanceled, err.Error()
	default:
		failed := asError(err)
		j.State, j.Error, j.Code = catalog.JobFailed, failed.Text, string(failed.Code)
	}
	if result != nil {
		data, merr := json.Marshal(result)
		if merr != nil {
			e.log.LogAttrs(ctx, slog.LevelError, "result of job not recorded", slog.String("job", j.ID), slog.Any("error", merr))
		}
		j.Result = data
	}
	return j
}

// tellRunning records how far the jobs are, for other hosts.
func (e *engine) tellRunning(ctx context.Context) error {
	e.mu.Lock()
	tasks := slices.Clone(e.tasks)
	e.mu.Unlock()
	var errs []error
	for _, t := range tasks {
		err := e.tellOne(ctx, t)
		if errors.Is(err, catalog.ErrUnavailable) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (e *engine) tellOne(ctx context.Context, t *task) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	e.mu.Lock()
	j := t.job
	e.mu.Unlock()
	if j.State.Final() {
		return nil // the end is recorded, or will be
	}
	return e.cat.PutJob(ctx, j)
}

// update changes a running job's record in memory; it is written at its end.
func (t *task) update(f func(j *Job)) {
	t.e.mu.Lock()
	defer t.e.mu.Unlock()
	f(&t.job)
}

// phase says in two or three words what a job is at.
func (t *task) phase(what string) { t.update(func(j *Job) { j.Progress.Phase = what }) }

// cancelJob asks a job to end.
func (e *engine) cancelJob(ctx context.Context, ref string) (Job, error) {
	j, err := e.find(ctx, ref)
	if err != nil {
		return j, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, t := range e.tasks {
		if t.job.ID == j.ID {
			t.end(errCanceled)
			e.poke()
			return t.job, nil
		}
	}
	if !j.State.Final() {
		return j, refuse(CodeConflict, "job %s is one of host %s: cancel it there", j.ID, j.Host)
	}
	return j, refuse(CodeConflict, "job %s has ended already (%s): there is nothing to cancel", j.ID, j.State)
}
