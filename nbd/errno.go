package nbd

import (
	"errors"
	"io/fs"
	"strconv"
	"syscall"
)

// Error is an error number of the protocol. The client's errors wrap the one
// the server sent; a Device may return one to choose what its client is told.
// errors.Is finds it equal to the syscall.Errno of the same name.
type Error uint32

// The error numbers of the protocol.
const (
	EPERM     Error = 1
	EIO       Error = 5
	ENOMEM    Error = 12
	EINVAL    Error = 22
	ENOSPC    Error = 28
	EOVERFLOW Error = 75
	ENOTSUP   Error = 95
	ESHUTDOWN Error = 108
)

// known reports whether the protocol defines e.
func (e Error) known() bool {
	switch e {
	case EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN:
		return true
	default:
		return false
	}
}

// Error returns the usual sentence for the number.
func (e Error) Error() string {
	if e.known() {
		return syscall.Errno(e).Error() // the protocol uses Linux's numbers
	}
	return "unknown NBD error " + strconv.FormatUint(uint64(e), 10)
}

// Is makes errors.Is work with syscall.Errno and with the errors of io/fs and
// of package errors that those stand for.
func (e Error) Is(target error) bool {
	if !e.known() {
		return false
	}
	n := syscall.Errno(e)
	if t, ok := target.(syscall.Errno); ok {
		return t == n
	}
	return n.Is(target)
}

// errnos maps what a Device may return to what the wire can carry. What is
// not listed is EIO.
var errnos = map[syscall.Errno]Error{
	syscall.EPERM:     EPERM,
	syscall.EACCES:    EPERM,
	syscall.EROFS:     EPERM,
	syscall.ENOMEM:    ENOMEM,
	syscall.EINVAL:    EINVAL,
	syscall.EOVERFLOW: EINVAL, // on the wire EOVERFLOW is kept for DF
	syscall.ENOTSUP:   EINVAL, // and ENOTSUP for FAST_ZERO
	syscall.ENOSPC:    ENOSPC,
	syscall.EDQUOT:    ENOSPC,
	syscall.EFBIG:     ENOSPC,
	syscall.ESHUTDOWN: ESHUTDOWN,
}

// wireError returns the number that tells a client about err; err is not nil.
func wireError(err error) Error {
	if e, ok := errors.AsType[Error](err); ok && e.known() {
		return e
	}
	if n, ok := errors.AsType[syscall.Errno](err); ok {
		if e, ok := errnos[n]; ok {
			return e
		}
		return EIO
	}
	if errors.Is(err, fs.ErrPermission) {
		return EPERM
	}
	return EIO
}
