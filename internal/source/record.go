package source

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/jsonfile"
)

// Record is a foreign volume as it is kept (FORMAT.md).
type Record struct {
	ID     string    `json:"id"`
	Name   string    `json:"name"`
	Kind   string    `json:"kind"`
	URI    string    `json:"uri,omitempty"`    // kind nbd: of the export
	Socket string    `json:"socket,omitempty"` // kind qemu: of its QMP monitor, absolute
	Node   string    `json:"node,omitempty"`   // kind qemu: node name of the disk
	Size   int64     `json:"size"`             // bytes, when it was last seen
	Made   time.Time `json:"created"`

	// Checkpoints are positions that were made for callers, oldest first.
	Checkpoints []Checkpoint    `json:"checkpoints,omitempty"`
	Attributes  json.RawMessage `json:"attributes,omitempty"` // the caller's, in their normal form
}

// Checkpoint is the position of a snapshot that was made.
type Checkpoint struct {
	Name  string    `json:"name"`
	Made  time.Time `json:"created"`
	Doubt string    `json:"doubt,omitempty"` // why nobody can tell what changed since; "" = ask
}

// Bounds of a record.
const (
	maxName        = 255
	maxCheckpoints = 4096
	maxURI         = 4096
)

var recordFormat = jsonfile.Format{Name: "cairn-source", Version: 1}

// check refuses a record that Set did not write.
func (r *Record) check() error {
	switch {
	case uuid.Validate(r.ID) != nil:
		return fmt.Errorf("%q is no volume's ID", r.ID)
	case r.Name == "" || len(r.Name) > maxName:
		return errors.New("it has no usable name")
	case r.Size < 0:
		return fmt.Errorf("%d is no size", r.Size)
	case len(r.Checkpoints) > maxCheckpoints:
		return fmt.Errorf("it has %d checkpoints", len(r.Checkpoints))
	}
	switch r.Kind {
	case KindNBD:
		if r.URI == "" || r.Socket != "" || r.Node != "" {
			return errors.New("a volume of kind nbd has a URI and nothing else")
		}
	case KindQEMU:
		if r.URI != "" || !filepath.IsAbs(r.Socket) || r.Node == "" {
			return errors.New("a volume of kind qemu has the absolute path of a socket, and the name of a node")
		}
	default:
		return fmt.Errorf("its kind is %q: use the release that wrote it", r.Kind)
	}
	return nil
}

// where is what a volume is, for people.
func (r *Record) where() string {
	if r.Kind == KindQEMU {
		return r.Socket + " " + r.Node
	}
	return r.URI
}

// fileName is the name of a volume's record in the folder of all.
func fileName(id string) string { return id + ".json" }
