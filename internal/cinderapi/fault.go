package cinderapi

import (
	"fmt"
	"net/http"
)

// Fault is an answer that is no success, with a sentence for whoever asked.
type Fault struct {
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
