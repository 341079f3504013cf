package volume

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// facts are what an open finds: of the data file, and of the machine.
type facts struct {
	volume    uuid.UUID
	device    bool
	size      int64 // of the data file
	resizing  bool  // an interrupted Extend explains a changed size
	mtime     time.Time
	inode     uint64 // 0 = not known
	counter   uint64
	noCounter error // the counter cannot be read
	boot      string
	since     time.Time // when the kernel booted
}

// doubt says why the tracker may not be trusted although its files are sound, or
// "". foreign means that somebody else did write: then the preimages of the
// snapshots lack what was overwritten, and they are broken too. Without foreign
// there is only no proof of the contrary.
func (b *beatRecord) doubt(f *facts) (reason string, foreign bool) {
	if b.Volume != f.volume {
		return "the heartbeat record belongs to volume " + b.Volume.String(), false
	}
	look := b.doubtFile
	if f.device {
		look = b.doubtDevice
	}
	if reason, foreign = look(f); foreign {
		return reason, true
	}
	switch {
	case b.Failed:
		return "an fsync of the data file failed before the volume was closed", false
	case b.Size != f.size && !f.resizing:
		return fmt.Sprintf("the data file has %d bytes, it had %d when it was last in use", f.size, b.Size), false
	}
	return reason, false
}

func (b *beatRecord) doubtDevice(f *facts) (reason string, foreign bool) {
	switch {
	case f.noCounter != nil:
		return "the device's write counter cannot be read: " + f.noCounter.Error(), false
	case b.Boot != f.boot && f.counter > 0:
		return "the device was written to after the boot and before it was opened", true
	case b.Boot != f.boot:
		return "", false
	case !b.Clean:
		return "the volume was not closed, and a device does not tell who wrote to it since", false
	case b.Counter != f.counter:
		return "the device was written to while the volume was closed", true
	}
	return "", false
}

func (b *beatRecord) doubtFile(f *facts) (reason string, foreign bool) {
	at := f.mtime.UTC().Format(time.RFC3339)
	replaced := b.Inode != f.inode && b.Inode != 0 && f.inode != 0
	sameBoot := b.Boot == f.boot
	switch {
	case b.Clean && sameBoot && !f.mtime.Equal(b.Mtime), b.Clean && f.mtime.After(b.Mtime):
		return "the data file was changed at " + at + ", while the volume was closed", true
	case !b.Clean && sameBoot && f.mtime.After(b.Lease):
		return "the data file was changed at " + at + ", after the volume's last heartbeat", true
	case !sameBoot && f.mtime.After(f.since):
		return "the data file was changed at " + at + ", after the boot and before it was opened", true
	case replaced:
		// A copy with the very time of the original may be a moved state folder; one that was in use cannot be told from an old one.
		return "the data file is not the same file as before", !b.Clean
	}
	return "", false
}
