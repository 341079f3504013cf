package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/cairnbackup/cairn/internal/vfs"
	"github.com/cairnbackup/cairn/internal/volume"
	"github.com/cairnbackup/cairn/nbd"
)

// volumesDir holds the volumes' state folders, named by their IDs.
const volumesDir = "volumes"

// Bounds of what one data plane serves.
const (
	maxVolumes     = 4096
	maxSnapshots   = 256 // of one volume
	maxCheckpoints = 256 // of one volume, the snapshots' own included
	maxGroup       = 64  // volumes snapshotted by one request

	// maxSize of a volume in bytes: one bit per block in memory is 256 MiB
	// then, for each checkpoint of which it has changed everywhere since.
	maxSize = 128 << 40
)

// plane is the volumes of one state folder and their doors.
//
// Locks are taken in this order: create, entry.changing (several: by ID),
// entry.noting, plane.mu, entry.mu, access.mu. Only the first three are held over
// changes on disk.
type plane struct {
	fs      vfs.FS
	log     *slog.Logger
	volumes string // folder
	at      addresses
	gid     int
	version string
	state   string
	started time.Time
	peerID  func(p nbd.Peer, nth uint64) (id, holder string) // identity, but in tests
	nth     atomic.Uint64                                    // numbers connections

	maxAttributes int // bytes of all volumes' attributes; less in tests

	create sync.Mutex // one volume is made at a time

	mu      sync.RWMutex
	entries map[uuid.UUID]*entry
	making  map[uuid.UUID]chan struct{} // snapshots being made; closed when they are, or are not
}

func newPlane(o Options, fsys vfs.FS, gid int) *plane {
	return &plane{
		fs:      fsys,
		log:     o.Logger,
		state:   o.State,
		volumes: filepath.Join(o.State, volumesDir),
		at:      addresses{dir: o.NBDDir, tcp: o.TCP},
		gid:     gid,
		version: o.Version,
		started: time.Now(),
		peerID:  identity,

		maxAttributes: maxAttributes,

		entries: make(map[uuid.UUID]*entry),
		making:  make(map[uuid.UUID]chan struct{}),
	}
}

// options are those of every volume.
func (p *plane) options() volume.Options { return volume.Options{FS: p.fs, Logger: p.log} }

// openAll clears what a crash has left and opens every volume.
func (p *plane) openAll(ctx context.Context) error {
	if err := vfs.MkdirAll(p.fs, p.volumes, 0o700); err != nil {
		return fmt.Errorf("make folder of volumes: %w", err)
	}
	if err := volume.Sweep(p.options(), p.volumes); err != nil {
		p.log.LogAttrs(ctx, slog.LevelWarn, "leftovers of crashes not removed", slog.Any("error", err))
	}
	dir, err := p.fs.ReadDir(p.volumes)
	if err != nil {
		return fmt.Errorf("read folder of volumes: %w", err)
	}
	for _, d := range dir {
		path := filepath.Join(p.volumes, d.Name())
		id, ok := parseID(d.Name())
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("open volumes: %w", context.Cause(ctx))
		case ok && d.IsDir():
			e := newEntry(id, path)
			p.mu.Lock()
			p.entries[id] = e
			p.mu.Unlock()
			if err := e.lock(ctx); err != nil {
				return err
			}
			p.open(ctx, e)
			e.unlock()
		default:
			p.log.LogAttrs(ctx, slog.LevelWarn, "not a volume's folder: left alone", slog.String("path", path))
		}
	}
	return nil
}

// close stops all doors and closes all volumes. No request may run.
func (p *plane) close() error {
	var errs []error
	for _, e := range p.sorted() {
		errs = append(errs, e.shutDown())
	}
	return errors.Join(errs...)
}

func (p *plane) count() int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.entries)
}

// sorted returns all entries by name and ID.
func (p *plane) sorted() []*entry {
	p.mu.RLock()
	es := make([]*entry, 0, len(p.entries))
	for _, e := range p.entries {
		es = append(es, e)
	}
	p.mu.RUnlock()
	names := make(map[*entry]string, len(es))
	for _, e := range es {
		names[e] = e.title()
	}
	slices.SortFunc(es, func(a, b *entry) int {
		if c := strings.Compare(names[a], names[b]); c != 0 {
			return c
		}
		return strings.Compare(a.id.String(), b.id.String())
	})
	return es
}

// find returns the volume with this name or ID.
func (p *plane) find(ref string) (*entry, error) {
	if id, ok := parseID(ref); ok {
		p.mu.RLock()
		e := p.entries[id]
		p.mu.RUnlock()
		if e != nil {
			return e, nil
		}
		return nil, refuse(CodeNotFound, "no volume has the ID %s: cairn volume list shows those there are", ref)
	}
	found := p.named(ref)
	switch len(found) {
	case 0:
		return nil, refuse(CodeNotFound, "no volume has the name or ID %q: cairn volume list shows those there are", clip(ref))
	case 1:
		return found[0], nil
	default:
		return nil, refuse(CodeConflict, "%d volumes are named %s: give the ID of the one that is meant", len(found), ref)
	}
}

// named returns the volumes with this name; more than one have it only if
// somebody has copied state folders.
func (p *plane) named(name string) []*entry {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var found []*entry
	for _, e := range p.entries {
		if e.title() == name {
			found = append(found, e)
		}
	}
	return found
}

// status returns the state of the data plane.
func (p *plane) status() Status {
	s := Status{
		Version: p.version, PID: os.Getpid(), Started: p.started,
		UptimeSeconds: int64(time.Since(p.started).Seconds()),
		State:         p.state, NBDDir: p.at.dir, NBDListen: p.at.tcp.Listen(),
	}
	for _, e := range p.sorted() {
		e.addTo(&s)
	}
	s.ResidentBytes, s.HeapBytes = memory()
	return s
}
