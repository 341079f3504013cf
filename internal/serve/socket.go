package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"
	"time"
)

// noGroup leaves a socket with the process's group.
const noGroup = -1

// checkSocketPath refuses a path that the kernel would not take.
func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return refuse(CodeInvalid, "the socket path %s has %d bytes, and a unix socket's may have %d: choose a shorter name or folder", path, len(path), maxSocketPath)
	}
	return nil
}

// listenUnix listens on a new socket at path with the given mode and group. A
// dead socket in its place is removed; a live one, or a file that is no
// socket, is refused. At no moment can anybody connect whom the mode excludes.
func listenUnix(ctx context.Context, path string, mode fs.FileMode, gid int) (_ net.Listener, err error) {
	if err = checkSocketPath(path); err != nil {
		return nil, err
	}
	if err = removeDead(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: private}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false) // removed before it is closed
	}
	if gid != noGroup {
		err = os.Chown(path, -1, gid) //nolint:gosec // The operator chose the folder, and the name is checked.
	}
	if err == nil {
		// After the group: a change of owner may clear bits.
		err = os.Chmod(path, mode) //nolint:gosec // As above.
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set group %d and mode of socket %s: %w", gid, path, err), l.Close(), removeSocket(path))
	}
	return l, nil
}

// private gives a socket the mode with which bind will make its file: one that
// lets nobody else in, whatever the umask.
func private(_, _ string, c syscall.RawConn) error {
	var chmod error
	if err := c.Control(func(fd uintptr) { chmod = syscall.Fchmod(int(fd), 0o600) }); err != nil {
		return fmt.Errorf("make socket private: %w", err)
	}
	if chmod != nil {
		return fmt.Errorf("make socket private: %w", chmod)
	}
	return nil
}

// removeDead makes room for a socket at path: it removes a socket that
// nobody listens on, and refuses everything else that is there.
func removeDead(ctx context.Context, path string) error {
	st, err := os.Lstat(path) //nolint:gosec // The operator chose the folder, and the name is checked.
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at socket %s: %w", path, err)
	case st.Mode().Type() != fs.ModeSocket:
		return refuse(CodeConflict, "%s exists and is no socket: move it away, or choose another name or folder", path)
	}
	alive, err := listening(ctx, path)
	if err != nil {
		return err
	}
	if alive {
		return refuse(CodeConflict, "another program listens on %s: stop it, or choose another name or folder", path)
	}
	//nolint:gosec // As above.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove dead socket: %w", err)
	}
	return nil
}

// listening reports whether somebody accepts connections on the socket.
func listening(ctx context.Context, path string) (bool, error) {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		return true, c.Close()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return false, nil
	case ctx.Err() != nil:
		return false, fmt.Errorf("look at socket %s: %w", path, ctx.Err())
	default:
		// Full backlog, no permission: somebody is there.
		return true, nil
	}
}

// groupID resolves the group that a socket shall belong to.
func groupID(group string) (int, error) {
	if group == "" {
		return noGroup, nil
	}
	if id, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, refuse(CodeInvalid, "group %q for the NBD sockets is unknown: create it with groupadd, or give another", clip(group))
	}
	id, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, fmt.Errorf("group %q: %w", group, err)
	}
	return id, nil
}
