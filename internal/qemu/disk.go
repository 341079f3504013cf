// Package qemu reads the disks of running guests: it has qemu keep a point in time of
// a disk while the guest goes on, and serve it over NBD together with what changed
// since earlier such points. QEMU.md says what qemu is told, and what happens when
// something goes wrong.
//
// Guests come first: whatever fails breaks the snapshot, never a write of the guest;
// and whatever was begun is taken back, or, if this process died, by the next Sweep.
package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Disk is a disk of a guest. The zero value of no field will do. Methods may be called
// from several goroutines: they take turns, as qemu's monitor serves one client at a
// time, which none of them keeps.
type Disk struct {
	// Monitor is the path of a unix socket with a QMP monitor that nobody else keeps
	// open. All disks of a guest must be given the same one.
	Monitor string
	// Node says which disk: a device's ID or path in qemu, the ID of a -drive, or
	// the name of the node that a device stands on.
	Node string
	// Tag tells the snapshots and checkpoints of this volume in qemu from others': 1
	// to 8 small letters and digits.
	Tag string
	// Dir is a folder that nobody else has access to, on a file system with room for
	// what the guest overwrites while a snapshot lasts. All disks of a guest must be
	// given the same one. qemu's user needs no rights there.
	Dir string

	dial     func(context.Context, string) (wire, error) // nil, but in tests that cut it
	patience time.Duration                               // 0, but in tests: greetingLimit
}

// rollbackLimit is how long taking back what was begun may take, also after the
// caller's context has ended.
const rollbackLimit = 30 * time.Second

func (d *Disk) check() error {
	switch {
	case d.Monitor == "" || d.Node == "" || d.Dir == "":
		return errors.New("qemu: a disk needs its monitor, its node or device, and a folder")
	case !filepath.IsAbs(d.Monitor) || !filepath.IsAbs(d.Dir):
		return fmt.Errorf("qemu: the monitor %q and the folder %q must be absolute paths", d.Monitor, d.Dir)
	case !tagPattern.MatchString(d.Tag):
		return fmt.Errorf("qemu: the tag %q is not 1 to 8 small letters and digits", d.Tag)
	}
	return nil
}

// with runs fn with the monitor, which nobody else has meanwhile.
func (d *Disk) with(ctx context.Context, fn func(*monitor) error) error {
	if err := d.check(); err != nil {
		return err
	}
	dial := d.dial
	if dial == nil {
		dial = dialUnix
	}
	m, err := openMonitor(ctx, d.Monitor, dial, cmp.Or(d.patience, greetingLimit))
	if err != nil {
		return err
	}
	return errors.Join(fn(m), m.Close())
}

// removeStray removes files of fleeces that a killed process had no time to unlink.
// Those of others that are just being made are unlinked at once anyway.
func (d *Disk) removeStray() error {
	names, err := filepath.Glob(filepath.Join(d.Dir, fleecePattern))
	if err != nil {
		return fmt.Errorf("qemu: look for files left in %s: %w", d.Dir, err)
	}
	var errs []error
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("qemu: remove a file that was left: %w", err))
		}
	}
	return errors.Join(errs...)
}
