package serve

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
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

// listenUnix listens on a new socket at path with the given mode and group.
// A dead socket in its place is removed; a live one, or a file that is no
// socket, is refused. The socket is bound in a private folder and then
// renamed to path, so that nobody can connect before its mode is set.
func listenUnix(ctx context.Context, path string, mode fs.FileMode, gid int) (_ net.Listener, err error) {
	if err = checkSocketPath(path); err != nil {
		return nil, err
	}
	if err = removeDead(ctx, path); err != nil {
		return nil, err
	}
	private, err := privateDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("make a folder for socket %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()

	bound := filepath.Join(private, "s")
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", bound)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false) // its name is about to change
	}
	if gid != noGroup {
		if err := os.Chown(bound, -1, gid); err != nil {
			return nil, fmt.Errorf("give socket %s to group %d: %w", path, gid, err)
		}
	}
	if err := os.Chmod(bound, mode); err != nil {
		return nil, fmt.Errorf("set the mode of socket %s: %w", path, err)
	}
	//nolint:gosec // The operator chose the folder, and the name is checked.
	if err := os.Rename(bound, path); err != nil {
		return nil, fmt.Errorf("put socket %s in place: %w", path, err)
	}
	return l, nil
}

// privateDir makes a folder in dir that only this user can enter. Its name is
// short, because socket paths must be.
func privateDir(dir string) (string, error) {
	var b [2]byte
	for range 100 {
		if _, err := rand.Read(b[:]); err != nil {
			return "", fmt.Errorf("draw a name: %w", err)
		}
		p := filepath.Join(dir, "."+hex.EncodeToString(b[:]))
		err := os.Mkdir(p, 0o700) //nolint:gosec // In a folder that the operator chose.
		if err == nil || !errors.Is(err, fs.ErrExist) {
			return p, err
		}
	}
	return "", fmt.Errorf("folder %s is full of leftovers named like .1a2b: remove them", dir)
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
