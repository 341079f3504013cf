package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/restore"
	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
	"github.com/cairnbackup/cairn/nbd"
)

// targetTimeout is how long the server of a target has to answer a first look.
const targetTimeout = 20 * time.Second

// unflushed is what a restore says whose target cannot be flushed.
const unflushed = "the server takes no flush, so that only it knows when what was restored is on stable storage"

// exportTarget refuses an NBD server's export that cannot take a backup: one that does not
// answer, or is a volume, which has more to say about it.
func (s *server) exportTarget(ctx context.Context, uri string, b Backup) error {
	if err := source.CheckURI(uri); err != nil {
		return err
	}
	volumes, err := s.serve.Volumes(ctx)
	if err != nil && !errors.Is(err, serve.ErrUnreachable) { // then none of its sockets answers
		return err
	}
	for _, v := range volumes {
		if source.SameExport(v.URI, uri) || v.Socket != "" && v.Socket == source.SocketOf(uri) {
			return refuse(CodeInvalid, "%s is volume %s: restore to the volume instead", uri, v.Name)
		}
	}
	c, err := nbd.Dial(ctx, uri, nbd.ClientOptions{DialTimeout: targetTimeout})
	if err != nil {
		return refuse(CodeConflict, "%s cannot be restored to: %v", uri, err)
	}
	err = mayTake(c, uri, b.Size)
	return errors.Join(err, c.Close())
}

// mayTake refuses an export that cannot hold so many bytes.
func mayTake(c *nbd.Client, what string, size int64) error {
	switch unit := c.BlockSizes().Minimum; {
	case c.ReadOnly():
		return refuse(CodeConflict, "%s cannot be written: its server offers it read-only", what)
	case c.Size() < size:
		return refuse(CodeInvalid, "%s has %d bytes and the backup has %d: make it larger", what, c.Size(), size)
	case size%unit != 0:
		return refuse(CodeInvalid, "%s takes whole blocks of %d bytes, and the backup has %d bytes: restore to a file or a new volume", what, unit, size)
	}
	return nil
}

// unusedTarget refuses an NBD export to which another job restores.
func (s *server) unusedTarget(req Restore) error {
	if req.NBD == "" {
		return nil
	}
	j, busy := s.jobs.pool.using(func(j Job) bool {
		return j.Kind == catalog.RestoreJob && !j.Left && source.SameExport(j.Target, req.NBD)
	})
	if busy {
		return refuse(CodeBusy, "job %s restores to %s already: wait for it or cancel it", j.ID, req.NBD)
	}
	return nil
}

// mixedTarget is the target of a restore job of which nothing is known but that it began,
// if that is one with content; "" for one that was new.
func mixedTarget(j Job) string {
	switch {
	case j.VolumeID != "":
		return "volume " + j.Target
	case strings.Contains(j.Target, "://"):
		return j.Target
	default:
		return ""
	}
}

// toExport restores over NBD to what is called what, as its one writer. The warning is
// what the server could not promise.
func toExport(ctx context.Context, img restore.Image, what, uri string, o restore.Options) (p restore.Progress, warning string, err error) {
	c, err := nbd.Dial(ctx, uri, nbd.ClientOptions{Contexts: []string{nbd.ContextAllocation}, Conns: 2})
	if err != nil {
		return p, "", fmt.Errorf("connect to %s: %w", what, err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err = mayTake(c, what, img.Size()); err != nil {
		return p, "", err
	}
	if !c.CanFlush() {
		warning = unflushed
	}
	if p, err = restore.Copy(ctx, img, exportTarget{c}, o); err != nil {
		return p, "", fmt.Errorf("restore to %s: %w", what, err)
	}
	return p, warning, nil
}

// exportTarget is an export that is restored to.
type exportTarget struct{ *nbd.Client }

var _ restore.Target = exportTarget{}

// ReadAt reads.
func (t exportTarget) ReadAt(ctx context.Context, p []byte, off int64) error {
	return planeGone(ctx, t.Client.ReadAt(ctx, p, off))
}

// WriteAt writes; Flush makes it durable.
func (t exportTarget) WriteAt(ctx context.Context, p []byte, off int64) error {
	return planeGone(ctx, t.Client.WriteAt(ctx, p, off, false))
}

// Flush makes what was written durable, where the server can: [toExport] tells.
func (t exportTarget) Flush(ctx context.Context) error {
	if !t.CanFlush() {
		return nil
	}
	return planeGone(ctx, t.Client.Flush(ctx))
}

// Zero makes a range zero and frees its space.
func (t exportTarget) Zero(ctx context.Context, off, n int64) error {
	return planeGone(ctx, t.Client.Zero(ctx, off, n, true))
}

// Extents asks the server; of one that does not say all may be data, which is found by
// reading.
func (t exportTarget) Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	l, err := allocation(ctx, t.Client, off, n)
	return l, planeGone(ctx, err)
}

// allocation is what a server says to be data and to read as zeros: all data, if it does
// not say.
func allocation(ctx context.Context, c *nbd.Client, off, n int64) ([]blockmap.Extent, error) {
	l, err := c.Map(ctx, nbd.ContextAllocation, off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		return []blockmap.Extent{{Offset: off, Length: n, State: blockmap.Data}}, nil
	}
	return l, err
}
