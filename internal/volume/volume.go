package volume

import (
	"encoding/json"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// Options say how volumes are run. The zero value is ready for use.
type Options struct {
	// FS holds data files and state folders; nil is the operating system.
	FS vfs.FS
	// Logger hears of doubts and broken snapshots; nil discards.
	Logger *slog.Logger
	// PreimageLimit bounds the bytes of preimages that one volume may keep; the
	// write that would exceed it breaks the snapshots that need more. 0 is no
	// limit but the space that is there.
	PreimageLimit int64
	// PreimageReserve is the free space that preimages leave on the file system
	// of the state folder, so that the guest's own writes into a sparse data file
	// there still find room. 0 is 256 MiB; negative is none.
	PreimageReserve int64
	// Host tells about the machine; nil is this one.
	Host Host
}

// Spec is what a volume is; it is kept in volume.json, but for its attributes.
type Spec struct {
	ID   uuid.UUID
	Name string
	// Path of the data file or block device. Empty for a managed volume, whose
	// file is data.raw in the state folder.
	Path string
	// Size in bytes, a multiple of 512. 0 for an existing file or device: its own size.
	Size int64
	// Device: Path is a block device.
	Device bool
	// Managed: Create makes the data file and Destroy deletes it; it lies in the state folder.
	Managed bool
	// AllowFormat takes a file as raw although it looks like qcow2, VMDK, VHDX, VDI or LUKS.
	AllowFormat bool
	// Created is set by Create.
	Created time.Time
	// Attributes are kept for the control plane from Create on, as SetAttributes
	// keeps others. LoadAttributes returns them; an open volume's Spec does not.
	Attributes json.RawMessage
}

// Volume is a live volume: a raw file or block device and its state folder. It
// is held exclusively from Open to Close. All methods may be called
// concurrently, except that nothing may be called during or after Close, and no
// writes while Revert runs.
type Volume struct {
	fs   vfs.FS
	log  *slog.Logger
	host Host
	dir  string // state folder
	id   uuid.UUID
	name string

	data    *dataFile
	tracker *blockmap.Tracker
	size    atomic.Int64
	failed  atomic.Pointer[failure]
	beat    *heartbeat
	flusher syncer // of data
	gate    gate   // shared: writers; exclusive: whoever changes snaps, size or the tracker's newest segment

	snaps    snapshots    // replaced by the gate's exclusive holder; writers load it inside the gate
	reads    sync.RWMutex // held shared while a snapshot is read; taken once between unlinking a log and closing it
	deferred deferredTrims
	waits    copyWaits
	space    spaceGuard
	breaking sync.Mutex     // one snapshot is broken at a time
	back     sync.WaitGroup // reclaiming after a break

	admin     sync.Mutex  // one change of snapshots, size or what rec says at a time; taken before the gate
	recording sync.Mutex  // held while volume.json is replaced; taken after admin, the gate and openings.changing
	rec       record      // volume.json as it is on disk, but for its Openings; changed with admin and recording held
	unsure    atomic.Bool // what is on disk may be a record whose writing failed
	openings  openings

	nextEpoch uint64 // guarded by admin
}

// Spec returns what the volume is, with its present size.
func (v *Volume) Spec() Spec {
	v.admin.Lock()
	defer v.admin.Unlock()
	return v.rec.spec()
}

// Size is the volume's size in bytes.
func (v *Volume) Size() int64 { return v.size.Load() }

// Failed returns why the volume refuses writes, or nil.
func (v *Volume) Failed() error {
	if f := v.failed.Load(); f != nil {
		return f.err
	}
	return nil
}

// DataFile returns the descriptor whose bytes are the volume's, for
// nbd.FileBacked, or nil if the file system is not the operating system's. Page
// references of it may be sent: a live volume's read that is still in flight may
// show a concurrent write.
func (v *Volume) DataFile() (*os.File, bool) { return v.data.os, v.data.os != nil }

// Checkpoints lists the tracker's positions, oldest first, snapshots' own
// ("snapshot:<uuid>") included, with what is known without reading.
func (v *Volume) Checkpoints() []blockmap.Checkpoint { return v.tracker.Checkpoints() }

// Changes lists them with what changed since, which is read from disk.
func (v *Volume) Changes() []blockmap.Change { return v.tracker.Changes() }

// Dirty returns the blocks that may differ between two checkpoints, or between
// one and now (to == ""), and why that is not exact ("" if it is).
func (v *Volume) Dirty(from, to string) (*blockmap.Bitmap, string, error) {
	return v.tracker.Dirty(from, to)
}
