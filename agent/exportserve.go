package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/catalog"
	"github.com/cairnbackup/cairn/internal/repository"
	"github.com/cairnbackup/cairn/nbd"
)

// open opens a backup, and its overlay (made when fresh), and serves it.
func (x *exports) open(ctx context.Context, e catalog.Export, fresh bool) (s *served, err error) {
	img, err := x.image(ctx, e)
	if err != nil {
		return nil, fmt.Errorf("export backup %s: %w", e.Backup, err)
	}
	closers := []func() error{img.Close}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(closers))
		}
	}()
	var o *overlay
	if e.Overlay {
		if o, err = x.openOverlay(img, e, fresh); err != nil {
			return nil, fmt.Errorf("export backup %s: %w", e.Backup, err)
		}
		closers = append(closers, o.close)
	}
	inside := &guests{}
	l, err := listen(ctx, x.socket(e.Name), 0o660)
	if err != nil {
		return nil, fmt.Errorf("export backup %s: %w", e.Backup, err)
	}
	export := &nbd.Export{
		Name: e.Name, Description: "backup " + e.Backup, ReadOnly: o == nil, MultiConn: true,
		Contexts: func() []string { return imageContexts(o != nil) },
		Size:     img.Size,
		Open: func(ctx context.Context, _ nbd.Peer) (nbd.Device, error) {
			if ierr := inside.enter(); ierr != nil {
				return nil, ierr
			}
			return openDevice(ctx, img, o, inside), nil
		},
	}
	srv := nbd.NewServer(nbd.ServerOptions{
		Lookup: func(name string, _ nbd.Peer) (*nbd.Export, bool) { return export, name == "" || name == e.Name },
		List:   func(nbd.Peer) []*nbd.Export { return []*nbd.Export{export} },
		Logger: x.log,
	})
	end, ended := make(chan struct{}), make(chan error, 1)
	serve := func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() { // ends with ctx at the latest
			select {
			case <-end:
				cancel()
			case <-ctx.Done():
			}
		}()
		err := srv.Serve(ctx, l)
		inside.drain() // those over TCP, which end has ended or ctx does
		ended <- errors.Join(err, closeAll(closers), gone(os.Remove(x.socket(e.Name))))
	}
	select {
	case x.start <- serve:
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("export backup %s: %w", e.Backup, context.Cause(ctx)), l.Close())
	}
	stop := sync.OnceValue(func() error { close(end); return <-ended })
	return &served{rec: e, size: img.Size(), export: export, end: end, stop: stop, guests: inside}, nil
}

// openOverlay opens the files of an overlay.
func (x *exports) openOverlay(img *repository.Image, e catalog.Export, fresh bool) (*overlay, error) {
	id, err := uuid.Parse(e.Backup)
	if err != nil {
		return nil, fmt.Errorf("backup ID %q: %w", e.Backup, err)
	}
	dir, flag := x.overlayDir(e.Name), os.O_RDWR
	if fresh {
		flag |= os.O_CREATE | os.O_EXCL
		if ierr := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); ierr != nil {
			return nil, fmt.Errorf("make overlay: %w", ierr)
		}
	}
	data, err := os.OpenFile(filepath.Join(dir, "data"), flag, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	mapf, err := os.OpenFile(filepath.Join(dir, "map"), flag, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open overlay: %w", err), data.Close())
	}
	o, err := openOverlay(img, id, diskFile{data}, diskFile{mapf}, fresh)
	if err == nil && fresh {
		err = errors.Join(syncDir(dir), syncDir(x.state))
	}
	if err != nil {
		return nil, errors.Join(err, data.Close(), mapf.Close())
	}
	return o, nil
}

// closeAll closes in reverse order.
func closeAll(closers []func() error) error {
	var errs []error
	for _, c := range slices.Backward(closers) {
		errs = append(errs, c())
	}
	return errors.Join(errs...)
}

// gone is err, unless that is because the file is not there.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// syncDir makes a folder's entries durable.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync folder %s: %w", name, err), d.Close())
	}
	return d.Close()
}
