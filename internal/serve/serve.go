// Package serve is Cairn's data plane: it opens volumes, exports them and
// their snapshots over NBD on unix sockets, decides who may connect, and
// obeys a small control API on another unix socket (CONTROL.md). Its Client
// speaks that API.
//
// Guests' disks hang on this process. It knows nothing of repositories,
// backups or jobs, and a refused or failing request never disturbs a
// connection that is already served.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cairnbackup/cairn/internal/tcpdoor"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// Options configure Run. State, Control and NBDDir are required; the folders
// are made if they do not exist.
type Options struct {
	State   string       // folder of the volumes' state; one data plane at a time
	Control string       // path of the control socket (mode 0600)
	NBDDir  string       // folder of the NBD sockets (mode 0660)
	Group   string       // group of the NBD sockets, name or number; "" = the process's
	Logger  *slog.Logger // nil = silent
	Version string       // shown by Status

	// TCP is a door for all volumes and snapshots over TCP, which Run closes; nil =
	// there is none.
	TCP *tcpdoor.Settings
	// Inherited is the control socket, made by whoever started the process, which
	// stays when Run has ended; nil = Run makes it.
	Inherited net.Listener
}

// lockFile is held by the data plane that owns a state folder.
const lockFile = "serve.lock"

// Run opens all volumes, exports them, and calls ready (which may be nil)
// once everything listens. It returns when ctx has ended and all is closed
// cleanly, or an error when it could not start or not stop cleanly. A volume
// that cannot be opened is listed with its error; the others are served.
func Run(ctx context.Context, o Options, ready func()) (err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	defer func() { err = errors.Join(err, o.TCP.Close()) }()
	gid, err := o.prepare()
	if err != nil {
		return err
	}
	fsys := vfs.OS()
	lock, err := lockState(fsys, o.State)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()

	p := newPlane(o, fsys, gid)
	defer func() { err = errors.Join(err, p.close()) }()
	if err = p.openAll(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // a stop that came early is a stop
		}
		return err
	}
	l, err := o.listen(ctx)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer p.openTCP(ctx)() // before the volumes are closed
	o.Logger.LogAttrs(ctx, slog.LevelInfo, "data plane serves", slog.String("state", o.State),
		slog.String("control", o.Control), slog.String("nbd_dir", o.NBDDir), slog.String("nbd_listen", o.TCP.Listen()), slog.Int("volumes", p.count()))
	if ready != nil {
		ready()
	}
	c := &controller{p: p, log: o.Logger}
	err = c.serve(ctx, l)
	if o.Inherited == nil {
		err = errors.Join(err, removeSocket(o.Control))
	}
	return errors.Join(err, closeListener(l))
}

// listen returns the control socket.
func (o *Options) listen(ctx context.Context) (net.Listener, error) {
	if o.Inherited != nil {
		return o.Inherited, nil
	}
	return listenUnix(ctx, o.Control, 0o600, noGroup)
}

// prepare checks the options, makes their paths absolute and their folders
// real, and returns the sockets' group.
func (o *Options) prepare() (gid int, err error) {
	for _, p := range []struct {
		what string
		path *string
	}{
		{"state folder", &o.State},
		{"control socket", &o.Control},
		{"folder of the NBD sockets", &o.NBDDir},
	} {
		if *p.path == "" {
			return 0, refuse(CodeInvalid, "the %s is not given", p.what)
		}
		if *p.path, err = filepath.Abs(*p.path); err != nil {
			return 0, fmt.Errorf("%s: %w", p.what, err)
		}
	}
	if err = checkSocketPath(o.Control); err != nil {
		return 0, err
	}
	if gid, err = groupID(o.Group); err != nil {
		return 0, err
	}
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{
		{o.State, 0o700}, // first: the others may lie in it
		{o.NBDDir, 0o755},
		{filepath.Dir(o.Control), 0o755},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return 0, fmt.Errorf("make folder: %w", err)
		}
	}
	return gid, nil
}

// lockState makes this process the only data plane on a state folder until
// the file is closed.
func lockState(fsys vfs.FS, state string) (vfs.File, error) {
	name := filepath.Join(state, lockFile)
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of state folder: %w", err)
	}
	if err := vfs.Lock(f); err != nil {
		var who string
		if b, e := vfs.ReadFile(fsys, name, 64); e == nil && len(b) > 0 {
			who = " (process " + clip(strings.TrimSpace(string(b))) + ")"
		}
		err = errors.Join(err, f.Close())
		if errors.Is(err, vfs.ErrLocked) {
			return nil, fmt.Errorf("%w: state folder %s is in use by another cairn serve%s: stop that one, or give this one another --state", ErrConflict, state, who)
		}
		return nil, fmt.Errorf("lock state folder %s: %w", state, err)
	}
	// Only for the sentence above; that it may be stale or torn does not
	// matter, the lock counts.
	pid := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock of state folder: %w", err), f.Close())
	}
	if _, err := f.WriteAt(pid, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock of state folder: %w", err), f.Close())
	}
	return f, nil
}

// closeListener closes a listener that may be closed already.
func closeListener(l net.Listener) error {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close socket: %w", err)
	}
	return nil
}

func removeSocket(path string) error {
	//nolint:gosec // Of a folder that the operator chose, and a checked name.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove socket: %w", err)
	}
	return nil
}
