package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
)

// image makes a file of a size with magic at an offset.
func image(t *testing.T, size, off int64, magic string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(name)
	must(t, err)
	must(t, f.Truncate(size))
	_, err = f.WriteAt([]byte(magic), off)
	must(t, err)
	must(t, f.Close())
	return name
}

func TestCreateRefuses(t *testing.T) {
	plain := image(t, 8*bs, 0, "boot")
	for _, tc := range []struct {
		name string
		spec Spec
		want error
		says string
	}{
		{"no size", Spec{Managed: true}, ErrInvalid, "at least 512"},
		{"negative size", Spec{Managed: true, Size: -512}, ErrInvalid, "at least 512"},
		{"tiny size", Spec{Managed: true, Size: 1}, ErrInvalid, "at least 512"},
		{"odd size", Spec{Managed: true, Size: 1000}, ErrInvalid, "512 and 1024"},
		{"enormous size", Spec{Managed: true, Size: 1 << 60}, ErrInvalid, "limit"},
		{"no path", Spec{}, ErrInvalid, "name a file"},
		{"managed device", Spec{Managed: true, Device: true, Size: bs}, ErrInvalid, "not managed"},
		{"managed elsewhere", Spec{Managed: true, Path: plain, Size: bs}, ErrInvalid, plain},
		{"missing file", Spec{Path: "/nowhere/disk.img"}, fs.ErrNotExist, "/nowhere/disk.img"},
		{"a folder", Spec{Path: t.TempDir()}, syscall.EISDIR, "directory"},
		{"a device that is a file", Spec{Path: plain, Device: true}, ErrInvalid, "not a block device"},
		{"a character device", Spec{Path: "/dev/null"}, ErrInvalid, "not a regular file"},
		{"odd file", Spec{Path: image(t, 1000, 0, "x")}, ErrInvalid, "512 and 1024"},
		{"empty file", Spec{Path: image(t, 0, 0, "")}, ErrInvalid, "at least 512"},
		{"another size", Spec{Path: plain, Size: bs}, ErrInvalid, "leave the size out"},
		{"qcow2", Spec{Path: image(t, bs, 0, "QFI\xfb\x00\x00\x00\x03")}, ErrFormat, "qemu-img convert"},
		{"qcow2 of an odd size", Spec{Path: image(t, 196616, 0, "QFI\xfb\x00\x00\x00\x03")}, ErrFormat, "--allow-format"},
		{"VMDK", Spec{Path: image(t, bs, 0, "KDMV")}, ErrFormat, "VMDK"},
		{"VMDK descriptor", Spec{Path: image(t, bs, 0, "# Disk DescriptorFile\n")}, ErrFormat, "VMDK"},
		{"VHDX", Spec{Path: image(t, bs, 0, "vhdxfile")}, ErrFormat, "VHDX"},
		{"fixed VHD", Spec{Path: image(t, bs, bs-512, "conectix")}, ErrFormat, "VHD"},
		{"VDI", Spec{Path: image(t, bs, 64, "\x7f\x10\xda\xbe")}, ErrFormat, "VDI"},
		{"LUKS", Spec{Path: image(t, bs, 0, "LUKS\xba\xbe")}, ErrFormat, "cryptsetup"},
		{"gzip", Spec{Path: image(t, bs, 0, "\x1f\x8b\x08\x00")}, ErrFormat, "unpack"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parent := t.TempDir()
			tc.spec.Name = "vol"
			_, err := Create(Options{}, filepath.Join(parent, "vol"), tc.spec)
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "volume vol") {
				t.Fatalf("got %v, want %v with %q", err, tc.want, tc.says)
			}
			left, err := os.ReadDir(parent)
			must(t, err)
			if len(left) > 0 {
				t.Fatalf("left behind: %v", left)
			}
		})
	}
}

func TestAllowFormat(t *testing.T) {
	v, err := Create(Options{}, filepath.Join(t.TempDir(), "vol"), Spec{Path: image(t, bs, 0, "QFI\xfb"), AllowFormat: true})
	must(t, err)
	must(t, v.Close())
}

func TestHeldExclusively(t *testing.T) {
	path := image(t, 4*bs, 0, "boot")
	dir := t.TempDir()
	v, err := Create(Options{}, filepath.Join(dir, "a"), Spec{Name: "a", Path: path})
	must(t, err)
	if _, err = Create(Options{}, filepath.Join(dir, "b"), Spec{Name: "b", Path: path}); !errors.Is(err, ErrHeld) {
		t.Fatalf("a second volume on the same file: %v", err)
	}
	if _, err = Open(Options{}, filepath.Join(dir, "a")); !errors.Is(err, ErrHeld) {
		t.Fatalf("a second open: %v", err)
	}
	if _, err = Create(Options{}, filepath.Join(dir, "a"), Spec{Name: "a", Path: path}); !errors.Is(err, ErrExist) {
		t.Fatalf("the same state folder: %v", err)
	}
	must(t, v.Close())
	v, err = Open(Options{}, filepath.Join(dir, "a"))
	must(t, err)
	must(t, v.Close())
	must(t, Destroy(Options{}, filepath.Join(dir, "a")))
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("the file of an unmanaged volume: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Fatalf("left behind: %v, %v", left, err)
	}
}

func TestRequestsRefused(t *testing.T) {
	m := vfs.NewMem()
	v := newManaged(t, memOptions(m, newHost()), 4*bs)
	s := snap(t, v, SnapshotOptions{Name: "s"})
	tmp := snap(t, v, SnapshotOptions{Temporary: true})
	p := make([]byte, 512)
	for name, tc := range map[string]struct {
		err  error
		want error
	}{
		"write beyond the end":     {second(v.WriteAt(p, 4*bs-511)), syscall.ENOSPC},
		"write at the end":         {second(v.WriteAt(p, 4*bs)), syscall.ENOSPC},
		"write before the start":   {second(v.WriteAt(p, -1)), syscall.ENOSPC},
		"write at the far end":     {v.BeginWrite(1<<62, 1<<62), syscall.ENOSPC},
		"zero beyond the end":      {v.Zero(bs, 1<<62, true), syscall.ENOSPC},
		"trim beyond the end":      {v.Trim(4*bs, 1), syscall.ENOSPC},
		"read beyond the end":      {second(v.ReadAt(p, 4*bs+1)), syscall.EINVAL},
		"snapshot read, negative":  {second(s.ReadAt(p, -1)), syscall.EINVAL},
		"extents beyond the end":   {secondOf(v.Extents(0, 4*bs+1)), syscall.EINVAL},
		"extents of nothing":       {secondOf(s.Extents(0, 0)), syscall.EINVAL},
		"shrink":                   {v.Extend(bs), ErrInvalid},
		"odd extend":               {v.Extend(4*bs + 1), ErrInvalid},
		"delete of no snapshot":    {v.DeleteSnapshot(uuid.New()), ErrNotFound},
		"revert to no snapshot":    {v.Revert(t.Context(), uuid.New()), ErrNotFound},
		"revert to a temporary":    {v.Revert(t.Context(), tmp.id), ErrInvalid},
		"snapshot ID twice":        {secondOf(SnapshotGroup(t.Context(), []*Volume{v}, []SnapshotOptions{{ID: s.id}})), ErrExist},
		"volume twice in a group":  {secondOf(SnapshotGroup(t.Context(), []*Volume{v, v}, make([]SnapshotOptions, 2))), ErrInvalid},
		"group without volumes":    {secondOf(SnapshotGroup(t.Context(), nil, nil)), ErrInvalid},
		"group with other options": {secondOf(SnapshotGroup(t.Context(), []*Volume{v}, nil)), ErrInvalid},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v, want %v", name, tc.err, tc.want)
		}
	}
	must(t, v.Close())
}

func second(_ int, err error) error        { return err }
func secondOf[T any](_ T, err error) error { return err }

func TestOpenRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(dir string) error
		want   error
	}{
		"no record":       {func(d string) error { return os.Remove(filepath.Join(d, recordFile)) }, fs.ErrNotExist},
		"garbage":         {func(d string) error { return os.WriteFile(filepath.Join(d, recordFile), []byte("{"), 0o600) }, ErrDamaged},
		"another version": {func(d string) error { return replaceIn(d, `"version": 1`, `"version": 9`) }, ErrDamaged},
		"no ID":           {func(d string) error { return replaceIn(d, `"id": "`, `"id": null, "x": "`) }, ErrDamaged},
		"cut data file":   {func(d string) error { return os.Truncate(filepath.Join(d, managedFile), bs) }, ErrDamaged},
		"no data file":    {func(d string) error { return os.Remove(filepath.Join(d, managedFile)) }, fs.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "vol")
			v, err := Create(Options{}, dir, Spec{Name: "vol", Size: 4 * bs, Managed: true})
			must(t, err)
			must(t, v.Close())
			must(t, tc.damage(dir))
			if _, err := Open(Options{}, dir); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), "vol") {
				t.Fatalf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// The size to give a cut file back is the volume's, not the one that is left.
func TestCutFileSaysItsSize(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "vol")
	v, err := Create(Options{}, dir, Spec{Name: "vol", Size: 4 * bs, Managed: true})
	must(t, err)
	must(t, v.Close())
	must(t, os.Truncate(filepath.Join(dir, managedFile), bs))
	if _, err := Open(Options{}, dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("truncate -s %d ", 4*bs)) {
		t.Fatal(err)
	}
}

func replaceIn(dir, from, to string) error {
	name := filepath.Join(dir, recordFile)
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, []byte(strings.Replace(string(b), from, to, 1)), 0o600)
}
