package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is the file in the state folder that a running agent holds locked.
const lockName = "agent.lock"

// maxSocketPath is the longest path that a unix socket can have on Linux.
const maxSocketPath = 107

// free refuses a path at which [listen] could not make a socket.
func free(ctx context.Context, path string) error {
	if len(path) > maxSocketPath {
		return refuse(CodeInvalid, "the socket path %s is %d bytes long, the system's limit is %d: use a shorter folder", path, len(path), maxSocketPath)
	}
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return refuse(CodeConflict, "%s is there and is not a socket: remove it or name another path", path)
	case answers(ctx, path):
		return refuse(CodeBusy, "another program answers on the socket %s: stop it or name another path", path)
	}
	return nil
}

// listen makes a unix socket with this mode. One that a dead process left is
// replaced; one on which somebody answers is refused.
func listen(ctx context.Context, path string, mode uint32) (net.Listener, error) {
	if err := free(ctx, path); err != nil {
		return nil, err
	}
	if err := gone(os.Remove(path)); err != nil {
		return nil, fmt.Errorf("remove the socket that a dead process left: %w", err)
	}
	// The mode of the descriptor becomes that of the name when it is bound:
	// the socket is never open to others, not even for a moment.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var merr error
		cerr := c.Control(func(fd uintptr) { merr = unix.Fchmod(int(fd), mode) })
		return errors.Join(cerr, merr)
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// answers says whether somebody accepts connections on a socket.
func answers(ctx context.Context, path string) bool {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, fs.ErrNotExist)
	}
	_ = c.Close() // nothing was sent
	return true
}

// lockState takes a state folder, which is made if it is not there, for this
// process. The lock ends with the file or the process.
func lockState(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock state folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = refuse(CodeBusy, "another agent%s uses the state folder %s: stop it, or give this one a folder of its own", holder(f), dir)
		}
		return nil, errors.Join(err, f.Close())
	}
	// Only for the sentence above: that it may be stale or missing, as on a full
	// disk, does not matter.
	if f.Truncate(0) == nil {
		_, _ = fmt.Fprintln(f, os.Getpid())
	}
	return f, nil
}

// holder names the process that wrote its number into a lock file.
func holder(f *os.File) string {
	var pid int
	if _, err := fmt.Fscan(io.LimitReader(f, 20), &pid); err != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}
