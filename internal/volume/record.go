package volume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/blockmap"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// Names inside the state folder.
const (
	recordFile   = "volume.json"
	beatFile     = "heartbeat"
	managedFile  = "data.raw"
	trackerDir   = "tracker"
	preimagesDir = "preimages"
)

const (
	recordFormat  = "cairn-volume"
	recordVersion = 1
	recordLimit   = 16 << 20
	maxSize       = int64(1) << 56 // as blockmap.Geometry
	sectorSize    = 512
	maxSnapshots  = 4096
)

// record is volume.json (FORMAT.md). It is replaced as a whole.
type record struct {
	Format    string           `json:"format"`
	Version   int              `json:"version"`
	ID        uuid.UUID        `json:"id"`
	Name      string           `json:"name"`
	Path      string           `json:"path,omitempty"` // empty: data.raw in the state folder
	Kind      string           `json:"kind"`
	Managed   bool             `json:"managed"`
	Size      int64            `json:"size"`
	BlockSize int              `json:"block_size"`
	Created   time.Time        `json:"created"`
	Openings  uint64           `json:"openings"`            // an open volume's are in Volume.openings
	Extending int64            `json:"extending,omitempty"` // size that an interrupted Extend was going for
	Reverting *uuid.UUID       `json:"reverting,omitempty"` // snapshot that an interrupted Revert was going for
	Snapshots []snapshotRecord `json:"snapshots"`
}

// snapshotRecord is one persistent snapshot.
type snapshotRecord struct {
	ID      uuid.UUID `json:"id"`
	Name    string    `json:"name,omitempty"`
	Epoch   uint64    `json:"epoch"`
	Size    int64     `json:"size"`
	Created time.Time `json:"created"`
	Broken  string    `json:"broken,omitempty"`
}

const (
	kindFile   = "file"
	kindDevice = "device"
)

func (r *record) spec() Spec {
	return Spec{ID: r.ID, Name: r.Name, Path: r.Path, Size: r.Size, Device: r.Kind == kindDevice, Managed: r.Managed, Created: r.Created}
}

// dataPath is where the data file is, for a volume whose state folder is dir.
func (r *record) dataPath(dir string) string {
	if r.Path == "" {
		return filepath.Join(dir, managedFile)
	}
	return r.Path
}

func (r *record) encode() ([]byte, error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", recordFile, err)
	}
	return append(b, '\n'), nil
}

// decodeRecord reads volume.json and checks every field that others rely on.
func decodeRecord(p []byte) (record, error) {
	var r record
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(p, &head); err != nil {
		return r, fmt.Errorf("%w: %s: %w", ErrDamaged, recordFile, err)
	}
	if head.Format != recordFormat {
		return r, fmt.Errorf("%w: %s is not a volume's record", ErrDamaged, recordFile)
	}
	if head.Version != recordVersion {
		return r, fmt.Errorf("%w: %s has version %d, this program reads version %d; use the release that wrote it", ErrDamaged, recordFile, head.Version, recordVersion)
	}
	if err := json.Unmarshal(p, &r); err != nil {
		return r, fmt.Errorf("%w: %s: %w", ErrDamaged, recordFile, err)
	}
	if err := r.check(); err != nil {
		return r, fmt.Errorf("%w: %s: %w", ErrDamaged, recordFile, err)
	}
	return r, nil
}

func (r *record) check() error {
	switch {
	case r.ID == uuid.Nil:
		return errors.New("no volume ID")
	case r.BlockSize != blockmap.DefaultBlockSize:
		return fmt.Errorf("block size %d is not supported", r.BlockSize)
	case r.Kind != kindFile && r.Kind != kindDevice:
		return fmt.Errorf("unknown kind %q", r.Kind)
	case r.Path == "" && !r.Managed:
		return errors.New("no path of the data file")
	case r.Path != "" && !filepath.IsAbs(r.Path):
		return fmt.Errorf("the path %q is not absolute", r.Path)
	case r.Managed && r.Kind == kindDevice:
		return errors.New("a device is not managed")
	case r.Openings > maxOpenings:
		return fmt.Errorf("%d openings", r.Openings)
	case len(r.Snapshots) > maxSnapshots:
		return fmt.Errorf("%d snapshots", len(r.Snapshots))
	}
	if err := checkSize(r.Size); err != nil {
		return err
	}
	if r.Extending != 0 && (checkSize(r.Extending) != nil || r.Extending < r.Size) {
		return fmt.Errorf("extending to %d bytes", r.Extending)
	}
	ids := map[uuid.UUID]bool{}
	var last uint64
	for i := range r.Snapshots {
		s := &r.Snapshots[i]
		if s.ID == uuid.Nil || ids[s.ID] || s.Epoch <= last || s.Size > r.Size || checkSize(s.Size) != nil {
			return fmt.Errorf("snapshot %d of the list makes no sense", i)
		}
		ids[s.ID], last = true, s.Epoch
	}
	if r.Reverting != nil && !ids[*r.Reverting] {
		return fmt.Errorf("reverting to snapshot %s, which is not there", *r.Reverting)
	}
	return nil
}

// checkSize is the rule for sizes of volumes.
func checkSize(n int64) error {
	switch {
	case n <= 0:
		return fmt.Errorf("%w: a volume of %d bytes; give a size of at least %d", ErrInvalid, n, sectorSize)
	case n < sectorSize:
		return fmt.Errorf("%w: %d bytes is less than a sector; give a size of at least %d", ErrInvalid, n, sectorSize)
	case n%sectorSize != 0:
		return fmt.Errorf("%w: %d bytes is not a multiple of %d; the nearest sizes are %d and %d", ErrInvalid, n, sectorSize, n-n%sectorSize, n-n%sectorSize+sectorSize)
	case n > maxSize:
		return fmt.Errorf("%w: %d bytes is more than the limit of %d", ErrInvalid, n, maxSize)
	}
	return nil
}

// readRecord reads the volume.json of a state folder.
func readRecord(fsys vfs.FS, dir string) (record, error) {
	p, err := vfs.ReadFile(fsys, filepath.Join(dir, recordFile), recordLimit)
	if err != nil {
		return record{}, fmt.Errorf("read the record of volume %s: %w", dir, err)
	}
	r, err := decodeRecord(p)
	if err != nil {
		return record{}, fmt.Errorf("volume %s: %w", dir, err)
	}
	return r, nil
}

// writeRecord replaces the volume.json of a state folder; it is durable on return.
func writeRecord(fsys vfs.FS, dir string, r *record) error {
	p, err := r.encode()
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(fsys, filepath.Join(dir, recordFile), p, 0o600); err != nil {
		return fmt.Errorf("write the record of volume %s: %w", r.Name, err)
	}
	return nil
}

// saveRecord replaces volume.json, but for the count of openings; the volume's
// own copy changes only when that is durable. After an error the old one is in
// place again, or v.unsure is set. admin is held.
func (v *Volume) saveRecord(r *record) error {
	v.recording.Lock()
	defer v.recording.Unlock()
	count, _ := v.openings.now()
	if err := v.replaceRecord(*r, count); err != nil {
		return err
	}
	v.rec = *r
	return nil
}

// replaceRecord writes a record, with a count of openings, in place of v.rec with
// the present count, which it puts back, or sets v.unsure, when that fails.
// recording is held.
func (v *Volume) replaceRecord(r record, count uint64) error {
	r.Openings = count
	err := writeRecord(v.fs, v.dir, &r)
	if err == nil {
		v.unsure.Store(false)
		return nil
	}
	// It may be there all the same, for the next open to act by.
	was := v.rec
	was.Openings, _ = v.openings.now()
	old, eerr := was.encode()
	if eerr != nil {
		return errors.Join(err, eerr)
	}
	seen, rerr := vfs.ReadFile(v.fs, filepath.Join(v.dir, recordFile), recordLimit)
	if rerr == nil && bytes.Equal(seen, old) && !v.unsure.Load() {
		return err
	}
	if werr := writeRecord(v.fs, v.dir, &was); werr != nil {
		v.unsure.Store(true)
		return errors.Join(err, werr)
	}
	v.unsure.Store(false)
	return err
}
