package volume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Host is what the doubt rules and the space reserve need to know about the machine.
type Host interface {
	// Now is the wall clock that file times are stamped with.
	Now() time.Time
	// Boot identifies the running kernel and says when it started.
	Boot() (id string, since time.Time, err error)
	// DeviceWrites is the kernel's count of sectors written to a block device since it appeared.
	DeviceWrites(f *os.File) (uint64, error)
	// Free is the number of bytes that can still be stored beside f.
	Free(f *os.File) (int64, error)
}

// linux is the Host that runs this process.
type linux struct{}

// Now implements Host.
func (linux) Now() time.Time { return time.Now() }

// Boot implements Host.
func (linux) Boot() (id string, since time.Time, err error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", time.Time{}, fmt.Errorf("read the boot ID: %w", err)
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return "", time.Time{}, fmt.Errorf("read the boot time: %w", err)
	}
	for line := range bytes.Lines(stat) {
		if s, ok := strings.CutPrefix(string(line), "btime "); ok {
			sec, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
			if err != nil {
				return "", time.Time{}, fmt.Errorf("read the boot time: %w", err)
			}
			return strings.TrimSpace(string(b)), time.Unix(sec, 0), nil
		}
	}
	return "", time.Time{}, errors.New("read the boot time: /proc/stat has no btime")
}

// DeviceWrites implements Host.
func (linux) DeviceWrites(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	name := fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, fmt.Errorf("read the write counter of %s: %w", f.Name(), err)
	}
	fields := strings.Fields(string(b))
	if len(fields) < 7 {
		return 0, fmt.Errorf("read the write counter of %s: %s has %d fields", f.Name(), name, len(fields))
	}
	n, err := strconv.ParseUint(fields[6], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the write counter of %s: %w", f.Name(), err)
	}
	return n, nil
}

// Free implements Host.
func (linux) Free(f *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("free space beside %s: %w", f.Name(), err)
	}
	return int64(st.Bavail) * st.Bsize, nil //nolint:gosec // no file system has 8 EiB free
}
