// Package needs ends tests that this machine cannot run: they are skipped with the reason,
// but with CAIRN_CI=1, where nothing may be, they fail.
package needs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Missing ends a test for want of something.
func Missing(tb testing.TB, format string, args ...any) {
	tb.Helper()
	if os.Getenv("CAIRN_CI") == "1" {
		tb.Fatalf(format, args...)
	}
	tb.Skipf(format, args...)
}

// Tool returns the path of a program, which may be one of the administrator's, or ends
// the test.
func Tool(tb testing.TB, name, debian string) string {
	tb.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	Missing(tb, "needs %s (Debian package %s)", name, debian)
	return ""
}

// Fetched returns the path of a file that scripts/tools.sh has put into its folder, or ends
// the test.
func Fetched(tb testing.TB, elem ...string) string {
	tb.Helper()
	dir := os.Getenv("CAIRN_TOOLS")
	if dir == "" {
		cache, err := os.UserCacheDir() // $XDG_CACHE_HOME, or .cache
		if err != nil {
			tb.Fatal(err)
		}
		dir = filepath.Join(cache, "cairn-tools")
	}
	p := filepath.Join(append([]string{dir}, elem...)...)
	if _, err := os.Stat(p); err != nil { //nolint:gosec // the test's own
		Missing(tb, "needs what scripts/tools.sh fetches: %v", err)
	}
	return p
}

// Newer returns the path of a program of libnbd or qemu from a Debian that speaks all of
// the NBD protocol, or ends the test.
func Newer(tb testing.TB, name string) string {
	tb.Helper()
	return Fetched(tb, "trixie", "bin", name)
}

// LoopDevice attaches a file as a block device until the test ends.
func LoopDevice(tb testing.TB, file string, options ...string) string {
	tb.Helper()
	losetup := Tool(tb, "losetup", "mount")
	out, err := exec.CommandContext(tb.Context(), losetup, append(options, "--find", "--show", file)...).CombinedOutput()
	if err != nil {
		Missing(tb, "needs the right to attach a loop device: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	tb.Cleanup(func() { // when the test's context has ended
		ctx := context.WithoutCancel(tb.Context())
		if detached, err := exec.CommandContext(ctx, losetup, "--detach", dev).CombinedOutput(); err != nil {
			tb.Errorf("detach %s: %v: %s", dev, err, detached)
		}
	})
	return dev
}

// LUN attaches a file twice: each device has a page cache of its own, as each host has of
// a LUN that both reach.
func LUN(tb testing.TB, file string) (here, there string) {
	tb.Helper()
	var l [2]string
	for i := range l {
		l[i] = LoopDevice(tb, file, "--direct-io=on")
		losetup := Tool(tb, "losetup", "mount")
		out, err := exec.CommandContext(tb.Context(), losetup, "--noheadings", "--output", "DIO", l[i]).CombinedOutput()
		if err != nil || strings.TrimSpace(string(out)) != "1" {
			Missing(tb, "needs a temporary folder on a file system with direct I/O: %v: %s", err, out)
		}
	}
	return l[0], l[1]
}
