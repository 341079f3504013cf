package serve

import (
	"encoding/json"
	"time"
)

// Values of Volume.Status and Snapshot.Status.
const (
	StatusAvailable = "available"
	StatusInUse     = "in-use" // a volume that is InUse
	StatusError     = "error"  // a volume that is not served; its Error says why
	StatusBroken    = "broken" // a snapshot that lost its content; its Error says why
)

// Values of Volume.Kind.
const (
	KindFile   = "file"
	KindDevice = "device"
)

// Volume is one volume as the control API shows it. A volume that could not
// be opened has Status "error", its ID, and what could be learnt of the rest.
//
// Epoch and InUse tell whether this data plane may have written to the volume's
// data, which other hosts may have as a volume too. Epoch is how often the volume
// was opened for writing here, since it was made: by the first connection on the
// read-write door while there was none, by a revert, an extension, trims that
// were put off until a snapshot's end, and what is finished of these after a
// crash. It is on stable storage before the first byte is written. InUse is true
// from before Epoch is raised until what was written is on stable storage.
// Both are of one moment. So, if a look shows an Epoch and not InUse, and a later
// one the same Epoch, not InUse and the same Created, nothing was written between
// the moments of the two, and all that was written before is on the medium.
// Restarts, crashes and power failures change nothing in this. Created belongs to
// it because a volume that is deleted and made again, with the same ID, begins at 0.
type Volume struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Path      string `json:"path"` // of the data file or device, absolute
	Kind      string `json:"kind"`
	Managed   bool   `json:"managed"` // the data file was made by us and is deleted with the volume
	Size      int64  `json:"size"`    // bytes
	Allocated int64  `json:"allocated"`
	Socket    string `json:"socket"`
	URI       string `json:"uri"`               // of the read-write door; NAME@ro on the same socket only reads
	TCPURI    string `json:"tcp_uri,omitempty"` // the same over TCP with TLS; empty = there is no door for that

	Status  string `json:"status"`
	Error   string `json:"error,omitempty"`
	InUse   bool   `json:"in_use"`           // connections on the read-write door, or the data plane itself, may be writing
	Writers int    `json:"writers"`          // connections on the read-write door
	Readers int    `json:"readers"`          // connections on the read-only door
	Writer  string `json:"writer,omitempty"` // who holds the read-write door
	// Epoch is how often the volume was opened for writing here; nil = the volume
	// is not served, and nobody can tell.
	Epoch *uint64 `json:"epoch,omitempty"`

	Created      time.Time    `json:"created_at"`
	Checkpoints  []Checkpoint `json:"checkpoints"` // oldest first; the snapshots' own positions are left out
	Snapshots    int          `json:"snapshots"`
	BytesRead    int64        `json:"bytes_read"` // since the data plane started
	BytesWritten int64        `json:"bytes_written"`

	Attributes json.RawMessage `json:"attributes"` // the control plane's, a JSON object in its normal form; {} = none
}

// Checkpoint is a position in a volume's change history, offered as the NBD
// context "qemu:dirty-bitmap:NAME".
type Checkpoint struct {
	Name       string    `json:"name"`
	Created    time.Time `json:"created_at"`
	Doubt      string    `json:"doubt,omitempty"`       // why everything since counts as changed; empty = exact
	DirtyBytes *int64    `json:"dirty_bytes,omitempty"` // changed since, in whole blocks; nil = not looked up, as in a list of volumes
}

// Snapshot is one snapshot as the control API shows it.
type Snapshot struct {
	ID            string    `json:"id"`
	Name          string    `json:"name"` // may be empty
	VolumeID      string    `json:"volume_id"`
	Volume        string    `json:"volume"`
	Size          int64     `json:"size"` // bytes
	Created       time.Time `json:"created_at"`
	Status        string    `json:"status"`
	Error         string    `json:"error,omitempty"`
	Socket        string    `json:"socket"`
	URI           string    `json:"uri"`
	TCPURI        string    `json:"tcp_uri,omitempty"` // over TCP with TLS; empty = there is no door for that
	Readers       int       `json:"readers"`
	Temporary     bool      `json:"temporary"` // gone when the data plane restarts
	PreimageBytes int64     `json:"preimage_bytes"`
	Caveat        string    `json:"caveat,omitempty"` // why it may not be of one instant, or not of the state that was asked for; the data plane says none
	BytesRead     int64     `json:"bytes_read"`       // since the data plane started
}

// Status is the state of the data plane itself.
type Status struct {
	Version       string    `json:"version"`
	PID           int       `json:"pid"`
	Started       time.Time `json:"started_at"`
	UptimeSeconds int64     `json:"uptime_seconds"`
	State         string    `json:"state"`
	NBDDir        string    `json:"nbd_dir"`
	NBDListen     string    `json:"nbd_listen,omitempty"` // addresses of the door over TCP; empty = there is none
	Volumes       int       `json:"volumes"`
	VolumesError  int       `json:"volumes_error"` // of these, not served
	Snapshots     int       `json:"snapshots"`
	Connections   int       `json:"connections"`    // NBD, past their handshake
	ResidentBytes int64     `json:"resident_bytes"` // of the process
	HeapBytes     int64     `json:"heap_bytes"`     // of it, live Go objects
}

// CreateVolume asks for a volume. Exactly one of Size (a new sparse file),
// File (an existing raw file) and Device (a block device) is set.
type CreateVolume struct {
	// ID is a new random UUID of the caller's, who can delete by it what came of
	// a request whose answer was lost; or the ID under which another host has the
	// same file or device. Empty: the data plane draws one.
	ID          string `json:"id,omitempty"`
	Name        string `json:"name"`
	Size        int64  `json:"size,omitempty"` // bytes
	File        string `json:"file,omitempty"`
	Device      string `json:"device,omitempty"`
	AllowFormat bool   `json:"allow_format,omitempty"` // take a file that looks like qcow2, VMDK, LUKS… as raw bytes
	// Attributes is a JSON object of at most 64 KiB that the data plane keeps with
	// the volume for its control plane and never looks into. The volume is not
	// there without it. Empty: none.
	Attributes json.RawMessage `json:"attributes,omitempty"`
}

// SetAttributes asks for other attributes of a volume.
type SetAttributes struct {
	Attributes json.RawMessage `json:"attributes"` // instead of all that there are; {} = none
	// Was is what the caller read, as Volume.Attributes shows it: if they are others
	// by now the request is refused. Empty: whatever they are.
	Was json.RawMessage `json:"was,omitempty"`
}

// CreateSnapshots asks for one snapshot of each of Volumes, all of the same
// instant, or for none at all.
type CreateSnapshots struct {
	Volumes []string `json:"volumes"` // names or IDs
	// IDs is empty, or has one entry per volume: a new random UUID of the caller's
	// for its snapshot, as CreateVolume.ID.
	IDs       []string `json:"ids,omitempty"`
	Name      string   `json:"name,omitempty"`
	Temporary bool     `json:"temporary,omitempty"` // dropped when the data plane restarts
	// Checkpoints is empty, or has one entry per volume: a further checkpoint
	// at the snapshot's position that outlives it ("" = none).
	Checkpoints []string `json:"checkpoints,omitempty"`
	Force       bool     `json:"force,omitempty"` // also when a volume is in use: crash-consistent
	// Fresh: other hosts may have written to the volumes. What this host has cached
	// of their data is dropped first, so that the snapshots have what the medium has.
	Fresh bool `json:"fresh,omitempty"`
}

// newCheckpoint is the body of a request for a checkpoint: of a volume's present, or
// at a snapshot's position.
type newCheckpoint struct {
	Name string `json:"name"`
}

// releaseSnapshot is the body of a request to release the beginning of a snapshot.
type releaseSnapshot struct {
	Before int64 `json:"before"` // bytes
}

// extendVolume is the body of an extend request.
type extendVolume struct {
	Size int64 `json:"size"`
}
