package nbd

import (
	"errors"
	"io"
	"net"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the fast path never sleep: the socket is not blocking, and
// RWF_NOWAIT says so of the file. So they are made without telling the scheduler
// of Go, which otherwise gets ready for a long stay, and whose monitor thread is
// woken by the first call after each idle moment: more work than the call itself.

// quickReader is a socket that is read so.
type quickReader struct {
	net.Conn
	raw syscall.RawConn
	try func(fd uintptr) bool // bound once, so that a read allocates nothing

	p   []byte
	n   int
	err error

	linger *linger
}

func newQuickReader(nc net.Conn, raw syscall.RawConn, l *linger) *quickReader {
	r := &quickReader{Conn: nc, raw: raw, linger: l}
	r.try = r.receive
	return r
}

// Read implements io.Reader.
func (r *quickReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.p, r.n, r.err = p, 0, nil
	err := r.raw.Read(r.try)
	r.p = nil
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, r.err
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// receive reports whether there is an outcome, maybe after looking out for it.
func (r *quickReader) receive(fd uintptr) bool {
	return r.look(fd) || r.linger.wait(func() bool { return r.look(fd) })
}

// look reports whether there is an outcome.
func (r *quickReader) look(fd uintptr) bool {
	for {
		n, errno := receiveNoWait(int(fd), r.p)
		switch errno {
		case 0:
			r.n = n
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			r.err = &net.OpError{Op: "read", Err: errno}
			return true
		}
	}
}

// quickWriter writes to a socket.
type quickWriter struct {
	raw syscall.RawConn
	try func(fd uintptr) bool

	p   []byte
	n   int
	err error
}

func newQuickWriter(raw syscall.RawConn) *quickWriter {
	w := &quickWriter{raw: raw}
	w.try = w.send
	return w
}

// Write implements io.Writer.
func (w *quickWriter) Write(p []byte) (int, error) {
	w.p, w.n, w.err = p, 0, nil
	err := w.raw.Write(w.try)
	w.p = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

// send reports whether all has been sent or will never be.
func (w *quickWriter) send(fd uintptr) bool {
	for w.n < len(w.p) {
		n, errno := sendNoWait(int(fd), w.p[w.n:], 0)
		switch errno {
		case 0:
			w.n += n
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			w.err = &net.OpError{Op: "write", Err: errno}
			return true
		}
	}
	return true
}

// readNoWait reads what the page cache holds of a range of a file.
func readNoWait(fd int, p []byte, off int64) (int, syscall.Errno) {
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	// The offset is passed in two halves, of which a kernel of 64 bits ignores the second.
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&v)), 1, uintptr(off), uintptr(off>>32), unix.RWF_NOWAIT) //nolint:gosec // not negative
	return int(n), errno
}

// receiveNoWait takes what has come.
func receiveNoWait(fd int, p []byte) (int, syscall.Errno) {
	if raceDetector {
		return plain(syscall.Read(fd, p))
	}
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), errno
}

// plain is the outcome of a system call as the calls here have it.
func plain(n int, err error) (int, syscall.Errno) {
	var errno syscall.Errno
	errors.As(err, &errno)
	return n, errno
}

// sendNoWait sends as much of p as the socket takes.
func sendNoWait(fd int, p []byte, flags uintptr) (int, syscall.Errno) {
	if raceDetector && flags == 0 {
		return plain(syscall.Write(fd, p))
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// spliceNoWait moves up to n bytes between a pipe and a socket.
func spliceNoWait(from, to, n int) (int, syscall.Errno) {
	m, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	return int(m), errno
}
