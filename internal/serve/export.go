package serve

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/volume"
	"github.com/cairnbackup/cairn/nbd"
)

// snap is a snapshot and its door.
type snap struct {
	id     uuid.UUID
	s      *volume.Snapshot
	name   string // may be empty
	access access
	counts nbd.Counters
	dirty  dirtyMap
	door   *door // nil: see err
	err    error // why the snapshot is not served
}

func newSnap(s *volume.Snapshot) *snap {
	info := s.Info()
	return &snap{id: info.ID, s: s, name: info.Name}
}

// label is the part of the export's name after the '@', and what people call
// the snapshot.
func (s *snap) label() string { return snapshotLabel(s.name, s.id) }

func snapshotLabel(name string, id uuid.UUID) string {
	if name != "" {
		return name
	}
	return id.String()
}

// snapshotExportName names a snapshot's export, and its socket.
func snapshotExportName(vol, label string) string { return vol + "@" + label }

// volumeExports are the two doors of a volume: the default one, which reads
// and writes and makes the volume in-use, and one that only reads.
func (p *plane) volumeExports(e *entry) []*nbd.Export {
	name := e.title()
	size := func() int64 {
		if v, err := e.live(); err == nil {
			return v.Size()
		}
		return 0
	}
	return []*nbd.Export{
		{
			Name: name, Description: "volume " + name,
			MultiConn: true, // the volume's flush covers every write there was
			Size:      size, Contexts: e.contexts, Counters: &e.writes,
			Open: func(ctx context.Context, peer nbd.Peer) (nbd.Device, error) {
				id, holder := p.peerID(peer, p.nth.Add(1))
				if err := e.access.enterWrite(ctx, name, id, holder); err != nil {
					return nil, err
				}
				return e.connectWriter()
			},
		},
		{
			Name: name + readOnlyDoor, Description: "volume " + name + ", only to read",
			ReadOnly: true, MultiConn: true,
			Size: size, Contexts: e.contexts, Counters: &e.reads,
			Open: func(_ context.Context, peer nbd.Peer) (nbd.Device, error) {
				leave, err := e.access.enterRead(peer.PID >= 0) // it has come by the socket
				if err != nil {
					return nil, err
				}
				v, err := e.live()
				if err != nil {
					leave()
					return nil, err
				}
				return e.device(v, func() error {
					leave()
					return nil
				}), nil
			},
		},
	}
}

// connectWriter makes the device of a connection that was let in to write. By
// then the volume is open for writing, its epoch says so, and nothing that another
// host wrote is hidden by the page cache.
func (e *entry) connectWriter() (nbd.Device, error) {
	v, err := e.live()
	if err != nil {
		e.access.leaveWrite()
		return nil, err
	}
	if err := v.OpenForWriting(); err != nil {
		e.access.leaveWrite()
		if errors.Is(err, volume.ErrStale) || errors.Is(err, volume.ErrFailed) {
			return nil, fmt.Errorf("volume %s takes no writer: %w", e.title(), err)
		}
		return nil, fmt.Errorf("volume %[1]s takes no writer, because its new epoch cannot be recorded in %[2]s: mend that, and connect to export %[1]s%[3]s to read meanwhile: %[4]w",
			e.title(), e.dir, readOnlyDoor, err)
	}
	return e.device(v, func() error {
		// Whoever waits for the door need not wait for the disk.
		e.access.leaveWrite()
		return v.CloseForWriting()
	}), nil
}

// device is that of a connection to the live volume; leave is called once, at its end.
func (e *entry) device(v *volume.Volume, leave func() error) nbd.Device {
	return &liveDevice{Volume: v, e: e, leave: sync.OnceValue(func() error {
		err := leave()
		if u := e.access.use(); u.writers+u.readers == 0 {
			e.dirty.drop()
		}
		return err
	})}
}

// snapshotExport is the door of a snapshot.
func (p *plane) snapshotExport(e *entry, sn *snap) *nbd.Export {
	name := e.title()
	return &nbd.Export{
		Name:        snapshotExportName(name, sn.label()),
		Description: fmt.Sprintf("snapshot %s of volume %s", sn.label(), name),
		ReadOnly:    true, MultiConn: true,
		Background: true, // it is read for a backup, while guests wait for the volume
		Size:       func() int64 { return sn.s.Info().Size },
		Contexts:   e.contexts,
		Counters:   &sn.counts,
		Open: func(context.Context, nbd.Peer) (nbd.Device, error) {
			leave, err := sn.access.enterRead(false)
			if err != nil {
				return nil, err
			}
			if !e.has(sn) { // it was found before its volume was reopened
				leave()
				return nil, refuse(CodeNotFound, "snapshot %s of volume %s was deleted, or the volume reopened: connect again", sn.label(), name)
			}
			if why := sn.s.Info().Broken; why != "" {
				leave()
				return nil, refuse(CodeConflict, "snapshot %s of volume %s is broken, because %s: delete it and make another", sn.label(), name, why)
			}
			return &snapshotDevice{sn: sn, leave: sync.OnceFunc(func() {
				leave()
				if sn.access.use().readers == 0 {
					sn.dirty.drop()
				}
			})}, nil
		},
	}
}

// has says whether sn is a snapshot of the volume, as it is open now.
func (e *entry) has(sn *snap) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.snaps[sn.id] == sn
}

// describeSnaps shows the snapshots of a volume, oldest first.
func (e *entry) describeSnaps(at addresses) []Snapshot {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.vol == nil {
		return nil
	}
	// The volume knows their order.
	var rs []Snapshot
	for _, s := range e.vol.Snapshots() {
		if sn := e.snaps[s.Info().ID]; sn != nil {
			rs = append(rs, e.describeSnap(sn, at))
		}
	}
	return rs
}

// describeSnap shows one snapshot; e.mu is held.
func (e *entry) describeSnap(sn *snap, at addresses) Snapshot {
	info := sn.s.Info()
	r := Snapshot{
		ID: info.ID.String(), Name: info.Name, VolumeID: e.id.String(), Volume: e.spec.Name,
		Size: info.Size, Created: info.Created, Status: StatusAvailable, Temporary: info.Temporary,
		PreimageBytes: info.PreimageBytes, BytesRead: sn.counts.ReadBytes.Load(), Readers: sn.access.use().readers,
	}
	if info.Broken != "" {
		r.Status, r.Error = StatusBroken, info.Broken
	}
	export := snapshotExportName(e.spec.Name, sn.label())
	r.TCPURI = at.tcp.URI(export)
	if sn.door == nil {
		r.Error = fmt.Sprintf("it has no socket: %v", sn.err)
		return r
	}
	r.Socket, r.URI = at.socket(export), at.uri(export)
	return r
}
