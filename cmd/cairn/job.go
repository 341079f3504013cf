package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/agent"
)

// cancelWait bounds how long an interrupted command waits for its job's end.
const cancelWait = time.Minute

func jobCommands() *cli.Command {
	return group("job", "backups and restores under way, and how they ended",
		leaf("list", "", "the newest jobs", agentRepoFlags(
			&cli.IntFlag{Name: "limit", Value: 100, Usage: "at most so `many`"},
		), withAgent(listJobs)),
		leaf("show", "JOB", "one job: its ID, or enough of its beginning", agentRepoFlags(), withAgent(showJob)),
		leaf("cancel", "JOB", "stop a job; a backup that is committing ends as it would have", agentRepoFlags(), withAgent(cancelJob)),
	)
}

func listJobs(c *cli.Context, a *agent.Client) error {
	jobs, err := a.Jobs(c.Context, c.Int("limit"))
	if err != nil {
		return err
	}
	return emit(c, list(jobs), func(t *table) {
		row := func(_ string, cells ...any) { t.row(cells...) }
		if slices.ContainsFunc(jobs, func(j agent.Job) bool { return j.Host != "" }) { // several hosts share the catalog
			row = func(host string, cells ...any) { t.row(slices.Insert(cells, 3, any(dash(host)))...) }
		}
		row("HOST", "ID", "KIND", "STATE", "VOLUME", "DONE", "STARTED", "TOOK", "ERROR")
		for _, j := range jobs {
			row(j.Host, j.ID, j.Kind, j.State, dash(j.Volume), percent(j), dash(when(j.Started)), dash(elapsed(j)), j.Error)
		}
	})
}

func showJob(c *cli.Context, a *agent.Client) error {
	j, err := a.Job(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	return emitJob(c, j)
}

func cancelJob(c *cli.Context, a *agent.Client) error {
	j, err := a.CancelJob(c.Context, c.Args().First())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, cancelWait)
	defer cancel()
	if j, err = a.WaitJob(ctx, j.ID, nil); err != nil {
		return err
	}
	return emitJob(c, j)
}

func emitJob(c *cli.Context, j agent.Job) error {
	return emit(c, j, func(t *table) {
		t.field("id", j.ID)
		t.field("kind", j.Kind)
		t.field("state", j.State)
		t.field("host", j.Host)
		t.field("error", j.Error)
		t.field("code", j.Code)
		t.field("volume", j.Volume)
		t.field("backup", j.Backup)
		t.field("target", j.Target)
		t.field("phase", j.Progress.Phase)
		t.field("done", percent(j))
		t.field("read", exact(j.Progress.Read))
		if j.Kind == "restore" {
			t.field("written", exact(j.Progress.Written))
		} else {
			t.field("new", exact(j.Progress.New))
			t.field("stored", exact(j.Progress.Stored))
		}
		t.field("created", when(j.Created))
		t.field("started", when(j.Started))
		t.field("finished", when(j.Finished))
		t.field("took", elapsed(j))
	})
}

func percent(j agent.Job) string {
	switch {
	case j.State == agent.JobSucceeded:
		return "100 %"
	case j.Progress.Total <= 0:
		return "-"
	}
	return fmt.Sprintf("%.0f %%", 100*float64(j.Progress.Done)/float64(j.Progress.Total))
}

func elapsed(j agent.Job) string {
	switch {
	case j.Started.IsZero():
		return ""
	case j.Finished.IsZero():
		return took(time.Since(j.Started))
	}
	return took(j.Finished.Sub(j.Started))
}

// wait shows a job's progress until its end, which is an error unless it
// succeeded. A command that is interrupted cancels its job and waits until it
// has stopped.
func wait(c *cli.Context, a *agent.Client, job agent.Job) (agent.Job, error) {
	bar := newBar(c.App.ErrWriter)
	last, err := a.WaitJob(c.Context, job.ID, func(j agent.Job) {
		what := j.Kind + " of " + dash(j.Volume)
		if j.Progress.Phase != "" {
			what += ", " + j.Progress.Phase
		}
		bar.show(what+saved(j.Progress, j.Kind), j.Progress.Done, j.Progress.Total)
	})
	bar.end()
	if ctx := c.Context; ctx.Err() != nil && (err != nil || !last.State.Final()) {
		return last, interrupt(c, a, job)
	}
	if err != nil {
		return last, err
	}
	return last, outcome(last)
}

// outcome is the error that a job ended with.
func outcome(j agent.Job) error {
	switch j.State {
	case agent.JobSucceeded:
		return nil
	case agent.JobCanceled:
		return fmt.Errorf("job %s was canceled (%w)%s", j.ID, errInterrupted, left(j))
	default:
		if j.Error == "" {
			return fmt.Errorf("job %s ended as %s", j.ID, j.State)
		}
		// As if the agent had refused it, for the exit code.
		return &agent.Error{Code: agent.Code(j.Code), Text: j.Error}
	}
}

// left says what a canceled restore left behind: over a volume, a mixture.
func left(j agent.Job) string {
	if j.Kind != "restore" || j.Error == "" {
		return ""
	}
	return ": " + j.Error
}

// interrupt cancels the job of a command that shall end.
func interrupt(c *cli.Context, a *agent.Client, job agent.Job) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context), cancelWait)
	defer cancel()
	fmt.Fprintf(c.App.ErrWriter, "cairn: interrupted: canceling job %s …\n", job.ID)
	if _, err := a.CancelJob(ctx, job.ID); err != nil && !errors.Is(err, agent.ErrConflict) {
		return fmt.Errorf("%w, but job %s could not be canceled and may go on: %w", errInterrupted, job.ID, err)
	}
	j, err := a.WaitJob(ctx, job.ID, nil)
	switch {
	case err != nil:
		return fmt.Errorf("%w: job %s is being canceled: %w", errInterrupted, job.ID, err)
	case j.State == agent.JobCanceled:
		return fmt.Errorf("%w: job %s is canceled%s", errInterrupted, job.ID, left(j))
	default: // it was faster
		return fmt.Errorf("%w: job %s had ended already: %s", errInterrupted, job.ID, j.State)
	}
}
