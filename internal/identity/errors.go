package identity

import (
	"errors"
	"fmt"
	"net/http"
	"time"
)

// What an [*Error] is, for errors.Is.
var (
	// ErrInvalid says that a request, a name or a file makes no sense.
	ErrInvalid = errors.New("invalid")
	// ErrUnauthorized says that the credentials do not prove who calls.
	ErrUnauthorized = errors.New("unauthorized")
	// ErrNoCredentials says that there are none; it is ErrUnauthorized as well.
	ErrNoCredentials = errors.New("no credentials")
	// ErrForbidden says that the caller is known and may not do it.
	ErrForbidden = errors.New("forbidden")
	// ErrNotFound says that there is no such project, user or token.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that something is in the way: a name that is taken, a file
	// that another process is changing.
	ErrConflict = errors.New("conflict")
	// ErrTooMany says that there were too many wrong passwords.
	ErrTooMany = errors.New("too many attempts")
	// ErrUnavailable says that nobody can tell now who calls.
	ErrUnavailable = errors.New("unavailable")
)

// Error is a refusal.
type Error struct {
	Status     int           // of the HTTP answer
	Text       string        // the sentence for the user
	RetryAfter time.Duration // when to try again; 0 = the answer would be the same
	Cause      error         // for the operator, never for the user; may be nil

	none bool // there were no credentials
}

// Error returns the sentence for the user, and nothing of the cause.
func (e *Error) Error() string { return e.Text }

// HTTPStatus is the status of the answer.
func (e *Error) HTTPStatus() int { return e.Status }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Is matches the kinds of errors above.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrInvalid:
		return e.Status == http.StatusBadRequest || e.Status == http.StatusRequestEntityTooLarge
	case ErrUnauthorized:
		return e.Status == http.StatusUnauthorized
	case ErrNoCredentials:
		return e.none
	case ErrForbidden:
		return e.Status == http.StatusForbidden
	case ErrNotFound:
		return e.Status == http.StatusNotFound
	case ErrConflict:
		return e.Status == http.StatusConflict
	case ErrTooMany:
		return e.Status == http.StatusTooManyRequests
	case ErrUnavailable:
		return e.Status == http.StatusServiceUnavailable
	}
	return false
}

func refuse(status int, format string, args ...any) *Error {
	return &Error{Status: status, Text: fmt.Sprintf(format, args...)}
}

// unauthorized is Keystone's sentence: it says nothing about what was wrong.
func unauthorized() *Error {
	return refuse(http.StatusUnauthorized, "The request you have made requires authentication.")
}

func noCredentials() *Error {
	e := unauthorized()
	e.none = true
	return e
}

// unavailable is for what the operator has to look at.
func unavailable(text string, cause error) *Error {
	return &Error{Status: http.StatusServiceUnavailable, Text: text, RetryAfter: 5 * time.Second, Cause: cause}
}

func asError(err error) (*Error, bool) { return errors.AsType[*Error](err) }
