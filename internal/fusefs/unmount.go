package fusefs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Unmount ends the mount of backups at dir from another process, also one whose
// process has died. It refuses what is not a mount of cairn. Unless force is
// set it fails while files are open.
func Unmount(ctx context.Context, dir string, force bool) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("find mount point %s: %w", dir, err)
	}
	if target, lerr := filepath.EvalSymlinks(abs); lerr == nil {
		abs = target // a dead mount point cannot be followed, and need not be
	}
	m, ok, err := findMount(abs)
	if err != nil {
		return err
	}
	if !ok || !m.cairn() {
		return fmt.Errorf("no backups are mounted on %s: \"mount -t fuse.cairn\" lists the mounts", dir)
	}
	if force {
		return forceUnmount(ctx, abs)
	}
	err = unix.Unmount(abs, 0)
	if errors.Is(err, syscall.EPERM) {
		err = fuserUnmount(ctx, abs, "-u")
	}
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("files on %s are still open: close them (\"fuser -vm %s\" names who has them) or use --force: %w", dir, dir, err)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// forceUnmount takes the mount out of the tree and fails the requests under
// way, where the caller may do that.
func forceUnmount(ctx context.Context, dir string) error {
	m, _, ferr := findMount(dir)
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE)
	if errors.Is(err, syscall.EPERM) {
		err = fuserUnmount(ctx, dir, "-uz")
	}
	if err != nil {
		return fmt.Errorf("unmount %s by force: %w", dir, err)
	}
	if ferr == nil {
		// Best effort: for users other than root it is the way to abort, and
		// there it needs the fusectl file system, which most systems mount.
		f, err := os.OpenFile("/sys/fs/fuse/connections/"+strconv.FormatUint(uint64(m.minor), 10)+"/abort", os.O_WRONLY, 0)
		if err == nil {
			_, _ = f.WriteString("1")
			_ = f.Close()
		}
	}
	return nil
}

// fuserUnmount lets fusermount3 (or fusermount) do what needs root.
func fuserUnmount(ctx context.Context, dir, flag string) error {
	bin, err := exec.LookPath("fusermount3")
	if err != nil {
		if bin, err = exec.LookPath("fusermount"); err != nil {
			return fmt.Errorf("only root may unmount without fusermount3 (Debian package fuse3): %w", syscall.EPERM)
		}
	}
	out, err := exec.CommandContext(ctx, bin, flag, "--", dir).CombinedOutput()
	if err == nil {
		return nil
	}
	if bytes.Contains(out, []byte("busy")) {
		return syscall.EBUSY
	}
	return fmt.Errorf("%s: %s", filepath.Base(bin), bytes.TrimSpace(out))
}

// mountInfo is the line of /proc/self/mountinfo that we need.
type mountInfo struct {
	kind  string // file system type
	minor uint32 // of the device; names the FUSE connection
}

func (m mountInfo) cairn() bool { return m.kind == "fuse.cairn" }

// findMount returns what is mounted on top at this absolute path.
func findMount(dir string) (mountInfo, bool, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return mountInfo{}, false, fmt.Errorf("read the table of mounts: %w", err)
	}
	m, ok := parseMounts(string(table), dir)
	return m, ok, nil
}

// parseMounts finds the last, that is the topmost, mount at dir.
func parseMounts(table, dir string) (found mountInfo, ok bool) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(table) {
		// 36 35 0:41 / /mnt rw,noatime shared:1 - fuse.cairn cairn ro
		before, after, cut := strings.Cut(line, " - ")
		fields, kinds := strings.Fields(before), strings.Fields(after)
		if !cut || len(fields) < 5 || len(kinds) < 1 || unescape.Replace(fields[4]) != dir {
			continue
		}
		_, minor, _ := strings.Cut(fields[2], ":")
		n, err := strconv.ParseUint(minor, 10, 32)
		if err != nil {
			continue
		}
		found, ok = mountInfo{kind: kinds[0], minor: uint32(n)}, true
	}
	return found, ok
}
