package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/cairnbackup/cairn/agent"
)

// Whoever cancels a restore over a volume has to learn what the volume holds.
func TestCanceledRestoreSaysWhatItLeft(t *testing.T) {
	const text = "it was canceled on request; volume v holds a mixture of old and new: restore to it again"
	err := outcome(agent.Job{ID: "j", Kind: "restore", State: agent.JobCanceled, Error: text})
	if !errors.Is(err, errInterrupted) || !strings.Contains(err.Error(), "mixture of old and new") {
		t.Error(err)
	}
	err = outcome(agent.Job{ID: "j", Kind: "backup", State: agent.JobCanceled, Error: "it was canceled on request"})
	if err == nil || err.Error() != "job j was canceled (interrupted)" {
		t.Error(err)
	}
}

// A script learns from the exit code what kind of failure ended a job.
func TestExitCodeOfFailedJob(t *testing.T) {
	for code, want := range map[agent.Code]int{
		agent.CodeUnavailable: exitUnreachable, agent.CodeBusy: exitBusy, agent.CodeConflict: exitBusy, agent.CodeInvalid: exitUsage,
		agent.CodeNotFound: exitNotFound, agent.CodeNoSpace: exitFailed, agent.CodeInternal: exitFailed, "": exitFailed,
	} {
		err := outcome(agent.Job{ID: "j", State: agent.JobFailed, Error: "why", Code: string(code)})
		if err == nil || err.Error() != "why" || exitCode(err) != want {
			t.Errorf("%q: %v, exit code %d, want %d", code, err, exitCode(err), want)
		}
	}
}
