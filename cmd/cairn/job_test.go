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
