package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/cairnbackup/cairn/agent"
	"github.com/cairnbackup/cairn/internal/identity"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/restore"
	"github.com/cairnbackup/cairn/internal/serve"
)

// Exit codes; "cairn help" explains them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitBusy        = 4
	exitRepository  = 5
	exitUnreachable = 6
	exitDamage      = 7
	exitInterrupted = 130
)

var (
	// errInterrupted: Ctrl-C, or a job that somebody canceled.
	errInterrupted = errors.New("interrupted")
	// errDamage: a check found something, if only a store that does not answer.
	errDamage = errors.New("damage found")
)

// exitCode maps an error to the code that scripts see.
func exitCode(err error) int {
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case err == nil:
		return 0
	case is(errInterrupted):
		return exitInterrupted
	case isUsage(err), is(agent.ErrInvalid, serve.ErrInvalid, repository.ErrInvalid, identity.ErrInvalid):
		return exitUsage
	case is(agent.ErrNotFound, serve.ErrNotFound, repository.ErrNotFound, identity.ErrNotFound):
		return exitNotFound
	case is(repository.ErrPassword, repository.ErrForeign, repository.ErrVersion, repository.ErrTooFewStores):
		return exitRepository
	case is(agent.ErrBusy, agent.ErrConflict, serve.ErrBusy, serve.ErrConflict, repository.ErrAmbiguous, repository.ErrNotEmpty, repository.ErrChange, repository.ErrRetained, repository.ErrPruning,
		identity.ErrConflict, restore.ErrExists, restore.ErrHeld, fs.ErrExist, syscall.EBUSY):
		return exitBusy
	case is(agent.ErrUnreachable, agent.ErrUnavailable, serve.ErrUnreachable):
		return exitUnreachable
	case is(errDamage, repository.ErrDamaged):
		return exitDamage
	case is(context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}

// missingf is a refusal because something is not there.
func missingf(format string, args ...any) error {
	return &agent.Error{Code: agent.CodeNotFound, Text: fmt.Sprintf(format, args...)}
}

// busyf is a refusal because of the state of things.
func busyf(format string, args ...any) error {
	return &agent.Error{Code: agent.CodeBusy, Text: fmt.Sprintf(format, args...)}
}
