package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/nbd"
)

// imageDevice is an image as a read-only NBD device.
type imageDevice struct {
	img *repository.Image
	// life is the context of the reads: NBD requests have none of their own.
	life func() context.Context
}

var _ nbd.Device = (*imageDevice)(nil)

// Size implements nbd.Device.
func (d *imageDevice) Size() int64 { return d.img.Size() }

// ReadAt implements nbd.Device.
func (d *imageDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.img.ReadAt(d.life(), p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt implements nbd.Device.
func (*imageDevice) WriteAt([]byte, int64) (int, error) { return 0, syscall.EPERM }

// Flush implements nbd.Device.
func (*imageDevice) Flush() error { return nil }

// Trim implements nbd.Device.
func (*imageDevice) Trim(int64, int64) error { return syscall.EPERM }

// Zero implements nbd.Device.
func (*imageDevice) Zero(int64, int64, bool) error { return syscall.EPERM }

// Map implements nbd.Device.
func (d *imageDevice) Map(name string, off, n int64) ([]blockmap.Extent, error) {
	if name != nbd.ContextAllocation {
		return nil, syscall.EINVAL
	}
	return d.img.Extents(d.life(), off, n)
}

// Close implements nbd.Device. The image is shared by all connections.
func (*imageDevice) Close() error { return nil }

// repoExport serves one backup until the command is interrupted.
func repoExport(c *cli.Context, r *repository.Repository) (err error) {
	socket := c.String("socket")
	if socket == "" {
		return usagef("--socket PATH is missing: where shall the backup be served?")
	}
	if socket, err = absolute(socket); err != nil {
		return err
	}
	b, err := storedBackup(c, r)
	if err != nil {
		return err
	}
	img, err := r.Image(c.Context, b.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	l, err := listen(c.Context, socket)
	if err != nil {
		return err
	}
	defer func() {
		if e := os.Remove(socket); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	name := b.ID
	export := &nbd.Export{
		Name: name, Description: fmt.Sprintf("backup %s of %s", b.ID, b.Volume), ReadOnly: true, MultiConn: true,
		Contexts: func() []string { return []string{nbd.ContextAllocation} },
		Size:     img.Size,
		Open: func(ctx context.Context, _ nbd.Peer) (nbd.Device, error) {
			return &imageDevice{img: img, life: func() context.Context { return ctx }}, nil
		},
	}
	s := nbd.NewServer(nbd.ServerOptions{
		Lookup: func(n string, _ nbd.Peer) (*nbd.Export, bool) { return export, n == "" || n == name },
		List:   func(nbd.Peer) []*nbd.Export { return []*nbd.Export{export} },
	})
	info := map[string]string{"name": name, "uri": nbd.URI(socket, name), "socket": socket}
	if err := emit(c, info, func(t *table) { t.row(info["uri"]) }); err != nil {
		return errors.Join(err, l.Close())
	}
	unpin := pinned(c, r, b, socket)
	return errors.Join(s.Serve(c.Context, l), unpin())
}

// pinned pins a backup while it is served, without anybody having to wait for
// it. Where stores are read-only, or too many are down, it is served all the same.
func pinned(c *cli.Context, r *repository.Repository, b repository.Backup, socket string) (unpin func() error) {
	ctx := c.Context
	id, done := uuid.NewString(), make(chan error, 1)
	go func() {
		err := r.Pin(ctx, id, b.ID, fmt.Sprintf("exported as %s by \"cairn repo export\"", socket))
		if err != nil && ctx.Err() == nil {
			fmt.Fprintf(c.App.ErrWriter, "cairn: backup %s is served and not protected: when somebody deletes it, a prune may take it away (%s)\n", b.ID, clean(err.Error()))
		}
		done <- err
	}()
	return func() error {
		pinErr := <-done
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), unpinTime)
		defer cancel()
		err := r.Unpin(ending, id)
		if err == nil || pinErr != nil {
			return nil // an outcome that is unknown is settled by the next prune or "cairn repo unpin"
		}
		return fmt.Errorf("what backup %s holds stays pinned: \"cairn repo unpin %s\" ends that: %w", b.ID, id, err)
	}
}

// unpinTime bounds the end of an export.
const unpinTime = 30 * time.Second

// maxSocketPath is the longest path that a unix socket can have on Linux.
const maxSocketPath = 107

// listen makes a unix socket that only this user can connect to. A socket that
// nobody listens on any more is replaced.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, usagef("the socket path %s is %d bytes long, the system's limit is %d: use a shorter folder or name", path, len(path), maxSocketPath)
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("make socket %s: its folder is not there: make it first (%w)", path, err)
	}
	if _, err := os.Lstat(path); err == nil {
		var d net.Dialer
		conn, derr := d.DialContext(ctx, "unix", path)
		if derr == nil {
			return nil, errors.Join(busyf("socket %s is in use by another program: name another path", path), conn.Close())
		}
		if !errors.Is(derr, syscall.ECONNREFUSED) {
			return nil, busyf("%s exists and is no socket of ours: name another path", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("replace a stale socket: %w", err)
		}
	}
	// Made under a name of its own, so that nobody connects before the mode is set.
	temp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%d.sock", os.Getpid()))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", temp)
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", path, err)
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
	}
	if err := errors.Join(os.Chmod(temp, 0o600), os.Rename(temp, path)); err != nil {
		return nil, errors.Join(fmt.Errorf("make socket %s: %w", path, err), l.Close())
	}
	return l, nil
}
