package guestvm

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Tree makes the root of a file system that a guest boots from, as folder dir: the first
// process, a shell with busybox's other programs, the usual folders, and files, by their
// path in the guest, that are copied from the host.
func Tree(tb testing.TB, dir string, files map[string]string) {
	tb.Helper()
	if err := tree(tb, dir, files); err != nil {
		tb.Fatalf("make a guest's root: %v", err)
	}
}

func tree(tb testing.TB, dir string, files map[string]string) error {
	tb.Helper()
	for _, d := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "tmp", "newroot"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	busybox := tool(tb, "busybox")
	if err := copyFile(filepath.Join(dir, "bin/busybox"), busybox); err != nil {
		return err
	}
	list, err := exec.CommandContext(tb.Context(), busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list the programs of %s: %w", busybox, err)
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name == "busybox" {
			continue
		}
		if err = os.Symlink("/bin/busybox", filepath.Join(dir, "bin", name)); err != nil {
			return err
		}
	}
	if err = copyFile(filepath.Join(dir, "sbin/init"), Build(tb, "github.com/cairnbackup/cairn/internal/guestvm/guest")); err != nil {
		return err
	}
	for there, here := range files {
		if err = copyFile(filepath.Join(dir, there), here); err != nil {
			return err
		}
	}
	return nil
}

// copyFile copies a file that may be run, with the folders that it needs.
func copyFile(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700) //nolint:gosec // it is run
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err != nil {
		_ = out.Close() // the first error counts
		return err
	}
	return out.Close()
}

// archive writes the folder as a cpio archive of the format newc, as the kernel wants its
// initramfs: for each file a header of hexadecimal numbers, the name, and the content,
// each filled up to a multiple of four bytes.
func archive(w io.Writer, dir string) error {
	inode := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		inode++
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		content, mode, err := contentOf(name, d)
		if err != nil {
			return err
		}
		return entry(w, rel, inode, mode, content)
	})
	if err != nil {
		return err
	}
	return entry(w, "TRAILER!!!", 0, 0, nil)
}

func contentOf(name string, d fs.DirEntry) (content []byte, mode uint32, err error) {
	switch d.Type() {
	case fs.ModeDir:
		return nil, 0o040755, nil
	case fs.ModeSymlink:
		target, rerr := os.Readlink(name)
		return []byte(target), 0o120777, rerr
	case 0:
		content, err = os.ReadFile(name)
		return content, 0o100755, err
	default:
		return nil, 0, fmt.Errorf("%s: no place for a %v in an initramfs", name, d.Type())
	}
}

func entry(w io.Writer, name string, inode int, mode uint32, content []byte) error {
	links := 1
	const mtime, device = 0, 0
	if _, err := fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		inode, mode, 0, 0, links, mtime, len(content), device, device, device, device, len(name)+1, 0, name); err != nil {
		return err
	}
	const header = 110
	if err := pad(w, header+len(name)+1); err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	return pad(w, len(content))
}

// pad fills what has n bytes up to a multiple of four.
func pad(w io.Writer, n int) error {
	_, err := w.Write(make([]byte, (4-n%4)%4))
	return err
}
