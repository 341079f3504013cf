package nbd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairnbackup/cairn/blockmap"
)

// fileDisk is a FileBacked device; memory keeps account of what was announced.
type fileDisk struct {
	*memory // everything but the content
	f       *os.File
	splice  bool
	begun   atomic.Int64 // BeginWrite without EndWrite
	pairs   atomic.Int64
	refuse  atomic.Pointer[error] // what BeginWrite answers
}

var _ FileBacked = (*fileDisk)(nil)

func newFileDisk(tb testing.TB, size int, splice bool) *fileDisk {
	tb.Helper()
	return newFileDiskIn(tb, tb.TempDir(), size, splice)
}

func newFileDiskIn(tb testing.TB, dir string, size int, splice bool) *fileDisk {
	tb.Helper()
	f, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closeQuietly(f) })
	if err := f.Truncate(int64(size)); err != nil {
		tb.Fatal(err)
	}
	return &fileDisk{memory: newMemory(size), f: f, splice: splice}
}

func (d *fileDisk) export(name string) *Export {
	e := d.memory.export(name)
	e.Open = func(context.Context, Peer) (Device, error) { return d, nil }
	return e
}

func (d *fileDisk) DataFile() (*os.File, bool) { return d.f, d.splice }

func (d *fileDisk) ReadAt(p []byte, off int64) (int, error) { return d.f.ReadAt(p, off) }

func (d *fileDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.BeginWrite(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.f.WriteAt(p, off)
	return n, d.EndWrite(off, int64(len(p)), err)
}

func (d *fileDisk) BeginWrite(off, n int64) error {
	if err := d.refuse.Load(); err != nil {
		return *err
	}
	if n > maxPiece {
		return errors.New("a piece above 1 MiB")
	}
	d.begun.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mark(off, n, true)
	return nil
}

func (d *fileDisk) EndWrite(_, _ int64, err error) error {
	d.pairs.Add(1)
	d.begun.Add(-1)
	return err
}

func (d *fileDisk) Trim(off, n int64) error { return d.Zero(off, n, true) }

func (d *fileDisk) Zero(off, n int64, _ bool) error {
	if err := unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mark(off, n, false)
	return nil
}

func (d *fileDisk) Map(name string, off, n int64) ([]blockmap.Extent, error) {
	return d.memory.Map(name, off, n)
}
