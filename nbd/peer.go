package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendBuffer is how much of its replies a connection may leave with the kernel,
// so that a large read does not wait for the client to take the one before.
const sendBuffer = 4 << 20

// peerOf asks the kernel who is at the other end of nc.
func peerOf(nc net.Conn) Peer {
	p := Peer{PID: -1, UID: -1, GID: -1}
	if a := nc.RemoteAddr(); a != nil {
		p.Addr = a.String()
	}
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return p
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return p
	}
	// Unknown credentials stay -1, which no access rule admits.
	_ = raw.Control(func(fd uintptr) { // fails only on a closed connection
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p.PID, p.UID, p.GID = int(cred.Pid), int(cred.Uid), int(cred.Gid)
		}
	})
	return p
}

// rawConn returns the descriptor of a kernel socket, or nil when nc is
// something else, such as a net.Pipe or TLS.
func rawConn(nc net.Conn) syscall.RawConn {
	switch nc.(type) {
	case *net.UnixConn, *net.TCPConn:
	default:
		return nil
	}
	raw, err := nc.(syscall.Conn).SyscallConn() //nolint:errcheck,forcetypeassert // both types are
	if err != nil {
		return nil
	}
	return raw
}

// raiseSendBuffer asks for sendBuffer, beyond the system's limit if it may.
func raiseSendBuffer(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) { // a smaller buffer is slower, not wrong
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
		}
	})
}

// disconnected reports whether err says only that the peer went away.
func disconnected(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
