package agent

import (
	"encoding/json"

	"github.com/cairnbackup/cairn/internal/serve"
	"github.com/cairnbackup/cairn/internal/source"
)

// CreateVolume asks for a volume. Exactly one of Size, File, Device, NBD, and QMP with
// Node is set.
type CreateVolume struct {
	ID          string `json:"id,omitempty"`   // a random UUID, or that under which another host has the same file or device; empty: one is drawn
	Name        string `json:"name"`           //
	Size        int64  `json:"size,omitempty"` // bytes of a new sparse file
	File        string `json:"file,omitempty"` // an existing raw file
	Device      string `json:"device,omitempty"`
	AllowFormat bool   `json:"allow_format,omitempty"` // take a file that looks like qcow2, VMDK, LUKS… as raw bytes

	NBD  string `json:"nbd,omitempty"`  // URI of an export of any NBD server
	QMP  string `json:"qmp,omitempty"`  // absolute path of the QMP socket of a running qemu
	Node string `json:"node,omitempty"` // node name of the disk there

	Quiesce    *Quiesce        `json:"quiesce,omitempty"`
	Attributes json.RawMessage `json:"attributes,omitempty"` // see [VolumeOf]
}

// noteQuiesce puts how the volume is quiesced into its attributes, where that is kept.
func (r *CreateVolume) noteQuiesce() error {
	if r.Quiesce == nil {
		return nil
	}
	n, ok := readNotes(r.Attributes)
	if !ok && len(r.Attributes) > 0 {
		return refuse(CodeInvalid, "the attributes are not the agent's, which keeps there how the volume is quiesced")
	}
	n.quiesce(*r.Quiesce)
	var err error
	r.Attributes, err = n.encode()
	return err
}

// kind is what the volume will be.
func (r *CreateVolume) kind() string {
	switch {
	case r.NBD != "":
		return source.KindNBD
	case r.QMP != "":
		return source.KindQEMU
	default:
		return serve.KindFile
	}
}

// Foreign reports whether a volume is not served by the data plane but by something else.
func Foreign(v Volume) bool { return source.Foreign(v) }

// foreign reports whether the volume is not to be the data plane's.
func (r *CreateVolume) foreign() bool { return r.NBD != "" || r.QMP != "" || r.Node != "" }

// plane is what is asked of the data plane.
func (r *CreateVolume) plane() serve.CreateVolume {
	return serve.CreateVolume{ID: r.ID, Name: r.Name, Size: r.Size, File: r.File, Device: r.Device, AllowFormat: r.AllowFormat, Attributes: r.Attributes}
}

// record is what is asked of the foreign volumes.
func (r *CreateVolume) record() (source.Record, error) {
	x := source.Record{ID: r.ID, Name: r.Name, Kind: r.kind(), URI: r.NBD, Socket: r.QMP, Node: r.Node, Attributes: r.Attributes}
	switch {
	case r.Size != 0 || r.File != "" || r.Device != "" || r.AllowFormat || r.NBD != "" && (r.QMP != "" || r.Node != ""):
		return x, refuse(CodeInvalid, "a volume is one thing: a new file of a size, a file, a device, an NBD server's export, or the node of a qemu")
	case r.NBD == "" && (r.QMP == "" || r.Node == ""):
		return x, refuse(CodeInvalid, "the disk of a qemu needs both: the QMP socket, and the name of the node")
	}
	return x, nil
}
