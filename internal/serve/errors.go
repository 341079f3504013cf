package serve

import (
	"errors"
	"fmt"
)

// Code says what kind of refusal an Error is. The codes are part of the
// control API.
type Code string

// The codes of the control API. Every refusal has exactly one.
const (
	CodeNotFound Code = "not_found" // nothing has this name or ID
	CodeBusy     Code = "busy"      // somebody uses the thing; later or with Force it may work
	CodeInvalid  Code = "invalid"   // the request itself is wrong
	CodeConflict Code = "conflict"  // the request is right, but the state is against it
	CodeNoSpace  Code = "no_space"  // the disk is full
	CodeInternal Code = "internal"  // the data plane, or the machine below it, failed
)

// Sentinels for errors.Is: each matches every *Error with its code.
var (
	ErrNotFound = &Error{Code: CodeNotFound, Text: "not found"}
	ErrBusy     = &Error{Code: CodeBusy, Text: "busy"}
	ErrInvalid  = &Error{Code: CodeInvalid, Text: "invalid request"}
	ErrConflict = &Error{Code: CodeConflict, Text: "conflict"}
	ErrNoSpace  = &Error{Code: CodeNoSpace, Text: "no space"}
)

// ErrUnreachable is wrapped by every Client method when nothing answers on
// the control socket: the data plane does not run, or another user runs it.
var ErrUnreachable = errors.New("no data plane answers")

// Error is a refusal of the data plane: one sentence for the operator, and a
// code for programs.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"error"`
}

// Error returns the sentence alone.
func (e *Error) Error() string { return e.Text }

// Is reports whether target is an *Error with the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// refuse makes an Error.
func refuse(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Text: fmt.Sprintf(format, args...)}
}
