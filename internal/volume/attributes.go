package volume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/attributes"
	"github.com/cairnbackup/cairn/internal/vfs"
)

// The attributes lie in a file of their own: a program that knows nothing of
// them leaves it as it is when it replaces volume.json, and whatever is wrong
// with it the volume is served.
const (
	attributesFile    = "attributes.json"
	attributesAside   = "attributes.damaged"
	attributesFormat  = "cairn-volume-attributes"
	attributesVersion = 1
	attributesLimit   = attributes.MaxBytes + 4096
)

// attributesRecord is attributes.json (FORMAT.md). It is replaced as a whole.
type attributesRecord struct {
	Format     string          `json:"format"`
	Version    int             `json:"version"`
	ID         uuid.UUID       `json:"id"`
	CRC        uint32          `json:"crc"` // of Attributes
	Attributes json.RawMessage `json:"attributes"`
}

// encodeAttributes takes them in their normal form, which the encoder keeps.
func encodeAttributes(id uuid.UUID, a json.RawMessage) ([]byte, error) {
	if a == nil {
		a = json.RawMessage("{}")
	}
	b, err := json.Marshal(attributesRecord{attributesFormat, attributesVersion, id, crc32.Checksum(a, castagnoli), a})
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", attributesFile, err)
	}
	return append(b, '\n'), nil
}

// decodeAttributes reads attributes.json of a volume. The error is ErrDamaged only
// for what no program can make sense of, and else ErrForeign.
func decodeAttributes(p []byte, id uuid.UUID) (json.RawMessage, error) {
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(p, &head); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, attributesFile, err)
	}
	if head.Format != attributesFormat || head.Version < 1 {
		return nil, fmt.Errorf("%w: %s does not have a volume's attributes", ErrDamaged, attributesFile)
	}
	if head.Version != attributesVersion {
		return nil, fmt.Errorf("%w: %s has version %d, this program reads version %d; use the release that wrote it", ErrForeign, attributesFile, head.Version, attributesVersion)
	}
	var r attributesRecord
	if err := json.Unmarshal(p, &r); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, attributesFile, err)
	}
	if crc32.Checksum(r.Attributes, castagnoli) != r.CRC {
		return nil, fmt.Errorf("%w: %s has a wrong checksum", ErrDamaged, attributesFile)
	}
	a, err := attributes.Normal(r.Attributes)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, attributesFile, err)
	}
	if r.ID != id {
		return nil, fmt.Errorf("%w: %s is of volume %s; was the state folder copied?", ErrForeign, attributesFile, r.ID)
	}
	return a, nil
}

// readAttributes returns nil when there are none.
func readAttributes(fsys vfs.FS, dir string, id uuid.UUID) (json.RawMessage, error) {
	p, err := vfs.ReadFile(fsys, filepath.Join(dir, attributesFile), attributesLimit)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, vfs.ErrTooLarge):
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return nil, fmt.Errorf("read the attributes of volume %s: %w", id, err)
	}
	return decodeAttributes(p, id)
}

// writeAttributes replaces the attributes.json of a state folder; it is durable on return.
func writeAttributes(fsys vfs.FS, dir string, id uuid.UUID, a json.RawMessage) error {
	p, err := encodeAttributes(id, a)
	if err != nil {
		return err
	}
	if err := vfs.WriteFile(fsys, filepath.Join(dir, attributesFile), p, 0o600); err != nil {
		return fmt.Errorf("write the attributes of volume %s: %w", id, err)
	}
	return nil
}

// setAttributesAside keeps a damaged attributes.json under another name, for
// people to look at, in place of an earlier one.
func setAttributesAside(fsys vfs.FS, dir string) error {
	if err := fsys.Rename(filepath.Join(dir, attributesFile), filepath.Join(dir, attributesAside)); err != nil {
		return fmt.Errorf("set damaged attributes aside: %w", err)
	}
	if err := fsys.SyncDir(dir); err != nil {
		return fmt.Errorf("set damaged attributes aside: %w", err)
	}
	return nil
}

// LoadAttributes returns the attributes of the volume whose state folder is dir,
// in their normal form, nil if it has none. The volume may be open or not, or not
// even be one that can be opened. Attributes that cannot be read count as none,
// which the log says; damaged ones are set aside. Of LoadAttributes and
// SetAttributes one at a time is called for a volume.
func LoadAttributes(o Options, dir string, id uuid.UUID) json.RawMessage {
	o.setDefaults()
	a, err := readAttributes(o.FS, dir, id)
	if err == nil {
		return a
	}
	if errors.Is(err, ErrDamaged) {
		err = errors.Join(err, setAttributesAside(o.FS, dir))
	}
	o.Logger.Warn("the attributes of a volume are not shown", attrID(id), attrError(err))
	return nil
}

// SetAttributes replaces the attributes of the volume whose state folder is dir,
// open or not; they are durable when nil is returned. With was not nil it does so
// only if they are still these ({}: if there are none), and else fails with
// ErrChanged. It returns the attributes that are there in the end, also when it
// failed; nil is none, or with an error that it does not know. Those that another program may be able to read are not replaced (ErrForeign).
func SetAttributes(o Options, dir string, id uuid.UUID, next, was json.RawMessage) (json.RawMessage, error) {
	o.setDefaults()
	old, err := readAttributes(o.FS, dir, id)
	if errors.Is(err, ErrDamaged) {
		o.Logger.Warn("the attributes of a volume are replaced", attrID(id), attrError(err))
		err = setAttributesAside(o.FS, dir)
	}
	if err != nil {
		return nil, err
	}
	a, err := attributes.Normal(next)
	if err != nil {
		return old, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if was != nil {
		seen, wasErr := attributes.Normal(was)
		if wasErr != nil {
			return old, fmt.Errorf("%w: what was read before: %w", ErrInvalid, wasErr)
		}
		if !bytes.Equal(seen, old) {
			return old, fmt.Errorf("volume %s: %w", id, ErrChanged)
		}
	}
	if err = writeAttributes(o.FS, dir, id, a); err == nil {
		return a, nil
	}
	// The new ones may be there all the same.
	seen, rerr := readAttributes(o.FS, dir, id)
	if rerr == nil && bytes.Equal(seen, old) {
		return old, err
	}
	if werr := writeAttributes(o.FS, dir, id, old); werr != nil {
		return seen, errors.Join(err, werr)
	}
	return old, err
}
