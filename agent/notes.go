package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/cairnbackup/cairn/internal/attributes"
	"github.com/cairnbackup/cairn/internal/serve"
)

// volumeNotes is what the agent has the data plane keep with a volume, so that it
// outlives the catalog: whose it is, and what of it only people care about. A volume
// without notes is the operator's.
type volumeNotes struct {
	Project     string                   `json:"project,omitempty"`
	User        string                   `json:"user,omitempty"`
	Name        *string                  `json:"name,omitempty"` // nil = what the data plane calls it
	Description string                   `json:"description,omitempty"`
	Type        string                   `json:"type,omitempty"`
	Bootable    bool                     `json:"bootable,omitempty"`
	Metadata    map[string]string        `json:"metadata,omitempty"`
	Backup      string                   `json:"backup,omitempty"` // that it was restored from, ID
	Status      string                   `json:"status,omitempty"` // one that outlasts what caused it; empty = as the data plane says
	Quiesce     *Quiesce                 `json:"quiesce,omitempty"`
	Updated     time.Time                `json:"updated,omitzero"`
	Snapshots   map[string]snapshotNotes `json:"snapshots,omitempty"` // by ID
}

// snapshotNotes are those of a snapshot, which belongs to whom its volume does.
type snapshotNotes struct {
	User        string            `json:"user,omitempty"`
	Name        *string           `json:"name,omitempty"`
	Description string            `json:"description,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Quiesced    bool              `json:"quiesced,omitempty"` // see [Backup]
	Updated     time.Time         `json:"updated,omitzero"`
}

// The states of a volume that are noted.
const (
	noteRestoring    = "restoring-backup"
	noteErrorRestore = "error_restoring" // a restore to it failed
	noteError        = "error"           // nobody knows what it holds
)

// notesOf reads a volume's notes. Those that are not ours, or of a later version that
// has them otherwise, are none.
func notesOf(v Volume) volumeNotes {
	n, _ := readNotes(v.Attributes)
	return n
}

// readNotes reads notes, if there are any and they are ours.
func readNotes(data json.RawMessage) (n volumeNotes, ok bool) {
	if len(data) == 0 || json.Unmarshal(data, &n) != nil {
		return volumeNotes{}, false
	}
	return n, true
}

func (n *volumeNotes) encode() (json.RawMessage, error) {
	data, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("notes of a volume: %w", err)
	}
	return data, nil
}

// name is what people call the volume.
func (n *volumeNotes) name(v Volume) string {
	if n.Name != nil {
		return *n.Name
	}
	return v.Name
}

// note changes the notes of a volume: whoever changes them at the same time is waited
// for. A volume that is not there has none.
func (s *server) note(ctx context.Context, volumeID string, change func(n *volumeNotes)) (Volume, error) {
	unlock, err := s.hub.noting.lock(ctx, volumeID)
	if err != nil {
		return Volume{}, fmt.Errorf("notes of volume %s: %w", volumeID, err)
	}
	defer unlock()
	v, err := s.serve.Volume(ctx, volumeID)
	if err != nil {
		return v, err
	}
	n := notesOf(v)
	change(&n)
	if err = s.forgetGone(ctx, v.ID, &n); err != nil {
		return v, err
	}
	data, err := n.encode()
	if err != nil {
		return v, err
	}
	return s.serve.SetAttributes(ctx, v.ID, serve.SetAttributes{Attributes: data, Was: v.Attributes})
}

// forgetGone drops the notes of snapshots that are gone, as the operator deletes them
// without the notes: room for notes is scarce. Nothing is noted of a snapshot before it is
// there, and so those that are not there now are gone for good.
func (s *server) forgetGone(ctx context.Context, volumeID string, n *volumeNotes) error {
	if len(n.Snapshots) == 0 {
		return nil
	}
	l, err := s.serve.Snapshots(ctx, volumeID)
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(l))
	for _, x := range l {
		there[x.ID] = true
	}
	maps.DeleteFunc(n.Snapshots, func(id string, _ snapshotNotes) bool { return !there[id] })
	return nil
}

// restoreEnded notes at a volume in which state a restore to it left it, "" is a good one.
// One that wrote nothing leaves a volume as it was, unless that was announced as
// restoring.
func (s *server) restoreEnded(ctx context.Context, volumeID string, b Backup, res RestoreResult, state string) error {
	v, verr := s.serve.Volume(ctx, volumeID)
	if errors.Is(verr, serve.ErrNotFound) {
		return nil
	}
	if verr != nil {
		return verr
	}
	was := notesOf(v).Status
	if state != "" && res.BytesWritten == 0 && was != noteRestoring {
		return nil
	}
	_, nerr := s.note(ctx, volumeID, func(n *volumeNotes) {
		n.Status = state
		if state == "" {
			n.restored(b)
		}
		n.Updated = time.Now().UTC()
	})
	if errors.Is(nerr, serve.ErrInvalid) || errors.Is(nerr, serve.ErrConflict) {
		// The metadata of both are too much for one volume: what it holds is right.
		_, nerr = s.note(ctx, volumeID, func(n *volumeNotes) { n.Status = state })
	}
	return nerr
}

// tidyRestored notes the end of restores that a stopped agent left: what such a volume
// holds is a mixture.
func (s *server) tidyRestored(ctx context.Context) error {
	if s.name != DefaultRepository {
		return nil // only to its restores it is noted that they run
	}
	all, err := s.serve.Volumes(ctx)
	for _, v := range all {
		if notesOf(v).Status == noteRestoring {
			err = errors.Join(err, s.tidyRestoredTo(ctx, v.ID))
		}
	}
	return err
}

func (s *server) tidyRestoredTo(ctx context.Context, volumeID string) error {
	unlock, err := s.targets.lock(ctx, volumeID) // against a restore that is about to be queued
	if err != nil {
		return err
	}
	defer unlock()
	if _, busy := s.jobs.using(func(j Job) bool { return j.VolumeID == volumeID }); busy {
		return nil
	}
	_, err = s.note(ctx, volumeID, func(n *volumeNotes) {
		if n.Status == noteRestoring { // not if one has ended meanwhile
			n.Status = noteErrorRestore
		}
	})
	if errors.Is(err, serve.ErrNotFound) {
		return nil
	}
	return err
}

// restored takes over what was noted of the volume that the backup is of.
func (n *volumeNotes) restored(b Backup) {
	was, ok := readNotes(b.VolumeNotes)
	if !ok {
		return
	}
	n.Bootable, n.Backup = was.Bootable, b.ID
	for k, v := range was.Metadata {
		if n.Metadata == nil {
			n.Metadata = map[string]string{}
		}
		n.Metadata[k] = v
	}
}

// ofContent is the part of the notes that goes into a backup with the content.
func (n *volumeNotes) ofContent(v Volume) (json.RawMessage, error) {
	name := n.name(v)
	part := volumeNotes{Name: &name, Description: n.Description, Type: n.Type, Bootable: n.Bootable, Metadata: n.Metadata}
	return part.encode()
}

// backupNotes is what a backup's root record keeps beside what the repository knows
// of it.
type backupNotes struct {
	User      string            `json:"user,omitempty"`
	Container string            `json:"container,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	Snapshot  string            `json:"snapshot,omitempty"`
	DataTime  time.Time         `json:"data_time,omitzero"`
	Volume    json.RawMessage   `json:"volume,omitempty"` // notes of the volume
	Quiesced  bool              `json:"quiesced,omitempty"`
	Warning   string            `json:"warning,omitempty"` // of before the commit, at most maxNotedWarning
}

// maxNotedWarning is how many bytes of a backup's warning its root record keeps.
const maxNotedWarning = 512

func notesForRoot(b Backup) (json.RawMessage, error) {
	warning := strings.ToValidUTF8(b.Warning[:min(len(b.Warning), maxNotedWarning)], "")
	data, err := json.Marshal(backupNotes{b.User, b.Container, b.Metadata, b.SnapshotID, b.DataTime, b.VolumeNotes, b.Quiesced, warning})
	if err != nil {
		return nil, fmt.Errorf("notes of backup %s: %w", b.ID, err)
	}
	return data, nil
}

// fitNotes refuses a backup with more notes than its root record keeps, before anything
// is read.
func fitNotes(b Backup) error {
	b.DataTime, b.Quiesced, b.Warning = time.Unix(0, 1).UTC(), true, strings.Repeat("x", maxNotedWarning) // as long as any
	data, err := notesForRoot(b)
	if err != nil {
		return err
	}
	if _, err = attributes.Normal(data); err != nil {
		return refuse(CodeInvalid, "the metadata of the backup and of its volume are too much: %v", err)
	}
	return nil
}

// takeNotes fills a record from what the root record keeps. What is not understood is
// left out: the backup is as good.
func takeNotes(b *Backup, data json.RawMessage) {
	var n backupNotes
	if len(data) == 0 || json.Unmarshal(data, &n) != nil {
		return
	}
	b.User, b.Container, b.Metadata, b.SnapshotID, b.DataTime, b.VolumeNotes = n.User, n.Container, n.Metadata, n.Snapshot, n.DataTime, n.Volume
	b.Quiesced, b.Warning = n.Quiesced, n.Warning
}
