package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
	"github.com/cairnbackup/cairn/internal/volume"
	"github.com/cairnbackup/cairn/nbd"
)

// dataFile is a managed volume's data, in its state folder.
const dataFile = "data.raw"

// entry is one volume of the plane, open or not.
type entry struct {
	id       uuid.UUID
	dir      string
	changing chan struct{} // holds one token: of who changes the volume or its snapshots
	access   access
	writes   nbd.Counters // of the read-write door
	reads    nbd.Counters // of the read-only door
	dirty    dirtyMap
	noting   sync.Mutex // held while the attributes are read from disk or replaced; not for long

	mu    sync.RWMutex
	spec  volume.Spec // what is known of it; Size is that at opening
	vol   *volume.Volume
	err   error // why vol is nil
	door  *door // nil when vol is
	snaps map[uuid.UUID]*snap
	gone  bool            // deleted
	attrs json.RawMessage // the control plane's attributes; nil = none

	offered []string // metadata contexts; kept for those who shake hands while the tracker is busy

	looking sync.WaitGroup // those who look at vol without mu or changing; begun under mu
}

func newEntry(id uuid.UUID, dir string) *entry {
	return &entry{id: id, dir: dir, changing: make(chan struct{}, 1), err: errors.New("it is being opened")}
}

// lock waits to be the only one who changes the volume.
func (e *entry) lock(ctx context.Context) error {
	select {
	case e.changing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another change of volume %s: %w", e.title(), context.Cause(ctx))
	}
}

func (e *entry) unlock() { <-e.changing }

// title is what people call the volume.
func (e *entry) title() string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.spec.Name == "" {
		return e.id.String()
	}
	return e.spec.Name
}

// live returns the open volume, or why there is none.
func (e *entry) live() (*volume.Volume, error) {
	title := e.title()
	e.mu.RLock()
	defer e.mu.RUnlock()
	switch {
	case e.gone:
		return nil, refuse(CodeNotFound, "volume %s has been deleted", title)
	case e.vol == nil:
		return nil, refuse(CodeConflict, "volume %s is not served, because %v: mend that, then run cairn volume reopen or restart cairn serve", title, e.err)
	}
	return e.vol, nil
}

// open opens the volume of e and serves it; a failure is kept in e. The caller
// has e locked.
func (p *plane) open(ctx context.Context, e *entry) {
	spec := readSpec(p.fs, e.dir)
	e.mu.Lock()
	e.spec = spec
	e.mu.Unlock()
	p.loadAttributes(e)
	v, err := volume.Open(p.options(), e.dir) //nolint:contextcheck // What a crash interrupted is finished, whoever waits.
	if err == nil {
		if err = p.serve(ctx, e, v); err == nil {
			return
		}
		err = errors.Join(err, v.Close())
	}
	p.log.LogAttrs(ctx, slog.LevelError, "volume cannot be served", slog.String("id", e.id.String()), slog.String("volume", e.title()), slog.Any("error", err))
	e.mu.Lock()
	e.vol, e.err = nil, err
	e.mu.Unlock()
}

// serve opens the doors of an open volume. With an error no door is open, and
// the caller closes the volume.
func (p *plane) serve(ctx context.Context, e *entry, v *volume.Volume) error {
	spec := v.Spec()
	if spec.ID != e.id {
		return fmt.Errorf("the state folder %s is volume %s's: was it copied or renamed?", e.dir, spec.ID)
	}
	if err := checkFreeName("volume", spec.Name); err != nil {
		return err
	}
	e.mu.Lock()
	e.spec = spec
	e.mu.Unlock()
	for _, other := range p.named(spec.Name) {
		if other != e && other.isOpen() {
			return fmt.Errorf("volume %s has the same name: was its state folder copied?", other.id)
		}
	}
	d, err := p.listen(ctx, spec.Name)
	if err != nil {
		return err
	}
	p.removeDeadSnapshotSockets(ctx, spec.Name)
	snaps := make(map[uuid.UUID]*snap)
	for _, s := range v.Snapshots() {
		sn := newSnap(s)
		if sn.door, sn.err = p.listen(ctx, snapshotExportName(spec.Name, sn.label())); sn.err != nil {
			// Its volume is worth serving without it.
			p.log.LogAttrs(ctx, slog.LevelError, "snapshot cannot be served", slog.String("volume", spec.Name), slog.String("snapshot", sn.label()), slog.Any("error", sn.err))
		}
		snaps[sn.id] = sn
	}
	e.mu.Lock()
	e.vol, e.err, e.door, e.snaps = v, nil, d, snaps
	e.mu.Unlock()
	e.refresh(v)
	d.start(ctx, p.volumeExports(e)...)
	for _, sn := range snaps {
		if sn.door != nil {
			sn.door.start(ctx, p.snapshotExport(e, sn))
		}
	}
	return nil
}

// refresh follows a change of the checkpoints, or of the content by the control
// API.
func (e *entry) refresh(v *volume.Volume) {
	e.dirty.changed()
	cs := contexts(positions(v))
	e.mu.Lock()
	defer e.mu.Unlock()
	e.offered = cs
	for _, sn := range e.snaps {
		sn.dirty.changed() // a name may denote another position now
	}
}

// contexts are those that the volume and its snapshots offer.
func (e *entry) contexts() []string {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.offered
}

func (e *entry) isOpen() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.vol != nil
}

// removeDeadSnapshotSockets removes the sockets of a volume's snapshots that
// were temporary, or were deleted just before a crash.
func (p *plane) removeDeadSnapshotSockets(ctx context.Context, name string) {
	dir, err := os.ReadDir(p.at.dir)
	if err != nil {
		p.log.LogAttrs(ctx, slog.LevelWarn, "old sockets not looked for", slog.Any("error", err))
		return
	}
	for _, d := range dir {
		if !strings.HasPrefix(d.Name(), name+"@") || !strings.HasSuffix(d.Name(), socketSuffix) {
			continue
		}
		if err := removeDead(ctx, filepath.Join(p.at.dir, d.Name())); err != nil {
			p.log.LogAttrs(ctx, slog.LevelWarn, "old socket left alone", slog.Any("error", err))
		}
	}
}

// shutDown stops the doors and closes the volume; e is locked or no longer
// used by anyone.
func (e *entry) shutDown() error {
	e.mu.Lock()
	v, d, snaps := e.vol, e.door, e.snaps
	e.vol, e.door, e.snaps = nil, nil, nil
	e.err = errors.New("it is closed")
	e.mu.Unlock()
	var errs []error
	for _, sn := range snaps {
		if sn.door != nil {
			errs = append(errs, sn.door.stop())
		}
	}
	if d != nil {
		errs = append(errs, d.stop())
	}
	e.looking.Wait()
	if v != nil {
		if err := v.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close volume %s: %w", e.title(), err))
		}
	}
	return errors.Join(errs...)
}

// readSpec learns what it can of a volume that may turn out not to open. It
// is only for showing, so it is content with a record of any version.
func readSpec(fsys vfs.FS, dir string) volume.Spec {
	const limit = 16 << 20
	b, err := vfs.ReadFile(fsys, filepath.Join(dir, "volume.json"), limit)
	if err != nil {
		return volume.Spec{}
	}
	var r struct {
		Name    string `json:"name"`
		Path    string `json:"path"`
		Kind    string `json:"kind"`
		Managed bool   `json:"managed"`
		Size    int64  `json:"size"`
	}
	if err := json.Unmarshal(b, &r); err != nil || !namePattern.MatchString(r.Name) {
		return volume.Spec{}
	}
	return volume.Spec{Name: r.Name, Path: r.Path, Size: r.Size, Managed: r.Managed, Device: r.Kind == KindDevice}
}

// describe shows the volume, its checkpoints as positions or changes lists them.
func (p *plane) describe(e *entry, checkpoints func(*volume.Volume) []Checkpoint) Volume {
	r, v, done := e.look(p.at)
	defer done()
	if v != nil {
		r.Allocated = allocated(p.fs, r)
		r.Checkpoints = checkpoints(v)
	}
	return r
}

// look shows what is known of the volume without reading from disk, and returns
// the volume, nil if it is not open, which is not closed before done is called.
func (e *entry) look(at addresses) (r Volume, v *volume.Volume, done func()) {
	u := e.access.use()
	e.mu.RLock()
	defer e.mu.RUnlock()
	r = Volume{
		ID: e.id.String(), Name: e.spec.Name, Path: e.path(), Kind: KindFile, Managed: e.spec.Managed, Size: e.spec.Size,
		Status: StatusAvailable, Writers: u.writers, Readers: u.readers, InUse: u.writers > 0, Writer: u.holder,
		Created: e.spec.Created, Checkpoints: []Checkpoint{},
		BytesRead:    e.writes.ReadBytes.Load() + e.reads.ReadBytes.Load(),
		BytesWritten: e.writes.WriteBytes.Load(),
		Attributes:   shown(e.attrs),
	}
	if e.spec.Device {
		r.Kind = KindDevice
	}
	if u.writers > 0 {
		r.Status = StatusInUse
	}
	if e.vol == nil {
		r.Status, r.Error = StatusError, e.err.Error()
		return r, nil, func() {}
	}
	if err := e.vol.Failed(); err != nil {
		r.Status, r.Error = StatusError, err.Error()
	}
	r.Size = e.vol.Size()
	epoch, writing := e.vol.Openings()
	r.Epoch = &epoch
	if writing && r.Status == StatusAvailable {
		r.Status = StatusInUse
	}
	r.InUse = r.InUse || writing
	r.Socket, r.URI, r.TCPURI = at.socket(e.spec.Name), at.uri(e.spec.Name), at.tcp.URI(e.spec.Name)
	r.Snapshots = len(e.snaps)
	e.looking.Add(1)
	return r, e.vol, e.looking.Done
}

// path of the data; e.mu is held.
func (e *entry) path() string {
	if e.spec.Path == "" && e.spec.Managed {
		return filepath.Join(e.dir, dataFile)
	}
	return e.spec.Path
}

// allocated is what the volume's data take on disk.
func allocated(fsys vfs.FS, r Volume) int64 {
	if r.Kind == KindDevice {
		return r.Size
	}
	st, err := fsys.Stat(r.Path)
	if err != nil {
		return 0 // moved away while it is served; the volume itself goes on
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		const unit = 512 // of st_blocks, whatever the file system's block
		return sys.Blocks * unit
	}
	return st.Size()
}

// addTo counts the volume for the status.
func (e *entry) addTo(s *Status) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	s.Volumes++
	if e.vol == nil || e.vol.Failed() != nil {
		s.VolumesError++
	}
	s.Snapshots += len(e.snaps)
	u := e.access.use()
	s.Connections += u.writers + u.readers
	for _, sn := range e.snaps {
		s.Connections += sn.access.use().readers
	}
}
