package qemu

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// What stays free on the disk with the folder, where the records of whoever backs up may
// be, too: a gigabyte, or of a small disk a part. Who looks a few times in a second has
// that long, whatever the guest's speed.
const (
	keepFree     = 1 << 30
	keepFreePart = 20
)

// Room says why no snapshot of the disk should begin, or last any longer: the error wraps
// ErrNoRoom and names the folder. A snapshot that goes on fills its disk, and breaks then.
func (d *Disk) Room() error {
	free, keep := space(d.Dir)
	if free >= keep {
		return nil
	}
	return fmt.Errorf("only %d MiB are free in %s, where what guests overwrite is kept while their disks are read, and %d MiB are to stay free for what else is on that disk: make room there, or mount a disk of its own at that folder (%w)",
		free>>20, d.Dir, keep>>20, ErrNoRoom)
}

// space returns how many bytes are free, and how many are to stay so. A folder that cannot
// be looked at cannot be written to either, which says more.
func space(dir string) (free, keep uint64) {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0, 0
	}
	unit := uint64(st.Bsize) //nolint:gosec // not negative
	return st.Bavail * unit, min(keepFree, st.Blocks*unit/keepFreePart)
}
