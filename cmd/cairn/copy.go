package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/restore"
	"github.com/cairnbackup/cairn/internal/vfs"
	"github.com/cairnbackup/cairn/nbd"
)

func copyCommand() *cli.Command {
	cmd := leaf("copy", "SRC DST", "copy a disk between files and NBD addresses: holes stay holes, only what differs is written to NBD, all of it is read back", []cli.Flag{
		&cli.BoolFlag{Name: "overwrite", Usage: "replace DST if it is a file that exists"},
		outputFlag(),
	}, copyDisk)
	cmd.Description = "NBD addresses are nbd://HOST[:PORT]/NAME and 'nbd+unix:///NAME?socket=PATH', and with TLS\n" +
		"'nbds://HOST/NAME?tls-certificates=DIR' and\n" +
		"'nbds+unix:///NAME?socket=PATH&tls-hostname=NAME&tls-certificates=DIR'. DIR holds ca-cert.pem\n" +
		"and, for servers that want them, client-cert.pem and client-key.pem."
	return cmd
}

func isURI(s string) bool { return strings.HasPrefix(s, "nbd") && strings.Contains(s, "://") }

func copyDisk(c *cli.Context) (err error) {
	if _, err = wantsJSON(c); err != nil {
		return err
	}
	src, dst := c.Args().Get(0), c.Args().Get(1)
	img, err := openDisk(c.Context, src)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	bar := newBar(c.App.ErrWriter)
	o := restore.Options{Verify: true, Progress: func(p restore.Progress) {
		what := "copy"
		if p.Hole+p.Same > 0 {
			what += ", holes and same " + human(p.Hole+p.Same)
		}
		bar.show(what, p.Done, p.Total)
	}}
	var p restore.Progress
	if isURI(dst) {
		p, err = copyToNBD(c.Context, img, dst, o)
	} else {
		p, err = restore.File(c.Context, img, dst, restore.FileOptions{Options: o, Overwrite: c.Bool("overwrite")})
	}
	bar.end()
	if err != nil {
		return fmt.Errorf("copy %s to %s: %w", src, dst, err)
	}
	result := map[string]int64{"bytes_total": p.Total, "bytes_read": p.Read, "bytes_written": p.Written, "bytes_zeroed": p.Zeroed, "bytes_same": p.Same, "bytes_hole": p.Hole}
	return emit(c, result, func(t *table) {
		t.field("size", exact(p.Total))
		t.field("read", exact(p.Read))
		t.field("written", exact(p.Written))
		t.field("made zero", exact(p.Zeroed))
		t.field("same before", exact(p.Same))
		t.field("holes", exact(p.Hole))
	})
}

func copyToNBD(ctx context.Context, img disk, uri string, o restore.Options) (p restore.Progress, err error) {
	conn, err := nbd.Dial(ctx, uri, nbd.ClientOptions{Contexts: []string{nbd.ContextAllocation}, Conns: 4})
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if conn.ReadOnly() {
		return p, fmt.Errorf("%s can only be read", uri)
	}
	return restore.Copy(ctx, img, nbdDisk{conn}, o)
}

// disk is what can be copied.
type disk interface {
	restore.Image
	io.Closer
}

func openDisk(ctx context.Context, name string) (disk, error) {
	if isURI(name) {
		conn, err := nbd.Dial(ctx, name, nbd.ClientOptions{Contexts: []string{nbd.ContextAllocation}, Conns: 4})
		if err != nil {
			return nil, err
		}
		return nbdDisk{conn}, nil
	}
	f, err := vfs.OS().OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	size, err := fileSize(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return fileDisk{f, size}, nil
}

// fileSize is the length of a file or a block device.
func fileSize(f vfs.File) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.IsDir() {
		return 0, fmt.Errorf("%s is a folder", fi.Name())
	}
	if osf, ok := vfs.OSFile(f); ok {
		return osf.Seek(0, io.SeekEnd)
	}
	return fi.Size(), nil
}

// fileDisk is a file as a source.
type fileDisk struct {
	vfs.File
	size int64
}

// Size implements restore.Image.
func (d fileDisk) Size() int64 { return d.size }

// ReadAt implements restore.Image.
func (d fileDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	n, err := d.File.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	return err
}

// Extents implements restore.Image.
func (d fileDisk) Extents(_ context.Context, off, n int64) ([]blockmap.Extent, error) {
	start, end, err := d.NextData(off)
	if errors.Is(err, io.EOF) {
		start, end, err = d.size, d.size, nil
	}
	if err != nil {
		return nil, err
	}
	if start > off {
		return []blockmap.Extent{blocks(off, start, off+n, true)}, nil
	}
	return []blockmap.Extent{blocks(off, end, off+n, false)}, nil
}

// blocks is the extent from off to end, in whole blocks, because these are
// compared: a block that is not a hole altogether is data.
func blocks(off, end, limit int64, hole bool) blockmap.Extent {
	const size = blockmap.DefaultBlockSize
	next := off/size*size + size
	switch {
	case hole && end >= limit:
		end = limit
	case hole && off%size == 0 && end/size*size > off:
		end = end / size * size
	case hole:
		hole, end = false, next
	default:
		end = max((end+size-1)/size*size, next)
	}
	e := blockmap.Extent{Offset: off, Length: min(end, limit) - off, State: blockmap.Data}
	if hole {
		e.State = blockmap.Hole | blockmap.Zero
	}
	return e
}

// Differs implements restore.Image.
func (d fileDisk) Differs(ctx context.Context, block int64, plain []byte) (bool, error) {
	return differs(ctx, d, block, plain)
}

// nbdDisk is an NBD connection as a source and as a target.
type nbdDisk struct{ *nbd.Client }

var _ restore.Target = nbdDisk{}

// WriteAt implements restore.Target.
func (d nbdDisk) WriteAt(ctx context.Context, p []byte, off int64) error {
	return d.Client.WriteAt(ctx, p, off, false)
}

// Zero implements restore.Target.
func (d nbdDisk) Zero(ctx context.Context, off, n int64) error {
	return d.Client.Zero(ctx, off, n, true)
}

// Extents implements restore.Image and restore.Target. A server that cannot
// tell holes has none.
func (d nbdDisk) Extents(ctx context.Context, off, n int64) ([]blockmap.Extent, error) {
	if len(d.Contexts()) == 0 {
		return []blockmap.Extent{blocks(off, off+n, off+n, false)}, nil
	}
	extents, err := d.Map(ctx, nbd.ContextAllocation, off, n)
	if err != nil || len(extents) == 0 {
		return nil, err
	}
	// Extents of one kind that follow each other count as one.
	hole := extents[0].State&blockmap.Zero != 0
	end := off
	for _, e := range extents {
		if (e.State&blockmap.Zero != 0) != hole {
			break
		}
		end = e.Offset + e.Length
	}
	return []blockmap.Extent{blocks(off, end, off+n, hole)}, nil
}

// Flush implements restore.Target.
func (d nbdDisk) Flush(ctx context.Context) error {
	if !d.CanFlush() {
		return nil
	}
	return d.Client.Flush(ctx)
}

// Differs implements restore.Image.
func (d nbdDisk) Differs(ctx context.Context, block int64, plain []byte) (bool, error) {
	return differs(ctx, d, block, plain)
}

// differs compares a block with the source's.
func differs(ctx context.Context, d disk, block int64, plain []byte) (bool, error) {
	p := make([]byte, len(plain))
	if err := d.ReadAt(ctx, p, block*blockmap.DefaultBlockSize); err != nil {
		return false, err
	}
	return !bytes.Equal(p, plain), nil
}
