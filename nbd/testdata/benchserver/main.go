// Command benchserver exports one raw file over NBD, with change tracking on,
// for benchmarks and for the tests that run real clients. It is no volume: it
// knows no snapshots.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof" //nolint:gosec // only with -pprof, for whoever measures
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
	"github.com/cairnbackup/cairn/nbd"
)

// disk is a file with a change tracker.
type disk struct {
	nbd.Device // nil; a method that is missing below would show at once

	f       vfs.File
	raw     *os.File
	size    int64
	tracker *blockmap.Tracker // nil without tracking
	splice  bool
}

var _ nbd.FileBacked = (*disk)(nil)

func (d *disk) Size() int64                             { return d.size }
func (d *disk) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }
func (d *disk) DataFile() (*os.File, bool)              { return d.raw, d.splice }
func (d *disk) EndWrite(_, _ int64, err error) error    { return err }
func (d *disk) Close() error                            { return nil }

func (d *disk) BeginWrite(off, n int64) error {
	if d.tracker == nil {
		return nil
	}
	return d.tracker.Mark(off, n)
}

func (d *disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.BeginWrite(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.f.WriteAt(p, off)
}

func (d *disk) Flush() error { return d.f.Sync() }

func (d *disk) Trim(off, n int64) error { return d.Zero(off, n, true) }

func (d *disk) Zero(off, n int64, punch bool) error {
	if err := d.BeginWrite(off, n); err != nil {
		return err
	}
	return d.f.Zero(off, n, punch)
}

func (d *disk) Map(name string, off, n int64) ([]blockmap.Extent, error) {
	if name != nbd.ContextAllocation {
		return nil, fmt.Errorf("no context %q: %w", name, syscall.EINVAL)
	}
	var found []blockmap.Extent
	for at, end := off, off+n; at < end; {
		start, stop, err := d.f.NextData(at)
		if errors.Is(err, io.EOF) {
			start, stop = end, end
		} else if err != nil {
			return nil, err
		}
		start, stop = min(start, end), min(stop, end)
		found = blockmap.Append(found, blockmap.Extent{Offset: at, Length: start - at, State: blockmap.Hole | blockmap.Zero})
		found = blockmap.Append(found, blockmap.Extent{Offset: start, Length: stop - start, State: blockmap.Data})
		at = stop
	}
	return found, nil
}

func main() {
	socket := flag.String("socket", "", "unix socket to listen on")
	tcp := flag.String("tcp", "", "address to listen on instead")
	file := flag.String("file", "", "raw file to export, as disk")
	track := flag.String("track", "", "folder for a change tracker; none without")
	splice := flag.Bool("splice", true, "send page references")
	readonly := flag.Bool("readonly", false, "refuse writes")
	profile := flag.String("pprof", "", "address for net/http/pprof")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *profile != "" {
		go func() { slog.Error("pprof", "error", http.ListenAndServe(*profile, nil)) }() //nolint:gosec // as above
	}
	if err := run(ctx, *socket, *tcp, *file, *track, *splice, *readonly); err != nil {
		fmt.Fprintln(os.Stderr, "benchserver:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, socket, tcp, file, track string, splice, readonly bool) error {
	d, err := open(file, track)
	if err != nil {
		return err
	}
	d.splice = splice
	e := &nbd.Export{
		Name: "disk", Description: filepath.Base(file), ReadOnly: readonly, MultiConn: true, Size: d.Size,
		Contexts: func() []string { return []string{nbd.ContextAllocation} },
		Open:     func(context.Context, nbd.Peer) (nbd.Device, error) { return d, nil },
	}
	server := nbd.NewServer(nbd.ServerOptions{
		Lookup: func(name string, _ nbd.Peer) (*nbd.Export, bool) { return e, name == "" || name == e.Name },
		List:   func(nbd.Peer) []*nbd.Export { return []*nbd.Export{e} },
		Logger: slog.Default(),
	})
	network, address := "unix", socket
	if tcp != "" {
		network, address = "tcp", tcp
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err != nil {
		return err
	}
	err = server.Serve(ctx, l)
	if d.tracker != nil {
		err = errors.Join(err, d.tracker.Close())
	}
	return errors.Join(err, d.f.Close())
}

func open(file, track string) (*disk, error) {
	f, err := vfs.OS().OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := &disk{f: f, size: info.Size()}
	var ok bool
	if d.raw, ok = vfs.OSFile(f); !ok {
		return nil, errors.New("not a file of the operating system")
	}
	// Large folios make small writes to cached files slow on some kernels.
	if err := unix.Fadvise(int(d.raw.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return nil, err
	}
	if track == "" {
		return d, nil
	}
	if err := vfs.MkdirAll(vfs.OS(), track, 0o700); err != nil {
		return nil, err
	}
	d.tracker, err = blockmap.CreateTracker(vfs.OS(), track, blockmap.TrackerOptions{
		VolumeID: [16]byte{1}, Size: d.size, BlockSize: blockmap.DefaultBlockSize,
	})
	return d, err
}
