package nbd

import (
	"fmt"
	"io"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"github.com/cairnbackup/cairn/blockmap"
)

// backendDevice exports what was written for the go-nbd library.
type backendDevice struct {
	backend backend.Backend
	size    int64
}

// FromBackend makes a Device of a go-nbd backend, which must allow concurrent
// calls as those of that library do. Such a backend can be read, written and
// synced; zeros are written out, a trim changes nothing, and all of it counts as
// data. Its size is taken once. The backend is not closed with the device.
func FromBackend(b backend.Backend) (Device, error) {
	size, err := b.Size()
	if err != nil {
		return nil, fmt.Errorf("nbd: size of the backend: %w", err)
	}
	return &backendDevice{backend: b, size: size}, nil
}

var _ Device = (*backendDevice)(nil)

// Size returns the length of the backend when it was exported.
func (d *backendDevice) Size() int64 { return d.size }

// ReadAt reads from the backend.
func (d *backendDevice) ReadAt(p []byte, off int64) (int, error) { return d.backend.ReadAt(p, off) }

// WriteAt writes to the backend.
func (d *backendDevice) WriteAt(p []byte, off int64) (int, error) { return d.backend.WriteAt(p, off) }

// Flush syncs the backend.
func (d *backendDevice) Flush() error { return d.backend.Sync() }

// Trim does nothing: a backend cannot give space back.
func (d *backendDevice) Trim(int64, int64) error { return nil }

// Zero writes zeros.
func (d *backendDevice) Zero(off, n int64, _ bool) error {
	zeros := make([]byte, min(n, zeroPiece))
	for n > 0 {
		m, err := d.backend.WriteAt(zeros[:min(n, zeroPiece)], off)
		if err == nil && m == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
		off, n = off+int64(m), n-int64(m)
	}
	return nil
}

// Map calls everything data.
func (d *backendDevice) Map(_ string, off, n int64) ([]blockmap.Extent, error) {
	return []blockmap.Extent{{Offset: off, Length: n, State: blockmap.Data}}, nil
}

// Close leaves the backend to whoever made it.
func (d *backendDevice) Close() error { return nil }
