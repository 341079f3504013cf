package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// eachFS runs a test against the operating system and against Mem, each with an
// empty directory.
func eachFS(t *testing.T, test func(t *testing.T, fsys FS, dir string)) {
	t.Helper()
	t.Run("OS", func(t *testing.T) { test(t, OS(), t.TempDir()) })
	t.Run("Mem", func(t *testing.T) {
		m := NewMem()
		if err := m.Mkdir("/d", 0o755); err != nil {
			t.Fatal(err)
		}
		test(t, m, "/d")
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, fsys FS, name, content string) File {
	t.Helper()
	f, err := fsys.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	check(t, err)
	t.Cleanup(func() { _ = f.Close() })
	if content != "" {
		_, err = f.WriteAt([]byte(content), 0)
		check(t, err)
	}
	return f
}

func content(t *testing.T, fsys FS, name string) string {
	t.Helper()
	b, err := ReadFile(fsys, name, 1<<20)
	check(t, err)
	return string(b)
}

// Zeros in haste are zeros, or nothing has happened.
func TestZeroFast(t *testing.T) {
	test := func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		for _, punch := range []bool{false, true} {
			name := filepath.Join(dir, "f")
			f := create(t, fsys, name, "0123456789")
			err := f.ZeroFast(3, 100, punch)
			want := "012\x00\x00\x00\x00\x00\x00\x00"
			if err != nil {
				if !errors.Is(err, errors.ErrUnsupported) {
					t.Fatal(err)
				}
				want = "0123456789"
			}
			if got := content(t, fsys, name); got != want {
				t.Errorf("punch %v: %q, want %q; %v", punch, got, want, err)
			}
			if err := f.ZeroFast(10, 5, punch); err != nil {
				t.Errorf("beyond the end: %v", err)
			}
			if err := f.ZeroFast(-1, 5, punch); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("before the start: %v", err)
			}
		}
	}
	eachFS(t, test)
	t.Run("tmpfs", func(t *testing.T) { // which has holes, and no other way to zero a range
		dir, err := os.MkdirTemp("/dev/shm", "vfs-test") //nolint:usetesting // it must be in that place
		if err != nil {
			t.Skip("this machine has no /dev/shm")
		}
		t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
		test(t, OS(), dir)
		f := create(t, OS(), filepath.Join(dir, "g"), "0123456789")
		if err := f.ZeroFast(0, 5, false); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("tmpfs can: %v", err)
		}
	})
}

func TestNames(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		a, b, sub := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "sub")
		f := create(t, fsys, a, "one")
		check(t, fsys.Mkdir(sub, 0o700))
		check(t, fsys.Link(a, b))
		check(t, fsys.Rename(a, filepath.Join(sub, "c")))
		check(t, fsys.SyncDir(dir))
		if got := content(t, fsys, b) + content(t, fsys, filepath.Join(sub, "c")); got != "oneone" {
			t.Fatalf("content %q", got)
		}
		list, err := fsys.ReadDir(dir)
		check(t, err)
		if len(list) != 2 || list[0].Name() != "b" || list[1].Name() != "sub" || !list[1].IsDir() {
			t.Fatalf("list %v", list)
		}

		// What is removed lives on for those who have it open.
		check(t, fsys.Remove(b))
		check(t, fsys.Remove(filepath.Join(sub, "c")))
		p := make([]byte, 3)
		if _, err := f.ReadAt(p, 0); err != nil || string(p) != "one" {
			t.Fatalf("removed file reads %q, %v", p, err)
		}

		// A rename replaces files.
		create(t, fsys, a, "new")
		create(t, fsys, b, "old")
		check(t, fsys.Rename(a, b))
		if got := content(t, fsys, b); got != "new" {
			t.Fatalf("content %q after rename", got)
		}
		check(t, fsys.Remove(sub))
	})
}

func TestNameErrors(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		p := func(s string) string { return filepath.Join(dir, s) }
		create(t, fsys, p("f"), "x")
		check(t, fsys.Mkdir(p("d"), 0o755))
		create(t, fsys, p("d/f"), "x")
		open := func(name string, flag int) error {
			f, err := fsys.OpenFile(name, flag, 0o644)
			if err == nil {
				_ = f.Close()
			}
			return err
		}
		_, statErr := fsys.Stat(p("nothing"))
		_, listErr := fsys.ReadDir(p("nothing"))
		_, listFile := fsys.ReadDir(p("f"))
		for _, c := range []struct {
			name string
			err  error
			want error
		}{
			{"open missing", open(p("nothing"), os.O_RDWR), fs.ErrNotExist},
			{"open below a file", open(p("f/x"), os.O_RDWR|os.O_CREATE), syscall.ENOTDIR},
			{"create exclusively", open(p("f"), os.O_RDWR|os.O_CREATE|os.O_EXCL), fs.ErrExist},
			{"write a directory", open(p("d"), os.O_RDWR), syscall.EISDIR},
			{"append", open(p("f"), os.O_WRONLY|os.O_APPEND), syscall.EINVAL},
			{"mkdir over", fsys.Mkdir(p("f"), 0o755), fs.ErrExist},
			{"mkdir nowhere", fsys.Mkdir(p("x/y"), 0o755), fs.ErrNotExist},
			{"remove missing", fsys.Remove(p("nothing")), fs.ErrNotExist},
			{"remove full", fsys.Remove(p("d")), syscall.ENOTEMPTY},
			{"rename missing", fsys.Rename(p("nothing"), p("x")), fs.ErrNotExist},
			{"rename file over directory", fsys.Rename(p("f"), p("d")), fs.ErrExist},
			{"rename directory over file", fsys.Rename(p("d"), p("f")), syscall.ENOTDIR},
			{"rename into itself", fsys.Rename(p("d"), p("d/e")), syscall.EINVAL},
			{"link over", fsys.Link(p("f"), p("d/f")), fs.ErrExist},
			{"link missing", fsys.Link(p("nothing"), p("x")), fs.ErrNotExist},
			{"sync missing", fsys.SyncDir(p("nothing")), fs.ErrNotExist},
			{"stat missing", statErr, fs.ErrNotExist},
			{"list missing", listErr, fs.ErrNotExist},
			{"list file", listFile, syscall.ENOTDIR},
		} {
			if !errors.Is(c.err, c.want) {
				t.Errorf("%s: error %v, want %v", c.name, c.err, c.want)
			}
		}
	})
}

func TestFileBasics(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		name := filepath.Join(dir, "f")
		f := create(t, fsys, name, "hello")
		check(t, f.Truncate(10))
		p := make([]byte, 20)
		if n, err := f.ReadAt(p, 3); n != 7 || !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], []byte("lo\x00\x00\x00\x00\x00")) {
			t.Fatalf("read %d %q %v", n, p[:n], err)
		}
		check(t, f.Truncate(2))
		check(t, f.Truncate(5))
		check(t, f.Sync())
		if got := content(t, fsys, name); got != "he\x00\x00\x00" {
			t.Fatalf("content %q", got)
		}
		info, err := f.Stat()
		check(t, err)
		if info.Size() != 5 || info.Name() != "f" || info.IsDir() || info.Mode() != 0o644 {
			t.Fatalf("info %v %v %v", info.Size(), info.Name(), info.Mode())
		}
		ro, err := fsys.OpenFile(name, os.O_RDONLY, 0)
		check(t, err)
		if _, err := ro.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.EBADF) {
			t.Fatalf("write to a read-only file: %v", err)
		}
		check(t, ro.Close())
		if _, err := ro.ReadAt(p, 0); !errors.Is(err, fs.ErrClosed) {
			t.Fatalf("read of a closed file: %v", err)
		}
		if err := ro.Sync(); !errors.Is(err, fs.ErrClosed) {
			t.Fatalf("sync of a closed file: %v", err)
		}
		if _, err := ReadFile(fsys, name, 4); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("read of a large file: %v", err)
		}
	})
}

func TestHoles(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		f := create(t, fsys, filepath.Join(dir, "f"), "")
		const mib = 1 << 20
		check(t, f.Truncate(16*mib))
		if _, _, err := f.NextData(0); !errors.Is(err, io.EOF) {
			t.Skip("the file system knows no holes")
		}
		data := bytes.Repeat([]byte{7}, mib)
		for _, off := range []int64{2 * mib, 8 * mib} {
			_, err := f.WriteAt(data, off)
			check(t, err)
		}
		run := func(off, wantStart, wantEnd int64) {
			t.Helper()
			start, end, err := f.NextData(off)
			if err != nil || start != wantStart || end != wantEnd {
				t.Fatalf("data after %d: %d to %d, %v; want %d to %d", off, start, end, err, wantStart, wantEnd)
			}
		}
		run(0, 2*mib, 3*mib)
		run(2*mib+5, 2*mib+5, 3*mib)
		run(3*mib, 8*mib, 9*mib)
		check(t, f.Zero(8*mib+10, 2*mib, true))
		check(t, f.Zero(2*mib, mib, true))
		run(0, 8*mib, 8*mib+4096)
		check(t, f.Zero(8*mib, 100*mib, false)) // Beyond the end: cut.
		info, err := f.Stat()
		check(t, err)
		if info.Size() != 16*mib {
			t.Fatalf("zeroing changed the size to %d", info.Size())
		}
		got := make([]byte, 16*mib)
		_, err = f.ReadAt(got, 0)
		check(t, err)
		if i := bytes.IndexByte(got, 7); i >= 0 {
			t.Fatalf("byte %d is not zero", i)
		}
		if _, _, err := f.NextData(16 * mib); !errors.Is(err, io.EOF) {
			t.Fatalf("data after the end: %v", err)
		}
	})
}

func TestLock(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		f := create(t, fsys, filepath.Join(dir, "f"), "")
		g := create(t, fsys, filepath.Join(dir, "f"), "")
		check(t, Lock(f))
		check(t, Lock(f))
		if err := Lock(g); !errors.Is(err, ErrLocked) {
			t.Fatalf("second lock: %v", err)
		}
		check(t, f.Close())
		check(t, Lock(g))
	})
}

func TestWholeFiles(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		sub := filepath.Join(dir, "a", "b", "c")
		check(t, MkdirAll(fsys, sub, 0o755))
		check(t, MkdirAll(fsys, sub, 0o755))
		name := filepath.Join(sub, "f")
		for _, s := range []string{"first, and longer", "second"} {
			check(t, WriteFile(fsys, name, []byte(s), 0o600))
			if got := content(t, fsys, name); got != s {
				t.Fatalf("content %q, want %q", got, s)
			}
		}
		if err := MkdirAll(fsys, filepath.Join(name, "x"), 0o755); err == nil {
			t.Fatal("a directory below a file")
		}
		if err := WriteFile(fsys, filepath.Join(dir, "nothing", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("write into nothing: %v", err)
		}
		list, err := fsys.ReadDir(sub)
		check(t, err)
		if len(list) != 1 {
			t.Fatalf("left behind: %v", list)
		}
	})
}

// Random writes, cuts and zeros read back as from a byte slice, on both.
func TestContentModel(t *testing.T) {
	eachFS(t, func(t *testing.T, fsys FS, dir string) {
		t.Helper()
		rapid.Check(t, func(r *rapid.T) {
			f, err := fsys.OpenFile(filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
			if err != nil {
				r.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			var model []byte
			grow := func(n int) { model = append(model, make([]byte, max(n-len(model), 0))...) }
			for range rapid.IntRange(1, 30).Draw(r, "ops") {
				off, n := rapid.IntRange(0, 40000).Draw(r, "off"), rapid.IntRange(0, 20000).Draw(r, "n")
				switch rapid.IntRange(0, 4).Draw(r, "op") {
				case 0, 1:
					p := bytes.Repeat([]byte{byte(n%255 + 1)}, n)
					_, err = f.WriteAt(p, int64(off))
					if n > 0 {
						grow(off + n)
						copy(model[off:], p)
					}
				case 2:
					err = f.Truncate(int64(off))
					grow(off)
					model = model[:off:off]
				case 3:
					err = f.Zero(int64(off), int64(n), n%2 == 0)
					if off < len(model) {
						clear(model[off:min(off+n, len(model))])
					}
				default:
					err = f.Sync()
				}
				if err != nil {
					r.Fatal(err)
				}
			}
			got := make([]byte, len(model)+1)
			n, err := f.ReadAt(got, 0)
			if !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], model) {
				r.Fatalf("content differs (%d bytes of %d, %v)", n, len(model), err)
			}
			for off := int64(0); ; { // Holes are zeros.
				start, end, err := f.NextData(off)
				if errors.Is(err, io.EOF) {
					start = int64(len(model))
				} else if err != nil {
					r.Fatal(err)
				}
				if bytes.Trim(model[off:start], "\x00") != nil && len(bytes.Trim(model[off:start], "\x00")) > 0 {
					r.Fatalf("data in the hole from %d to %d", off, start)
				}
				if err != nil {
					break
				}
				off = end
			}
		})
	})
}
