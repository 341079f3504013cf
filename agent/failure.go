package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/internal/restore"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
	"github.com/cairnbackup/cairn/nbd"
)

// Code says what kind of refusal an [Error] is. The codes are part of the
// agent's HTTP interface.
type Code string

// The codes of the HTTP interface. Every refusal has exactly one.
const (
	CodeNotFound    Code = "not_found"   // nothing has this name or ID
	CodeBusy        Code = "busy"        // somebody uses the thing; later it may work
	CodeInvalid     Code = "invalid"     // the request itself is wrong
	CodeConflict    Code = "conflict"    // the request is right, but the state is against it
	CodeNoSpace     Code = "no_space"    // a disk is full
	CodeUnavailable Code = "unavailable" // the data plane or too many stores do not answer
	CodeInternal    Code = "internal"    // the agent, or the machine below it, failed
)

// Sentinels for errors.Is: each matches every *[Error] with its code.
var (
	ErrNotFound    = &Error{Code: CodeNotFound, Text: "not found"}
	ErrBusy        = &Error{Code: CodeBusy, Text: "busy"}
	ErrInvalid     = &Error{Code: CodeInvalid, Text: "invalid request"}
	ErrConflict    = &Error{Code: CodeConflict, Text: "conflict"}
	ErrNoSpace     = &Error{Code: CodeNoSpace, Text: "no space"}
	ErrUnavailable = &Error{Code: CodeUnavailable, Text: "unavailable"}
)

// ErrUnreachable is wrapped by every [Client] method when no agent answers on
// the socket.
var ErrUnreachable = errors.New("no agent answers")

// Error is a refusal of the agent: one sentence that names the thing and the
// way out, and a code for programs.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"error"`
}

// Error returns the sentence alone.
func (e *Error) Error() string { return e.Text }

// Is reports whether target is an *Error with the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error) // Is is asked about one link of the chain
	return ok && t.Code == e.Code
}

// refuse makes an Error.
func refuse(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Text: fmt.Sprintf(format, args...)}
}

// httpStatus is the status that a code is answered with.
func (c Code) httpStatus() int {
	switch c {
	case CodeNotFound:
		return http.StatusNotFound
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeBusy, CodeConflict:
		return http.StatusConflict
	case CodeNoSpace:
		return http.StatusInsufficientStorage
	case CodeUnavailable:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// errPlaneGone: the connection to a volume broke while a job worked on it.
var errPlaneGone = errors.New("what serves the volume went away: \"cairn status\" tells whether the data plane is back, then start the job again")

// planeGone marks an error of an NBD request that is not the server's answer,
// or is its farewell.
func planeGone(ctx context.Context, err error) error {
	answer, answered := errors.AsType[nbd.Error](err)
	if err == nil || ctx.Err() != nil || answered && answer != nbd.ESHUTDOWN {
		return err
	}
	return fmt.Errorf("%w (%w)", errPlaneGone, err)
}

// failure is what a job that ended with err is recorded with: why it was made
// to end, if it was, explains more than what it met then.
func failure(ctx context.Context, err error) *Error {
	cause := context.Cause(ctx)
	if _, lost := errors.AsType[*Error](cause); lost || errors.Is(cause, errCanceled) || errors.Is(cause, errStopping) {
		err = cause
	}
	return asError(err)
}

// asError gives any error its code. The text is kept: it was written for the
// operator where the error arose.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Code: e.Code, Text: err.Error()}
	}
	code := CodeInternal
	if e, ok := errors.AsType[*serve.Error](err); ok {
		code = Code(e.Code) // the same words
	}
	switch {
	case errors.Is(err, serve.ErrUnreachable), errors.Is(err, source.ErrAway), errors.Is(err, repository.ErrTooFewStores), errors.Is(err, errPlaneGone), errors.Is(err, catalog.ErrUnavailable),
		errors.Is(err, errFailed), errors.Is(err, errStopping), errors.Is(err, errInterrupted), errors.Is(err, errLeft):
		code = CodeUnavailable
	case errors.Is(err, catalog.ErrNotFound), errors.Is(err, repository.ErrNotFound):
		code = CodeNotFound
	case errors.Is(err, repository.ErrVersion), errors.Is(err, repository.ErrForeign), errors.Is(err, restore.ErrExists):
		code = CodeConflict
	case errors.Is(err, catalog.ErrText):
		code = CodeInvalid
	case errors.Is(err, restore.ErrHeld), errors.Is(err, repository.ErrPruning):
		code = CodeBusy
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = CodeNoSpace
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = CodeUnavailable
	}
	return &Error{Code: code, Text: err.Error()}
}
