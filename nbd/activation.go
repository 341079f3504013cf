package nbd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	firstInherited = 3 // the first descriptor that socket activation hands over
	maxInherited   = 1024
)

// ActivationListeners returns the listeners that systemd, or whoever speaks its
// protocol of socket activation, has opened for this process, in the order of the
// unit; none if there are none. It takes them out of the environment, so that neither
// a second call nor a child process takes them again.
//
// Only sockets that are listening for streams are taken; anything else is an error,
// and then all of them are closed. Closing a listener leaves the path of a unix
// socket to whoever made it.
func ActivationListeners() ([]net.Listener, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("nbd: socket activation: %w", err)
		}
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil // meant for another process, or not there
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxInherited {
		return nil, fmt.Errorf("nbd: socket activation: LISTEN_FDS is %q, not a number up to %d", count, maxInherited)
	}
	var (
		called    = strings.Split(names, ":")
		listeners = make([]net.Listener, 0, n)
		failed    []error
	)
	for i := range n {
		name := "descriptor " + strconv.Itoa(firstInherited+i)
		if i < len(called) && called[i] != "" {
			name += " (" + called[i] + ")"
		}
		l, err := inherited(firstInherited+i, name)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		listeners = append(listeners, l)
	}
	if len(failed) > 0 {
		for _, l := range listeners {
			closeQuietly(l)
		}
		return nil, errors.Join(failed...)
	}
	return listeners, nil
}

// inherited makes a listener of a descriptor, which it closes: the listener has one
// of its own, that no child process inherits.
func inherited(fd int, name string) (net.Listener, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), name)
	defer closeQuietly(f)
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("nbd: socket activation: %s is no socket: %w", name, err)
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return nil, fmt.Errorf("nbd: socket activation: %s: %w", name, err)
	}
	if kind != unix.SOCK_STREAM || listening == 0 {
		return nil, fmt.Errorf("nbd: socket activation: %s does not listen for streams: use ListenStream= without Accept= in its unit", name)
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("nbd: socket activation: %s: %w", name, err)
	}
	return l, nil
}
