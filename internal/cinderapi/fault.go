package cinderapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Fault is an answer that is no success, with a sentence for whoever asked.
type Fault struct { //nolint:errname // Cinder's word for it
	Status  int // of HTTP
	Message string
}

// Error returns the sentence.
func (f *Fault) Error() string { return f.Message }

// Invalid is the fault of a request that cannot be done as it is.
func Invalid(format string, args ...any) *Fault {
	return &Fault{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// NotFound is the fault of a request for a thing that is not there: what is
// "Volume", "Snapshot" or "Backup".
func NotFound(what, id string) *Fault {
	return &Fault{http.StatusNotFound, fmt.Sprintf("%s %s could not be found.", what, id)}
}

// Forbidden is the fault of a request that only an administrator may make.
func Forbidden(what string) *Fault {
	return &Fault{http.StatusForbidden, fmt.Sprintf("Policy doesn't allow %s to be performed.", what)}
}

// OverQuota is the fault of a request beyond a project's quota.
func OverQuota(format string, args ...any) *Fault {
	return &Fault{http.StatusRequestEntityTooLarge, fmt.Sprintf(format, args...)}
}

// Unavailable is the fault of a request that cannot be done now.
func Unavailable(format string, args ...any) *Fault {
	return &Fault{http.StatusServiceUnavailable, fmt.Sprintf(format, args...)}
}

// noRoute is the fault of a path, a method or a version that nothing is at.
func noRoute() *Fault {
	return &Fault{http.StatusNotFound, "The resource could not be found."}
}

// invalidInput is the fault of a parameter, in the words of Cinder's InvalidInput.
func invalidInput(format string, args ...any) *Fault {
	return Invalid("Invalid input received: "+format, args...)
}

// internal is what is told of an error of ours: nothing of the inside.
const internal = "The server has either erred or is incapable of performing the requested operation."

// faultOf is what the caller is told of err, which is not nil. An error that is no
// fault is one of ours: its cause is for the log alone.
func faultOf(err error) *Fault {
	var f *Fault
	switch {
	case errors.As(err, &f) && f.Status >= 400 && f.Status < 600:
		return f
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Unavailable("The request was not completed in time: try again.")
	default:
		return &Fault{http.StatusInternalServerError, internal}
	}
}

// faultKey is the key in a fault's body that Cinder uses for its status.
func faultKey(status int) string {
	switch status {
	case http.StatusBadRequest:
		return "badRequest"
	case http.StatusUnauthorized:
		return "unauthorized"
	case http.StatusForbidden:
		return "forbidden"
	case http.StatusNotFound:
		return "itemNotFound"
	case http.StatusMethodNotAllowed:
		return "badMethod"
	case http.StatusConflict:
		return "conflictingRequest"
	case http.StatusRequestEntityTooLarge:
		return "overLimit"
	case http.StatusUnsupportedMediaType:
		return "badMediaType"
	case http.StatusNotImplemented:
		return "notImplemented"
	case http.StatusServiceUnavailable:
		return "serviceUnavailable"
	default:
		return "computeFault"
	}
}

// answerOf is the answer that tells f.
func answerOf(f *Fault) answer {
	body := object{"code": f.Status, "message": f.Message}
	a := answer{status: f.Status, body: object{faultKey(f.Status): body}}
	if f.Status == http.StatusRequestEntityTooLarge {
		// A client waits that long before it tries again; a quota does not change
		// by waiting.
		body["retryAfter"] = "0"
		a.header = http.Header{"Retry-After": {"0"}}
	}
	return a
}
