// Command guest is the first process of a test's guest. From the initramfs it loads the
// modules and, if the kernel's command line names a root, goes on as that one's /sbin/init.
// Then it does what the test asks for on the serial port, see package wire. It knows no
// way to go on after an error: it ends, with that the kernel panics, and with that qemu
// ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	modules = "/modules" // of the initramfs
	newRoot = "/newroot"
	port    = "/dev/vport0p1"
)

func main() {
	// If this process ends, the kernel panics.
	fmt.Fprintln(os.Stderr, "guest:", boot(context.Background()))
}

func boot(ctx context.Context) error {
	if err := mountKernelFS(); err != nil {
		return err
	}
	if _, err := os.Stat(modules); err == nil {
		if err = loadModules(); err != nil {
			return err
		}
		line, err := os.ReadFile("/proc/cmdline")
		if err != nil {
			return err
		}
		for f := range strings.FieldsSeq(string(line)) {
			if root, ok := strings.CutPrefix(f, "root="); ok {
				return switchRoot(root)
			}
		}
	}
	return answer(ctx)
}

func mountKernelFS() error {
	for _, m := range []struct{ what, where string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.what, m.where, m.what, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	return nil
}

// loadModules loads those that the test chose, in the order that it found.
func loadModules() error {
	files, err := filepath.Glob(modules + "/*.ko")
	if err != nil {
		return err
	}
	for _, name := range files { // sorted
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = errors.Join(unix.FinitModule(int(f.Fd()), "", 0), f.Close())
		if err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// openDevice waits a little for a device: its driver makes it when the host has told of
// it, and takes a moment longer to be ready.
func openDevice(name string, flags int) (*os.File, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 3000 {
		f, err := os.OpenFile(name, flags, 0)
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENXIO) {
			return f, err
		}
		<-tick.C
	}
	return nil, fmt.Errorf("there is no %s", name)
}

// switchRoot goes on as the init of an ext4 file system, over the present root.
func switchRoot(dev string) error {
	f, err := openDevice(dev, os.O_RDONLY)
	if err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = unix.Mount(dev, newRoot, "ext4", 0, "discard"); err != nil {
		return fmt.Errorf("mount %s: %w", dev, err)
	}
	if err = os.Chdir(newRoot); err != nil {
		return err
	}
	if err = unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err = unix.Chroot("."); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, os.Environ())
}
