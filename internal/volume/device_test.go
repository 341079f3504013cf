package volume

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairnbackup/cairn/internal/needs"
)

func TestDevice(t *testing.T) {
	dev := needs.LoopDevice(t, image(t, 4*bs, 0, "boot"))
	dir := filepath.Join(t.TempDir(), "vol")
	if _, err := Create(Options{}, dir, Spec{Name: "vol", Path: dev}); !errors.Is(err, ErrInvalid) {
		t.Fatalf("a device as a file: %v", err)
	}
	v, err := Create(Options{}, dir, Spec{Name: "vol", Path: dev, Device: true})
	must(t, err)
	if v.Size() != 4*bs {
		t.Fatalf("size %d", v.Size())
	}
	if _, err = Create(Options{}, dir+"2", Spec{Name: "vol2", Path: dev, Device: true}); !errors.Is(err, ErrHeld) {
		t.Fatalf("a device that is in use: %v", err)
	}
	if err = v.ZeroFast(2*bs, bs, false); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("zeros that are not to free their space are written by the kernel, if by nobody else: %v", err)
	}
	s := snap(t, v, SnapshotOptions{Checkpoint: "c"})
	_, err = v.WriteAt([]byte("new"), 0)
	must(t, err)
	must(t, v.Trim(bs, bs))
	if p := content(t, s, 4*bs); string(p[:4]) != "boot" {
		t.Fatalf("the snapshot reads %q", p[:4])
	}
	if exts, xerr := v.Extents(0, 4*bs); xerr != nil || len(exts) == 0 {
		t.Fatalf("extents %v, %v", exts, xerr)
	}
	must(t, v.Flush())
	must(t, v.Close())

	v, err = Open(Options{}, dir) // nobody wrote
	must(t, err)
	expectDoubt(t, v, false)
	must(t, v.Close())

	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("stranger"), 3*bs)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
	v, err = Open(Options{}, dir)
	must(t, err)
	expectDoubt(t, v, true)
	must(t, v.Close())
}
