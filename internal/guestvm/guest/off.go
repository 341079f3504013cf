package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// turnOff ends all processes, unmounts what there is, and turns the machine off. What
// cannot be unmounted is made read-only, as the root is.
func turnOff() error {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(-1, s); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
		if !othersEnd(5 * time.Second) {
			continue
		}
		break
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	unix.Sync()
	lines := strings.Split(strings.TrimSpace(string(mounts)), "\n")
	slices.Reverse(lines)
	for _, l := range lines {
		f := strings.Fields(l)
		if len(f) < 3 || f[2] != "ext4" {
			continue // nothing of it stays
		}
		if f[1] != "/" && unix.Unmount(f[1], 0) == nil {
			continue
		}
		if err := unix.Mount("", f[1], "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", f[1], err)
		}
	}
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// othersEnd waits until this is the only process with a program.
func othersEnd(limit time.Duration) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(limit); time.Now().Before(end); <-tick.C {
		if alone() {
			return true
		}
	}
	return false
}

func alone() bool {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, p := range procs {
		if p.Name() == "1" {
			continue
		}
		// Threads of the kernel have no program, and who has ended has none any more.
		if _, err := os.Readlink("/proc/" + p.Name() + "/exe"); err == nil {
			return false
		}
	}
	return true
}
